"""Training: across processes, and minute by minute."""
import os, re, shutil, subprocess, sys, time
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch
import torch
from safetensors.torch import load_file
from sparsedm import training
from sparsedm.checkpoints import load_tensors
from sparsedm.data import load_images
from sparsedm.models import build_model
from sparsedm.run import make_run
from sparsedm.training import TrainConfig, train

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
