"""Training: across processes, and minute by minute."""
import copy, sys, time
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch
import psutil, pytest, torch
from sparsedm import training
from sparsedm.checkpoints import load_tensors
from sparsedm.data import load_images
from sparsedm.diffusion import noise_loss
from sparsedm.dynamic import Topology
from sparsedm.execute import do_run
from sparsedm.models import build_model
from sparsedm.processes import launch
from sparsedm.progressive import SwitchPatterns
from sparsedm.records import run_folder
from sparsedm.run import make_run
from sparsedm.ste import add_masked_decay_, bake_, dense_weight, sparsify_
from sparsedm.training import TrainConfig, train
from sparsedm.transfer import transfer_loss

ROOT = Path(__file__).resolve().parent.parent


TOGETHER = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from accelerate.utils import broadcast_object_list
from sparsedm.data import load_images
from sparsedm.models import build_model
from sparsedm.signals import Stopped
from sparsedm.ste import sparsify_
from sparsedm.training import TrainConfig, accelerator, noise_loss, train

class Asked:
    "A signal that reaches one of the processes, a step before the others could know."
    def __init__(self, rank, at): self.rank, self.at = rank, at
    def after_step(self, step):
        if step == self.at and accelerator().process_index == self.rank: raise Stopped(f"after step {step}")

def small(*args, **kwargs):
    "The loss, on a device whose memory is full with more than 4 images, if it is the second's."
    if accelerator().process_index and len(args[1]) > 4: raise torch.OutOfMemoryError("full")
    sizes.append(len(args[1]))
    return noise_loss(*args, **kwargs)

def student():
    torch.manual_seed(0)
    return sparsify_(build_model("smoke"), "2:4", "improved")

def learn(name, **settings):
    ema, log = train(student(), digits, cfg, folder/name, log_every=3, progress=False, **settings)
    if accelerator().is_main_process: torch.save((ema.state_dict(), log.loss.tolist()), folder/f"{name}.pt")

folder, digits, sizes = Path(sys.argv[1]), load_images("digits"), []
cfg = TrainConfig(8, batch_size=24, lr=1e-3, warmup=1, ema=.5)
"""

WORK = TOGETHER + """
learn("plain")
learn("small", loss_fn=small)
assert set(sizes[1:]) == {3}, sizes   # in both, after a first look at what fits into each
learn("sharded", shard=True)
for how in (dict(), dict(shard=True)):
    name = f"stopped{len(how)}"
    try: learn(name, hooks=[Asked(1, 4)], **how)
    except Stopped: pass
    else: raise AssertionError("process 1 stopped, and process 0 did not")
"""


@pytest.fixture
def on_cpus(monkeypatch):
    "Processes of a launch, as those of several GPUs."
    for name, value in dict(ACCELERATE_USE_CPU="true", PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1").items():
        monkeypatch.setenv(name, value)


def learned(folder, name): return torch.load(folder/f"{name}.pt", weights_only=True)


def test_two_processes_learn_what_one_learns_whole_or_shared_out(tmp_path, on_cpus):
    script = tmp_path/"work.py"
    script.write_text(WORK)
    launch([str(script), str(tmp_path)], 2, tmp_path/"said.txt")
    namespace = {}
    with patch.object(sys, "argv", ["", str(tmp_path)]): exec(TOGETHER, namespace)
    namespace["learn"]("alone")
    alone, losses = learned(tmp_path, "alone")
    for name in ("plain", "small", "sharded"):
        other, curve = learned(tmp_path, name)
        torch.testing.assert_close(curve, losses, rtol=1e-5, atol=1e-6)
        for k in alone: torch.testing.assert_close(other[k], alone[k], rtol=1e-4, atol=1e-5, msg=lambda m: f"{name} {k}: {m}")
    for name in ("stopped0", "stopped1"):   # both met at the next look at the loss; one process goes on to the same end
        assert load_tensors(tmp_path/name/"checkpoint.safetensors")[1]["step"] == 6
        namespace["learn"](name)
        for k, v in learned(tmp_path, name)[0].items(): torch.testing.assert_close(v, alone[k], rtol=1e-4, atol=1e-5)


LONG = TOGETHER + """
import time
class Slow:
    def after_step(self, step): time.sleep(.2)

learn("long", save_every=2, hooks=[Slow()])
"""

def test_a_killed_process_ends_all_and_the_next_start_goes_on(tmp_path, on_cpus):
    script, log, killed = tmp_path/"work.py", tmp_path/"said.txt", []
    arguments = ["-u", str(script), str(tmp_path)]
    script.write_text(LONG)

    def kill_one(step): # as soon as there is something to go on from
        if killed or not (tmp_path/"long"/"checkpoint.safetensors").exists(): return
        workers = [p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [])[1:] == arguments]
        killed.append(next(p for p in workers if p.environ()["RANK"] == "1"))
        killed[0].kill()

    with pytest.raises(RuntimeError, match="training in 2 processes failed: process 1 was ended by SIGKILL; all said is in"):
        launch(arguments[1:], 2, log, kill_one)
    assert not any(p.is_running() for p in killed) and not (tmp_path/"long.pt").exists()
    began = load_tensors(tmp_path/"long"/"checkpoint.safetensors")[1]["step"]
    launch(arguments[1:], 2, log)
    namespace = {}
    with patch.object(sys, "argv", ["", str(tmp_path)]): exec(TOGETHER, namespace)
    namespace["learn"]("alone")
    (resumed, curve), (alone, losses) = learned(tmp_path, "long"), learned(tmp_path, "alone")
    assert 0 < began < len(curve) == len(losses)
    for k in alone: torch.testing.assert_close(resumed[k], alone[k], rtol=1e-4, atol=1e-5)


def test_a_run_is_the_same_record_by_one_process_and_by_two(tmp_path, monkeypatch, on_cpus):
    records = []
    for processes in (1, 2):
        root = tmp_path/str(processes)
        (root/"data").mkdir(parents=True)
        (root/"data"/"extractors").symlink_to(ROOT/"data"/"extractors")
        for name in ("Snakefile", "settings.ini"): (root/name).touch()
        monkeypatch.setenv("SPARSEDM_ROOT", str(root))
        run = make_run("smoke", "dense")
        records.append(do_run(run, processes=processes))
        said = run_folder(run)/"launched.txt"
        assert said.exists() == (processes == 2)
        if said.exists(): assert "20 steps of 16 images, 8 in each of 2 processes" in said.read_text()
        assert not (run_folder(run)/"checkpoint.safetensors").exists()
    one, two = records
    assert one["run"] == two["run"] and len(one["loss"]) == len(two["loss"])
    for name in ("held_out", "fid"):
        assert two["metrics"][name] == pytest.approx(one["metrics"][name], rel=1e-3), name
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4) and two["seconds"]["train"] > 0


class Kept:
    "The step of the checkpoint that is there after each step, 0 without one."
    def __init__(self, path): self.path, self.seen = path, []
    def after_step(self, step): self.seen.append(load_tensors(self.path)[1]["step"] if self.path.exists() else 0)


def test_a_checkpoint_is_written_when_a_minute_has_passed_at_every_so_many_steps_and_at_the_end(tmp_path):
    cfg, digits = TrainConfig(8, batch_size=4, ema=.5), load_images("digits")
    seconds = count(0, 25)   # each look at the clock is 25 s later
    kept = Kept(tmp_path/"a"/"checkpoint.safetensors")
    with patch.object(training, "time", SimpleNamespace(monotonic=lambda: next(seconds), perf_counter=time.perf_counter)):
        train(build_model("smoke", depth=0), digits, cfg, tmp_path/"a", hooks=[kept], progress=False)
    assert kept.seen == [0, 0, 0, 0, 3, 3, 3, 6, 6]   # before the first step, and after each; a save is a look, too
    assert load_tensors(kept.path)[1]["step"] == 8
    kept = Kept(tmp_path/"b"/"checkpoint.safetensors")
    often = dict(save_every=3, log_every=2, progress=False)
    _, log = train(build_model("smoke", depth=0), digits, cfg, tmp_path/"b", hooks=[kept], **often)
    assert kept.seen == [0, 0, 0, 0, 3, 3, 3, 6, 6] and log.step.tolist() == list(range(1, 9))
    assert log.loss.notna().all() and 0 < log.attrs["seconds"] < 600


class Weighted:
    "A loss that is an object, has a method that is one, and a number that decides."
    def __init__(self, weight): self.weight = weight
    def __call__(self, *args): return self.weight * noise_loss(*args)
    def method(self, *args): return self.weight * noise_loss(*args)


def by_default(weight):
    def loss(*args, factor=weight): return factor * noise_loss(*args)
    return loss


def by_partial(weight): return partial(Weighted.method, Weighted(weight))


@pytest.mark.parametrize("make", [Weighted, lambda weight: Weighted(weight).method, by_default, by_partial])
def test_a_training_does_not_go_on_with_another_loss_or_encoder_of_the_same_name(tmp_path, make):
    cfg, given = TrainConfig(2, 8, warmup=0, ema=.5), dict(folder=tmp_path, progress=False)
    for _ in range(2): train(small(), load_images("digits"), cfg, loss_fn=make(1.), **given)   # made anew, it is known again
    with pytest.raises(ValueError, match=r"belongs to another run: functions loss_fn.* was 1\.0, now 2\.0"):
        train(small(), load_images("digits"), cfg, loss_fn=make(2.), **given)


def small():
    torch.manual_seed(0)
    return build_model("smoke", depth=0)


SCALE = 1.

def test_a_training_does_not_go_on_with_another_body_number_or_frozen_layer(tmp_path, monkeypatch):
    cfg, given = TrainConfig(2, 8, warmup=0, ema=.5), dict(folder=tmp_path, progress=False)
    def loss(*args): return SCALE * noise_loss(*args)
    def resumed(loss_fn, model): return train(model, load_images("digits"), cfg, loss_fn=loss_fn, **given)
    resumed(loss, small())
    resumed(loss, small())
    frozen = small()
    frozen.mid_block.mlp.fc1.requires_grad_(False)
    with pytest.raises(ValueError, match="trained mid_block.mlp.fc1.bias was 'torch.float32', now None"): resumed(loss, frozen)
    monkeypatch.setitem(globals(), "SCALE", 3.)
    with pytest.raises(ValueError, match=r"functions loss_fn SCALE was 1\.0, now 3\.0"): resumed(loss, small())
    monkeypatch.undo()
    def loss(*args): return SCALE * noise_loss(*args) + 1
    with pytest.raises(ValueError, match="another run: functions loss_fn was"): resumed(loss, small())


@pytest.mark.parametrize("why, wrong", [
    ("Topology is for 100 steps, the training has 2", lambda: dict(hooks=[Topology(.5, 100)])),
    ("SwitchPatterns is for 9 steps", lambda: dict(model=sparsify_(small(), "3:4"), hooks=[SwitchPatterns(("3:4", "2:4"), 9)])),
    ("loss_fn is for Flow.*, cfg for VP", lambda: dict(loss_fn=transfer_loss(small(), process="flow"))),
    ("float32.*pos_embed is torch.bfloat16", lambda: dict(model=small().bfloat16())),
    ("a hook has one of attach", lambda: dict(hooks=[training.MaskedDecay])),
    ("student and teacher are one model", lambda: (lambda m: dict(model=m, loss_fn=transfer_loss(copy.copy(m))))(small())),
])
def test_what_does_not_belong_together_is_refused_before_the_first_step(why, wrong):
    given = dict(model=small(), images=load_images("digits"), cfg=TrainConfig(2, 8, warmup=0, ema=.5), progress=False)
    with pytest.raises(ValueError, match=why): train(**(given | wrong()))


def test_lambda_w_in_the_backward_pass_is_applied_once_however_often_a_model_is_trained_and_not_after_bake():
    model = sparsify_(small(), "2:4", lambda_w=.5)
    layer = model.mid_block.mlp.fc1
    w = dense_weight(layer)
    for at in ("backward", "backward", "gradient"):
        w.grad = None
        add_masked_decay_(torch.optim.SGD(model.parameters(), 1.), model, at)
        (w * 0).sum().backward()
        expected = .5 * (w - layer.weight).detach() if at == "backward" else torch.zeros_like(w)
        torch.testing.assert_close(w.grad, expected)
    add_masked_decay_(torch.optim.SGD(model.parameters(), 1.), model, "backward")
    w = bake_(model).mid_block.mlp.fc1.weight
    w.grad = None
    (w * 0).sum().backward()
    assert not w.grad.any()
