"""Training: across processes, and minute by minute."""
import copy, os, re, shutil, subprocess, sys, time
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch
import pytest, torch
from safetensors.torch import load_file
from sparsedm import training
from sparsedm.checkpoints import load_tensors
from sparsedm.data import load_images
from sparsedm.diffusion import noise_loss
from sparsedm.dynamic import Topology
from sparsedm.models import build_model
from sparsedm.progressive import SwitchPatterns
from sparsedm.run import make_run
from sparsedm.ste import add_masked_decay_, bake_, dense_weight, sparsify_
from sparsedm.training import TrainConfig, train
from sparsedm.transfer import transfer_loss

ROOT = Path(__file__).resolve().parent.parent


def test_two_processes_learn_what_one_learns(tmp_path):
    "Two CPU processes, started as `accelerate launch` starts those of several GPUs: the same model but for rounding."
    def train(folder, processes, *launch):
        folder.mkdir()
        for name in ("Snakefile", "settings.ini"): shutil.copy(ROOT/name, folder/name)
        command = [sys.executable, "-m", *launch, "sparsedm.execute", "smoke", "dense-uvit-s0"]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
        assert re.findall(r"steps on (\d+) processes", done.stdout) == [str(processes)], done.stdout   # said by one of them
        return load_file(folder/"runs"/"smoke"/make_run("smoke", "dense").id/"model.safetensors")

    one = train(tmp_path/"one", 1)
    two = train(tmp_path/"two", 2, "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m")
    start = max(v.abs().max() for v in one.values())
    assert start > 0 and set(one) == set(two)
    for k in one: torch.testing.assert_close(two[k], one[k], rtol=1e-3, atol=1e-4, msg=lambda m: f"{k}: {m}")


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
