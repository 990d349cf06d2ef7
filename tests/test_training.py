"""Training across processes."""
import os, re, shutil, subprocess, sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from sparsedm.run import make_run

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
