"""The road from run to figure, at smoke scale, in a copy of the repository."""
import json, os, shutil, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import papermill, pytest
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync
from papermill.exceptions import PapermillExecutionError
from sparsedm.files import write_sealed
from sparsedm.graph import make_plan
from sparsedm.run import find_run, make_run, runs_of, tables_of

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    "A fresh copy in a folder with a blank in its name: notebooks, graph and small assets, no runs, no records."
    copy = tmp_path_factory.mktemp("a repo")
    left_out = shutil.ignore_patterns("records", "cifar10", "hub", ".ipynb_checkpoints")
    for name in ("nbs", "data"): shutil.copytree(ROOT/name, copy/name, ignore=left_out)
    for name in ("Snakefile", "settings.ini"): shutil.copy(ROOT/name, copy/name)
    return copy


@pytest.fixture(scope="module")
def finished(repo):
    "The copy with everything made, by the test that kills a graph or by this."
    done = call(repo, "sparsedm.experiments", "smoke")
    assert done.returncode == 0, done.stderr[-3000:]
    return repo


@pytest.fixture(scope="module")
def kernel(repo):
    "One kernel for all notebooks that these tests execute: it imports PyTorch once."
    kernels = AsyncKernelManager(kernel_name="python3")
    run_sync(kernels.start_kernel)(cwd=str(repo), env={**os.environ, "SPARSEDM_ROOT": str(repo)})
    yield kernels
    run_sync(kernels.shutdown_kernel)(now=True)


def execute(repo, kernel, notebook, **parameters):
    "Run a notebook in the shared kernel; the executed copy."
    client = kernel.blocking_client()
    client.start_channels()
    client.wait_for_ready()
    client.execute("%reset -f", silent=True, reply=True)
    client.stop_channels()
    out = repo/"out.ipynb"
    out.unlink(missing_ok=True)
    papermill.execute_notebook(repo/"nbs"/f"{notebook}.ipynb", out, parameters, progress_bar=False, km=kernel)
    return out.read_text()


def call(repo, *args):
    environment = {**os.environ, "SPARSEDM_ROOT": str(repo)}
    command = [sys.executable, "-m", *map(str, args)]
    return subprocess.run(command, cwd=repo, capture_output=True, text=True, env=environment)


def files(repo):
    folders = ("data/records", "figures")
    return {p: p.stat().st_mtime_ns for d in folders for p in (repo/d).rglob("*") if p.is_file()}


def records(repo): return {p for p in files(repo) if "records" in p.parts}
def record(repo, run): return repo/"data"/"records"/"smoke"/f"{run.id}.json"


@pytest.mark.parametrize("notebook, parameters, message", [
    ("paper/sparsedm/table2", dict(scal="smoke"), "unknown parameter 'scal'; this notebook has: scale, build"),
    ("paper/sparsedm/table2", dict(scale="huge"), "unknown scale 'huge'; known: smoke, demo, evidence-digits"),
    ("paper/sparsedm/fig2", dict(scale="smoke"), "records are missing"),
    ("paper/sparsedm/fig3", dict(scale="smoke", panels="xyz"), "panels must be letters from a to f; got 'xyz'"),
    ("runs/train", dict(scale="smoke", runs="magic"), "no run has the id or name 'magic'"),
    ("runs/train", dict(scale="smoke", runs=1), "runs must be str; got 1 (int)"),
], ids=["unknown-parameter", "unknown-scale", "missing-records", "unknown-panel", "unknown-run", "wrong-type"])
def test_bad_parameters_fail_by_name(repo, kernel, notebook, parameters, message):
    before = files(repo)
    with pytest.raises(PapermillExecutionError) as e: execute(repo, kernel, notebook, **parameters)
    assert message in e.value.evalue
    assert files(repo) == before


def test_a_run_without_its_start_names_the_file_and_a_batch_goes_on(repo, kernel):
    "A failed run is named, keeps its error, and leaves the others running."
    ours, untrained = make_run("smoke", "ours"), make_run("smoke", "half-random")
    with pytest.raises(PapermillExecutionError) as stopped:   # by hand; a graph looks at the records itself
        execute(repo, kernel, "runs/train", scale="smoke", runs=f"{ours.id} {untrained.id}")
    assert f"1 of 2 runs failed; {ours.id} failed: {ours.id} starts from dense-uvit-s0" in stopped.value.evalue
    error = repo/"runs"/"smoke"/ours.id/"error.txt"
    assert not record(repo, ours).exists() and "model.safetensors" in error.read_text()
    assert record(repo, untrained).is_file()   # the batch did its work; the record is what is missing


def test_killed_graph_then_finished_then_idle(repo):
    "SIGKILL in the middle, start again: the rest is made, nothing twice, and a third start does nothing."
    was_there = records(repo)
    command = [sys.executable, "-m", "sparsedm.experiments", "smoke"]
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    graph = subprocess.Popen(command, cwd=repo, start_new_session=True, env={**os.environ, "SPARSEDM_ROOT": str(repo)}, **quiet)
    deadline = time.monotonic() + 300
    while len(records(repo) - was_there) < 5 and graph.poll() is None and time.monotonic() < deadline: time.sleep(.1)
    assert graph.poll() is None, "it ended before it could be killed"
    os.killpg(graph.pid, signal.SIGKILL)
    graph.wait()
    time.sleep(2)   # kernels notice that their parent is gone
    made = {p: p.read_bytes() for p in records(repo)}   # its seconds would differ if a run were done again
    assert 5 <= len(made) < len(runs_of("smoke"))
    assert all(json.loads(b)["metrics"]["n_samples"] for b in made.values())   # whole or not there

    done = call(repo, "sparsedm.experiments", "smoke")
    assert done.returncode == 0, done.stderr[-3000:]
    after = files(repo)
    assert {p.name for p in after if "figures" in p.parts} == {f for t in tables_of("smoke") for f in t.names}
    assert {p.stem for p in after if "records" in p.parts} == {r.id for r in runs_of("smoke")}
    assert {p: p.read_bytes() for p in made} == made   # finished runs were not repeated
    assert "tables and figures in figures/smoke" in done.stdout and "claims: " in done.stdout

    assert call(repo, "sparsedm.files", "smoke").returncode == 0   # what `make reproduce` asks first
    assert "nothing to do: scale smoke is up to date" in call(repo, "sparsedm.experiments", "smoke").stdout
    assert files(repo) == after


def test_a_record_that_was_written_while_the_clock_was_behind_is_drawn(finished):
    path = record(finished, runs_of("smoke", "table2")[0])
    was = path.stat()
    os.utime(path, (1e9, 1e9))
    done = call(finished, "sparsedm.experiments", "smoke", "--only", "table2", "--dry-run")
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert "draw table2: its notebook or a record is another" in done.stdout, done.stdout + done.stderr
    again = call(finished, "sparsedm.experiments", "smoke", "--only", "table2", "--dry-run")
    assert "nothing to do" in again.stdout


@pytest.mark.usefixtures("finished")
def test_a_deleted_record_is_made_again_and_a_dry_run_changes_nothing(repo):
    "Twice the same one, with every figure up to date: its batch has been executed before."
    gone, others = record(repo, find_run("wanda-uvit-2of4-s0", "smoke")), records(repo)
    gone.unlink()
    assert call(repo, "sparsedm.files", "smoke").returncode != 0
    before = {p: p.stat().st_mtime_ns for p in (repo/"runs").rglob("*.ipynb")}
    dry = call(repo, "sparsedm.experiments", "smoke", "--dry-run")
    assert dry.returncode == 0 and "1 records are missing, such as wanda-uvit-2of4-s0" in dry.stdout
    assert "- batch " in dry.stdout and "- draw x_one_shot: 1 of 11 records are missing" in dry.stdout
    assert {p: p.stat().st_mtime_ns for p in (repo/"runs").rglob("*.ipynb")} == before and not gone.exists()
    for again in range(2):
        if again: gone.unlink()
        done = call(repo, "sparsedm.experiments", "smoke", "--only", "x_one_shot")
        assert done.returncode == 0, done.stderr[-3000:]
        assert records(repo) == others


@pytest.mark.usefixtures("finished")
def test_a_damaged_record_is_named_though_all_is_up_to_date(repo):
    bad = record(repo, find_run("wanda-uvit-2of4-s0", "smoke"))
    good, at = bad.read_bytes(), bad.stat()
    bad.write_bytes(good[:200])
    os.utime(bad, ns=(at.st_atime_ns, at.st_mtime_ns))
    done = call(repo, "sparsedm.experiments", "smoke", "--only", "x_one_shot")
    bad.write_bytes(good)
    os.utime(bad, ns=(at.st_atime_ns, at.st_mtime_ns))
    assert done.returncode != 0 and f"{bad} is not valid JSON" in done.stderr


@pytest.mark.usefixtures("finished")
def test_paper_notebook_alone_makes_what_is_missing_when_asked(repo, kernel):
    "One record gone: the notebook says what it would take; with build=True that run is made again."
    gone = record(repo, make_run("smoke", "untrained"))
    others = {p: p.read_bytes() for p in files(repo) if p.suffix == ".json" and p != gone}
    gone.unlink()
    with pytest.raises(PapermillExecutionError, match="with `build = True` in its first code cell: about 1 minutes"):
        execute(repo, kernel, "paper/sparsedm/table2", scale="smoke")
    execute(repo, kernel, "paper/sparsedm/table2", scale="smoke", build=True)
    assert gone.is_file() and {p: p.read_bytes() for p in others} == others


@pytest.mark.usefixtures("finished")
def test_a_run_changed_by_hand_is_planned_executed_and_read(repo, kernel):
    "It is in no table; its job carries it whole."
    run = replace(make_run("smoke", "ste"), lr=5e-4)
    job = repo/"runs"/"smoke"/"by-hand.json"
    with pytest.MonkeyPatch.context() as m:
        m.setenv("SPARSEDM_ROOT", str(repo))
        plan = make_plan([run], 1)
    write_sealed(job, dict(scale="smoke", batches=plan, drawing=[]))
    out = execute(repo, kernel, "runs/train", scale="smoke", runs=run.id, job="runs/smoke/by-hand.json")
    assert "1 of 1 runs have a record" in out and json.loads(record(repo, run).read_text())["run"]["lr"] == 5e-4
    record(repo, run).unlink()


@pytest.mark.usefixtures("finished")
def test_two_processes_do_a_run_once(repo):
    "Both are asked for the same run; one does it, the other waits and reads its record."
    run = find_run("wanda-ft-uvit-2of4-s0", "smoke")
    record(repo, run).unlink()
    code = f"""
import sparsedm.execute as e
from sparsedm.run import find_run
train = e.execute_training
e.execute_training = lambda *args: (print('worked'), train(*args))[1]
print(e.do_run(find_run({run.name!r}, 'smoke'))['id'])
"""
    start = dict(cwd=repo, stdout=subprocess.PIPE, text=True)
    both = [subprocess.Popen([sys.executable, "-c", code], **start) for _ in range(2)]
    said = "".join(p.communicate(timeout=300)[0] for p in both)
    assert said.count("worked") == 1 and said.count(run.id) == 2


@pytest.mark.usefixtures("finished")
def test_damaged_start_and_records_are_named_and_results_stay(repo, kernel):
    "The run that cannot be done is named, with the reason, and so is the record that the figure lacks."
    model = repo/"runs"/"smoke"/make_run("smoke", "dense").id/"model.safetensors"
    run = find_run("wanda-ft-uvit-2of4-s0", "smoke")
    gone = record(repo, run)
    kept, good = gone.read_bytes(), model.read_bytes()
    gone.unlink()
    before = files(repo)
    model.write_bytes(good[:1000])
    done = call(repo, "sparsedm.experiments", "smoke", "--only", "x_one_shot", "fig4")
    model.write_bytes(good)
    assert done.returncode != 0 and "1 of 1 runs failed" in done.stderr, done.stderr[-3000:]
    assert f"{run.id}: ValueError: {model} is damaged" in done.stderr
    lacking = f"1 of {len(runs_of('smoke', 'x_one_shot'))} records are missing, such as {run.id} (it failed: ValueError"
    assert lacking in done.stderr   # said by the figure
    assert files(repo) == before    # fig4 does not need that run, and was up to date

    broken = json.loads(kept)
    broken["metrics"]["fid"] = None
    del broken["checksum"]
    write_sealed(gone, broken)
    with pytest.raises(PapermillExecutionError) as e: execute(repo, kernel, "paper/sparsedm/x_one_shot", scale="smoke")
    assert f"{gone}: not finite: metrics.fid" in e.value.evalue
    gone.write_bytes(kept)


def test_the_second_paper_at_toy_size(repo):
    timed = Path("data")/"records"/"speed"/"scratch"
    shutil.copytree(ROOT/timed, repo/timed)   # s2s_seconds draws what the repository brings
    done = call(repo, "sparsedm.experiments", "s2s-smoke")
    assert done.returncode == 0, done.stderr[-3000:]
    drawn = {p.name for p in (repo/"figures"/"s2s-smoke").iterdir()}
    assert drawn == {f for t in tables_of("s2s-smoke") for f in t.names}
