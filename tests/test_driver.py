"""The driver for one GPU, at smoke scale on the CPU: budget, resumption, failure, damaged files."""
import shutil, time
from pathlib import Path
import pytest, torch
from accelerate.state import AcceleratorState
from unittest.mock import patch
import sparsedm.experiments as experiments
from sparsedm import training
from sparsedm.experiments import TimeIsUp, do_run, drive, load_start, make_run, model_path, record_path, run_folder

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def repo(tmp_path, monkeypatch):
    "An empty checkout."
    for name in ("Snakefile", "settings.ini"): shutil.copy(ROOT/name, tmp_path/name)
    monkeypatch.setenv("SPARSEDM_ROOT", str(tmp_path))
    return tmp_path


def counted(steps):
    "Appends to `steps` at each optimizer step."
    real = training._backward
    return patch.object(training, "_backward", lambda *a: (steps.append(1), real(*a))[1])


def test_a_run_stopped_by_the_clock_or_while_it_is_measured_goes_on_where_it_was(repo):
    do_run(make_run("smoke", "dense")); run, steps = make_run("smoke", "ste"), []
    with counted(steps):
        with patch("time.monotonic", lambda: 1e18 if len(steps) >= 3 else 0.), pytest.raises(TimeIsUp): do_run(run, deadline=10.)
        assert len(steps) == 3 and not record_path(run).exists() and not (run_folder(run)/"error.txt").exists()
        with patch.object(experiments, "execute_evaluation", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt): do_run(run)
        broken = do_run(run)
        assert len(steps) == run.steps and not (run_folder(run)/"checkpoint.safetensors").exists()
    record_path(run).unlink(); shutil.rmtree(run_folder(run)); whole = do_run(run)
    assert whole["flips"] and all(broken[k] == whole[k] for k in ("flips", "curve", "loss", "metrics"))


def test_a_run_is_not_resumed_in_another_precision(repo, monkeypatch):
    run, steps = make_run("smoke", "dense"), []
    with counted(steps), patch("time.monotonic", lambda: 1e18 if len(steps) >= 3 else 0.), pytest.raises(TimeIsUp): do_run(run, deadline=10.)
    AcceleratorState._reset_state(True); monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")   # as a new process
    with pytest.raises(ValueError, match="belongs to another run: config precision was 'no', now 'bf16'"): do_run(run)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "half")
    with pytest.raises(ValueError, match="ACCELERATE_MIXED_PRECISION must be no or bf16 here; got 'half'"): do_run(run)
    AcceleratorState._reset_state(True)


def test_each_seed_is_compared_with_the_dense_images_of_its_own_noise(repo):
    settings = {k: list(v) for k, v in experiments._SETTINGS.items()}; settings["one_start"][0], settings["seeds"][0] = True, (0, 1)
    with patch.object(experiments, "_SETTINGS", settings):
        dense = make_run("smoke", "dense"); do_run(dense)
        with patch.object(experiments, "find_run", lambda *a: dense):
            for seed in (0, 1): assert do_run(make_run("smoke", "dense-ft", seed, steps=1, lr=1e-12))["metrics"]["dense_mse"] < 1e-6   # the dense model itself


def test_damaged_caches_are_made_again(repo):
    run = make_run("smoke", "ste"); do_run(make_run("smoke", "dense")); first = do_run(run)
    caches = [*run_folder(run).parent.glob("floor-*.json"), *run_folder(run).parent.glob("dense-*/first-*.safetensors")]; assert len(caches) == 2
    for path in caches: path.write_bytes(path.read_bytes()[:5])
    record_path(run).unlink(); shutil.rmtree(run_folder(run))
    assert do_run(run)["metrics"] == first["metrics"]


def test_a_start_that_is_not_trained_is_named(repo):
    with pytest.raises(FileNotFoundError, match="starts from dense-uvit-s0, which is not trained yet .*model.safetensors.: run it first, or all of them with"): do_run(make_run("smoke", "ours"))


def test_no_time_no_runs_then_the_rest_then_nothing(repo, capsys):
    left = drive("smoke", 1e-6, ["fig4"])
    assert left == [make_run("smoke", "ours")] and "0 of 1 runs of scale smoke have a record; next: dense-uvit-s0" in capsys.readouterr().out
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
    assert tried == [900, 450, 225] and "out of GPU memory: sampling 225 images at a time" in capsys.readouterr().out
