"""The driver for one GPU, at smoke scale on the CPU: budget, resumption, failure, damaged files."""
import shutil, time
from pathlib import Path
import pytest, torch
from unittest.mock import patch
import sparsedm.experiments as experiments
from sparsedm.experiments import TimeIsUp, do_run, drive, load_start, make_run, model_path, record_path, run_folder

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def repo(tmp_path, monkeypatch):
    "An empty checkout."
    for name in ("Snakefile", "settings.ini"): shutil.copy(ROOT/name, tmp_path/name)
    monkeypatch.setenv("SPARSEDM_ROOT", str(tmp_path))
    return tmp_path


def test_a_run_stopped_by_the_clock_is_resumed(repo):
    run = make_run("smoke", "dense")
    with pytest.raises(TimeIsUp): do_run(run, deadline=time.monotonic() - 1)
    assert not record_path(run).exists() and not (run_folder(run)/"error.txt").exists()
    assert do_run(run)["id"] == run.id


def test_no_time_no_runs_then_the_rest_then_nothing(repo, capsys):
    left = drive("smoke", 1e-6, ["fig4"])
    assert left == [make_run("smoke", "ours")] and "0 of 1 runs of scale smoke have a record; next: ours-uvit-2of4-s0" in capsys.readouterr().out
    assert drive("smoke", 5, ["fig4"]) == [] and model_path(make_run("smoke", "dense")).is_file()   # its start was made first
    written = record_path(make_run("smoke", "ours")).stat().st_mtime_ns
    assert drive("smoke", 5, ["fig4"]) == [] and record_path(make_run("smoke", "ours")).stat().st_mtime_ns == written


def test_a_failing_run_leaves_the_others(repo, capsys):
    do_run(make_run("smoke", "dense"))
    real = experiments.execute_evaluation
    def fails(run, model):
        if run.method == "asp": raise RuntimeError("no luck")
        return real(run, model)
    with patch.object(experiments, "execute_evaluation", fails), patch.object(experiments, "figures_of", lambda scale: ("x_one_shot",)):
        left = drive("smoke", 5, ["x_one_shot"])
    assert [r.method for r in left] == ["asp"] and "1 failed; next: asp-uvit-2of4-s0" in capsys.readouterr().out
    assert "no luck" in (run_folder(left[0])/"error.txt").read_text()


def test_a_changed_byte_in_a_model_is_named_with_its_checksum(repo):
    run = make_run("smoke", "dense"); do_run(run)
    raw = bytearray(model_path(run).read_bytes()); raw[-1000] ^= 1; model_path(run).write_bytes(raw)
    with pytest.raises(ValueError, match="model.safetensors is damaged: its checksum is [0-9a-f]{12}…, it was written with [0-9a-f]{12}…"): load_start(make_run("smoke", "ours"))


def test_one_start_for_all_seeds_at_scale_cifar():
    starts = {make_run("cifar", m, s).start for m in ("ours", "dense-ft") for s in (0, 1, 2)}
    assert starts == {make_run("cifar", "dense", 0).id} and make_run("cifar", "dense", 1).start in starts and not make_run("cifar", "dense", 1).steps
    with pytest.raises(ValueError, match="scale cifar-cpu has no half-size network"): make_run("cifar-cpu", "half")


def test_sampling_batches_halve_when_memory_is_short(capsys):
    tried = []
    def draw(model, batch):
        tried.append(batch)
        if batch > 300: raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.zeros(1)
    with patch("torch.cuda.empty_cache", lambda: None), patch("torch.nn.Module.to", lambda self, *a: self):
        experiments._on_gpu(torch.nn.Linear(1, 1), draw, 900)
    assert tried == [900, 900, 500, 250] and "out of GPU memory: sampling 250 images at a time" in capsys.readouterr().out
