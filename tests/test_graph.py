"""The road from run to figure, at smoke scale, in a copy of the repository."""
import json, os, shutil, signal, subprocess, sys, time
from pathlib import Path
import pytest
from sparsedm.experiments import FIGURES, files_of, find_run, make_run, runs_of

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    "A fresh copy: notebooks, graph and small assets, no runs, no records."
    copy = tmp_path_factory.mktemp("repo")
    for name in ("nbs", "data"): shutil.copytree(ROOT/name, copy/name, ignore=shutil.ignore_patterns("records", "cifar10", "hub", ".ipynb_checkpoints"))
    for name in ("Snakefile", "settings.ini"): shutil.copy(ROOT/name, copy/name)
    return copy


def call(repo, *args, **kwargs):
    return subprocess.run([sys.executable, "-m", *map(str, args)], cwd=repo, capture_output=True, text=True, **kwargs)


def papermill(repo, notebook, *parameters):
    out = repo/"out.ipynb"; out.unlink(missing_ok=True)
    return call(repo, "papermill", "--no-progress-bar", f"nbs/{notebook}.ipynb", out, *parameters)


def files(repo): return {p: p.stat().st_mtime_ns for d in ("data/records", "figures") for p in (repo/d).rglob("*") if p.is_file()}
def records(repo): return {p for p in files(repo) if "records" in p.parts}
def record(repo, run): return repo/"data"/"records"/"smoke"/f"{run.id}.json"


@pytest.mark.parametrize("notebook, parameters, message", [
    ("paper/table2", ["-p", "scal", "smoke"], "unknown parameter 'scal'; this notebook has: scale, build"),
    ("paper/table2", ["-p", "scale", "huge"], "scale must be one of smoke, demo, cifar-cpu, cifar; got 'huge'"),
    ("paper/fig2", ["-p", "scale", "smoke", "-p", "build", "False"], "records are missing"),
    ("paper/fig3", ["-p", "scale", "smoke", "-p", "panels", "xyz"], "panels must be letters from a to f; got 'xyz'"),
    ("runs/train", ["-p", "scale", "smoke", "-p", "runs", "magic"], "no run has the id or name 'magic'"),
    ("runs/train", ["-p", "scale", "smoke", "-y", "{runs: 1}"], "runs must be str; got 1 (int)"),
], ids=["unknown-parameter", "unknown-scale", "missing-records", "unknown-panel", "unknown-run", "wrong-type"])
def test_bad_parameters_fail_by_name(repo, notebook, parameters, message):
    before = files(repo)
    done = papermill(repo, notebook, *parameters)
    assert done.returncode != 0 and message in done.stderr, done.stderr[-2000:]
    assert files(repo) == before


@pytest.mark.parametrize("arguments, message", [(["huge"], "invalid choice: 'huge'"), (["smoke", "--only", "fig9"], "invalid choice: 'fig9'")])
def test_bad_command_lines(repo, arguments, message):
    done = call(repo, "sparsedm.experiments", *arguments)
    assert done.returncode != 0 and message in done.stderr


def test_a_run_without_its_start_names_the_file_and_a_batch_goes_on(repo):
    "A failed run is named, keeps its error, and leaves the others running."
    done = papermill(repo, "runs/train", "-p", "scale", "smoke", "-p", "runs", "ours-uvit-2of4-s0 half-random-uvit-s0")
    assert done.returncode == 0, done.stderr[-2000:]   # the batch did its work; the record is what is missing
    ours = make_run("smoke", "ours")
    assert not record(repo, ours).exists() and "model.safetensors" in (repo/"runs"/"smoke"/ours.id/"error.txt").read_text()
    assert record(repo, make_run("smoke", "half-random")).is_file()
    out = (repo/"out.ipynb").read_text()
    assert f"{ours.id} failed: FileNotFoundError" in out and "1 of 2 runs have a record" in out


def test_killed_graph_then_finished_then_idle(repo):
    "SIGKILL in the middle, start again: the rest is made, nothing twice, and a third start does nothing."
    was_there = records(repo)
    graph = subprocess.Popen([sys.executable, "-m", "sparsedm.experiments", "smoke"], cwd=repo, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(records(repo) - was_there) < 5 and graph.poll() is None and time.monotonic() < deadline: time.sleep(.1)
    assert graph.poll() is None, "it ended before it could be killed"
    os.killpg(graph.pid, signal.SIGKILL); graph.wait()
    time.sleep(2)   # kernels notice that their parent is gone
    made = {p: p.read_bytes() for p in records(repo)}   # its seconds would differ if a run were done again
    assert 5 <= len(made) < len(runs_of("smoke")) and all(json.loads(b)["metrics"]["n_samples"] for b in made.values())   # whole or not there

    done = call(repo, "sparsedm.experiments", "smoke")
    assert done.returncode == 0, done.stderr[-3000:]
    after = files(repo)
    assert {p.name for p in after if "figures" in p.parts} == {f for name in FIGURES for f in files_of(name)}
    assert {p.stem for p in after if "records" in p.parts} == {r.id for r in runs_of("smoke")}
    assert {p: p.read_bytes() for p in made} == made   # finished runs were not repeated

    assert call(repo, "sparsedm.experiments", "smoke").returncode == 0
    assert files(repo) == after


def test_a_deleted_record_is_made_again_and_a_dry_run_changes_nothing(repo):
    "Twice the same one, with every figure up to date: its batch has been executed before."
    gone, others = record(repo, find_run("wanda-uvit-2of4-s0", "smoke")), records(repo)
    gone.unlink()
    before = {p: p.stat().st_mtime_ns for p in (repo/"runs").rglob("*.ipynb")}
    dry = call(repo, "sparsedm.experiments", "smoke", "--dry-run")
    assert dry.returncode == 0 and "1 records are missing" in dry.stdout and "batch" in dry.stdout, dry.stdout[-2000:]
    assert {p: p.stat().st_mtime_ns for p in (repo/"runs").rglob("*.ipynb")} == before and not gone.exists()
    for i in range(2):
        if i: gone.unlink()
        done = call(repo, "sparsedm.experiments", "smoke", "--only", "x_one_shot")
        assert done.returncode == 0, done.stderr[-3000:]
        assert records(repo) == others


def test_a_damaged_record_is_named_though_all_is_up_to_date(repo):
    bad = record(repo, find_run("wanda-uvit-2of4-s0", "smoke")); good, at = bad.read_bytes(), bad.stat()
    bad.write_bytes(good[:200]); os.utime(bad, ns=(at.st_atime_ns, at.st_mtime_ns))
    done = call(repo, "sparsedm.experiments", "smoke", "--only", "x_one_shot")
    bad.write_bytes(good); os.utime(bad, ns=(at.st_atime_ns, at.st_mtime_ns))
    assert done.returncode != 0 and f"{bad} is not valid JSON" in done.stderr


def test_paper_notebook_alone_makes_what_is_missing(repo):
    "Papermill on the notebook, with one record gone: that run is made again, and the table is written."
    gone = record(repo, make_run("smoke", "untrained"))
    others = {p: p.read_bytes() for p in files(repo) if p.suffix == ".json" and p != gone}
    gone.unlink()
    done = papermill(repo, "paper/table2", "-p", "scale", "smoke")
    assert done.returncode == 0, done.stderr[-3000:]
    assert gone.is_file() and {p: p.read_bytes() for p in others} == others


def test_two_processes_do_a_run_once(repo):
    "Both are asked for the same run; one does it, the other waits and reads its record."
    run = make_run("smoke", "ste"); record(repo, run).unlink()
    code = f"from sparsedm.experiments import *; import sparsedm.experiments as e; t = e.execute_training; e.execute_training = lambda *a: (print('worked'), t(*a))[1]; print(do_run(find_run({run.name!r}, 'smoke'))['id'])"
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=repo, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = "".join(p.communicate(timeout=300)[0] for p in both)
    assert said.count("worked") == 1 and said.count(run.id) == 2


def test_damaged_start_and_records_are_named_and_results_stay(repo):
    "Through the whole graph: the run that cannot be done is named, with the reason, and so is the record that the figure lacks."
    model = repo/"runs"/"smoke"/make_run("smoke", "dense").id/"model.safetensors"
    run = find_run("fixed-uvit-2of4-s0", "smoke"); gone = record(repo, run); kept = gone.read_bytes(); gone.unlink()
    good, before = model.read_bytes(), files(repo)
    model.write_bytes(good[:1000])
    done = call(repo, "sparsedm.experiments", "smoke", "--only", "x_one_shot", "fig4")
    model.write_bytes(good)
    assert done.returncode != 0 and f"1 of 1 runs failed" in done.stderr and f"{run.id}: ValueError: {model} is damaged" in done.stderr, done.stderr[-3000:]
    assert f"1 of {len(runs_of('smoke', 'x_one_shot'))} records are missing, such as {run.id} (it failed: ValueError: {model} is damaged" in done.stderr   # said by the figure
    assert files(repo) == before   # fig4 does not need that run, and was up to date

    broken = json.loads(kept); broken["metrics"]["fid"] = None; gone.write_text(json.dumps(broken))
    done = papermill(repo, "paper/x_one_shot", "-p", "scale", "smoke")
    assert done.returncode != 0 and f"{gone}: not finite: metrics.fid" in done.stderr
    gone.write_bytes(kept)
