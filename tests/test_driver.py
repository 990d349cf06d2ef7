"""The driver for one GPU, at smoke scale on the CPU: budget, resumption, failure, damaged files."""
import shutil
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch
import pytest, torch
from accelerate.state import AcceleratorState
from sparsedm import execute, training
from sparsedm.declare import SCALES
from sparsedm.execute import TimeIsUp, do_run, draw, load_start
from sparsedm.experiments import drive
from sparsedm.files import locked
from sparsedm.records import model_path, record_path, run_folder
from sparsedm.run import make_run

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A checkout in which the dense model of scale smoke is there, and no record but its own."
    folder = tmp_path_factory.mktemp("trained")
    for name in ("Snakefile", "settings.ini"): shutil.copy(ROOT/name, folder/name)
    shutil.copytree(ROOT/"data"/"extractors", folder/"data"/"extractors")
    with pytest.MonkeyPatch.context() as m:
        m.setenv("SPARSEDM_ROOT", str(folder))
        do_run(make_run("smoke", "dense"))
    return folder


@pytest.fixture
def repo(trained, tmp_path, monkeypatch):
    "A copy of it."
    copy = tmp_path/"repo"
    shutil.copytree(trained, copy)
    monkeypatch.setenv("SPARSEDM_ROOT", str(copy))
    return copy


def counted(steps):
    "Appends to `steps` at each optimizer step."
    real = training.backward
    def backward(*args):
        steps.append(1)
        return real(*args)
    return patch.object(training, "backward", backward)


def stopped_after(steps, n):
    "A clock that strikes after n steps."
    return patch("time.monotonic", lambda: 1e18 if len(steps) >= n else 0.)


def test_a_run_stopped_by_the_clock_or_while_it_is_measured_goes_on_where_it_was(repo):
    run, steps = make_run("smoke", "ste"), []
    with counted(steps):
        with stopped_after(steps, 3), pytest.raises(TimeIsUp): do_run(run, deadline=10.)
        assert len(steps) == 3 and not record_path(run).exists() and not (run_folder(run)/"error.txt").exists()
        measuring = patch.object(execute, "execute_evaluation", side_effect=KeyboardInterrupt)
        with measuring, pytest.raises(KeyboardInterrupt): do_run(run)
        broken = do_run(run)
        assert len(steps) == run.steps and not (run_folder(run)/"checkpoint.safetensors").exists()
    record_path(run).unlink()
    shutil.rmtree(run_folder(run))
    whole = do_run(run)
    assert whole["flips"] and all(broken[k] == whole[k] for k in ("flips", "curve", "loss", "metrics"))


def test_a_run_is_not_resumed_in_another_precision(repo, monkeypatch):
    run, steps = make_run("smoke", "dense-ft"), []
    with counted(steps), stopped_after(steps, 3), pytest.raises(TimeIsUp): do_run(run, deadline=10.)
    AcceleratorState._reset_state(True)   # as a new process
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ValueError, match="belongs to another run: config precision was 'no', now 'bf16'"): do_run(run)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "half")
    with pytest.raises(ValueError, match="ACCELERATE_MIXED_PRECISION must be no or bf16 here; got 'half'"): do_run(run)
    AcceleratorState._reset_state(True)


def test_each_seed_is_compared_with_the_dense_images_of_its_own_noise(repo):
    one_start = replace(SCALES["smoke"], seeds=(0, 1), starts=1)
    with patch.dict(SCALES, smoke=one_start):
        for seed in (0, 1):   # the dense model itself, but for one step of no size
            run = make_run("smoke", "dense-ft", seed, steps=1, lr=1e-12)
            assert run.start == make_run("smoke", "dense", 0).id and do_run(run)["metrics"]["dense_mse"] < 1e-6


def test_a_start_that_is_gone_is_trained_again_and_a_run_at_work_is_not_begun_twice(repo):
    dense, ours = make_run("smoke", "dense"), make_run("smoke", "ours")
    do_run(ours)
    for run in (dense, ours): model_path(run).unlink()
    do_run(ours)
    assert not model_path(ours).exists()      # its record is there, and nothing starts from it
    with locked(run_folder(dense)/".lock"), pytest.raises(BlockingIOError): do_run(dense, wait=False)
    do_run(dense)
    assert model_path(dense).is_file()


def test_damaged_caches_are_made_again(repo):
    run = make_run("smoke", "ste")
    first = do_run(run)
    folder = run_folder(run).parent
    caches = [*folder.glob("floor-*.json"), *folder.glob("dense-*/first-*.safetensors")]
    assert len(caches) == 2
    for path in caches: path.write_bytes(path.read_bytes()[:5])
    record_path(run).unlink()
    shutil.rmtree(run_folder(run))
    assert do_run(run)["metrics"] == first["metrics"]


def test_a_start_that_is_not_trained_is_named(repo):
    model_path(make_run("smoke", "dense")).unlink()
    named = "starts from dense-uvit-s0, which is not trained yet .*model.safetensors.: run it first, or all of them with"
    with pytest.raises(FileNotFoundError, match=named): do_run(make_run("smoke", "ours"))


def test_no_time_no_runs_then_the_rest_then_nothing(repo, capsys):
    dense, ours = make_run("smoke", "dense"), make_run("smoke", "ours")
    shutil.rmtree(run_folder(dense))
    record_path(dense).unlink()
    assert drive("smoke", 1e-6, ["fig4"]) == [ours]
    assert "0 of 1 runs of scale smoke have a record; next: dense-uvit-s0" in capsys.readouterr().out
    assert drive("smoke", 5, ["fig4"]) == [] and model_path(dense).is_file()   # its start was made first
    written = record_path(ours).stat().st_mtime_ns
    assert drive("smoke", 5, ["fig4"]) == [] and record_path(ours).stat().st_mtime_ns == written


def test_a_failing_run_leaves_the_others(repo, capsys):
    real = execute.execute_evaluation
    def fails(run, model):
        if run.method == "asp": raise RuntimeError("no luck")
        return real(run, model)
    with patch.object(execute, "execute_evaluation", fails): left = drive("smoke", 5, ["table1"])
    assert [r.method for r in left] == ["asp"] and "1 failed; next: asp-uvit-2of4-s0" in capsys.readouterr().out
    assert "no luck" in (run_folder(left[0])/"error.txt").read_text()


def test_a_changed_byte_in_a_model_is_named_with_its_checksum(repo):
    path = model_path(make_run("smoke", "dense"))
    raw = bytearray(path.read_bytes())
    raw[-1000] ^= 1
    path.write_bytes(raw)
    named = "model.safetensors is damaged: its checksum is [0-9a-f]{12}…, it was written with [0-9a-f]{12}…"
    with pytest.raises(ValueError, match=named): load_start(make_run("smoke", "ours"))


def test_one_start_for_all_seeds_at_scale_cifar():
    dense, second = make_run("cifar", "dense", 0), make_run("cifar", "dense", 1)
    assert {make_run("cifar", m, s).start for m in ("ours", "dense-ft") for s in (0, 1, 2)} == {dense.id}
    assert (second.start, second.steps) == (dense.id, 0)
    with pytest.raises(ValueError, match="evidence-fashion has no half network of uvit"): make_run("evidence-fashion", "half")


def test_sampling_batches_halve_when_memory_is_short(capsys):
    "With a GPU acted: the batch is halved until it fits."
    tried = []
    def short_of_memory(net, seeds, shape, batch_size, **how):
        tried.append(batch_size)
        if batch_size > 300: raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.zeros(len(seeds), *shape)
    acted = dict(device_name=lambda: "cuda", sample=short_of_memory, Replay=lambda net, batch, compile: net)
    to_cpu = patch("torch.nn.Module.to", lambda self, *a: self)
    with patch.multiple(execute, **acted), to_cpu: draw(torch.nn.Linear(1, 1), make_run("smoke", "ours"), 900)
    assert tried == [900, 450, 225] and "out of GPU memory: sampling goes in parts of 225" in capsys.readouterr().out
