"""The road from run to figure, at smoke scale, in a copy of the repository."""
import json, os, shutil, signal, subprocess, sys, time
from pathlib import Path
import pytest

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


@pytest.mark.parametrize("notebook, parameters, message", [
    ("paper/table2", ["-p", "scal", "smoke"], "unknown parameter 'scal'; this notebook has: scale, build"),
    ("paper/table2", ["-p", "scale", "huge"], "scale must be one of smoke, demo; got 'huge'"),
    ("paper/fig2", ["-p", "scale", "smoke", "-p", "build", "False"], "records are missing"),
    ("runs/train", ["-p", "scale", "smoke", "-p", "method", "magic"], "method must be one of dense"),
    ("runs/train", ["-p", "scale", "smoke", "-r", "seed", "1"], "seed must be int; got '1' (str)"),
    ("runs/train", ["-p", "scale", "smoke", "-p", "method", "ours"], "model.safetensors"),   # its dense start is not there
], ids=["unknown-parameter", "unknown-scale", "missing-records", "unknown-method", "wrong-type", "missing-start"])
def test_bad_parameters_fail_by_name(repo, notebook, parameters, message):
    before = files(repo)
    done = papermill(repo, notebook, *parameters)
    assert done.returncode != 0 and message in done.stderr, done.stderr[-2000:]
    assert files(repo) == before


def test_unknown_scale_on_the_command_line(repo):
    done = call(repo, "sparsedm.experiments", "huge")
    assert done.returncode != 0 and "invalid choice: 'huge'" in done.stderr


def test_killed_graph_then_finished_then_idle(repo):
    "SIGKILL in the middle, start again: the rest is made, nothing twice, and a third start does nothing."
    graph = subprocess.Popen([sys.executable, "-m", "sparsedm.experiments", "smoke"], cwd=repo, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (made := files(repo)) and graph.poll() is None and time.monotonic() < deadline: time.sleep(.1)
    assert len(made) == 1 and graph.poll() is None, "no record appeared"   # the dense model's: all others start from it
    time.sleep(8)   # its job ends, the next ones start
    os.killpg(graph.pid, signal.SIGKILL); graph.wait()
    time.sleep(2)   # kernels notice that their parent is gone
    assert all(json.loads(p.read_text())["metrics"]["n_samples"] for p in files(repo))   # whole or not there
    made = {p: p.read_bytes() for p in made}   # its seconds would differ if it were run again

    done = call(repo, "sparsedm.experiments", "smoke")
    assert done.returncode == 0, done.stderr[-3000:]
    after = files(repo)
    figures = {p.name for p in after if "figures" in p.parts}
    assert figures == {"table2.md", "table2.csv", "table2.png", "fig2.png", "fig2.pdf", "fig4.png", "fig4.pdf"}
    assert {p: p.read_bytes() for p in made} == made   # the finished run was not repeated

    assert call(repo, "sparsedm.experiments", "smoke").returncode == 0
    assert files(repo) == after


def test_paper_notebook_alone_makes_what_is_missing(repo):
    "Papermill on the notebook, with one record gone: that run is made again, and the table is written."
    record = sorted((repo/"data"/"records"/"smoke").glob("untrained*.json"))[0]
    others = {p: p.read_bytes() for p in files(repo) if p.suffix == ".json" and p != record}
    record.unlink()
    done = papermill(repo, "paper/table2", "-p", "scale", "smoke")
    assert done.returncode == 0, done.stderr[-3000:]
    assert record.is_file() and {p: p.read_bytes() for p in others} == others


def test_a_damaged_start_is_named_and_results_stay(repo):
    models = sorted((repo/"runs"/"smoke").glob("dense-s0-*/model.safetensors"))
    good, before = models[0].read_bytes(), files(repo)
    models[0].write_bytes(good[:1000])
    done = papermill(repo, "runs/train", "-p", "scale", "smoke", "-p", "method", "fixed")
    models[0].write_bytes(good)
    assert done.returncode != 0 and f"{models[0]} is damaged" in done.stderr, done.stderr[-2000:]
    assert files(repo) == before
