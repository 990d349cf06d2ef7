"""Training across processes."""
import re, shutil, subprocess, sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from sparsedm.run import make_run

ROOT = Path(__file__).resolve().parent.parent


def test_two_processes_learn_what_one_learns(tmp_path):
    "`accelerate launch -m sparsedm.execute` on two CPU processes: the same model but for rounding."
    def train(folder, processes, *launch):
        folder.mkdir()
        for name in ("Snakefile", "settings.ini"): shutil.copy(ROOT/name, folder/name)
        command = [sys.executable, "-m", *launch, "sparsedm.execute", "smoke", "dense-uvit-s0"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert re.findall(r"steps on (\d+) processes", done.stdout) == [str(processes)], done.stdout   # said by one of them
        return load_file(folder/"runs"/"smoke"/make_run("smoke", "dense").id/"model.safetensors")

    one = train(tmp_path/"one", 1)
    options = ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    two = train(tmp_path/"two", 2, "accelerate.commands.launch", "--cpu", "--multi_gpu", *options, "-m")
    start = max(v.abs().max() for v in one.values())
    assert start > 0 and set(one) == set(two)
    for k in one: torch.testing.assert_close(two[k], one[k], rtol=1e-3, atol=1e-4, msg=lambda m: f"{k}: {m}")
