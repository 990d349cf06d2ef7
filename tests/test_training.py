"""Training across processes."""
import shutil, subprocess, sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from sparsedm.experiments import make_run

ROOT = Path(__file__).resolve().parent.parent


def test_two_processes_learn_what_one_learns(tmp_path):
    "`accelerate launch -m sparsedm.training` on two CPU processes: the same model but for rounding."
    def train(folder, *launch):
        folder.mkdir(); [shutil.copy(ROOT/f, folder/f) for f in ("Snakefile", "settings.ini")]
        done = subprocess.run([sys.executable, "-m", *launch, "sparsedm.training", "smoke", "dense-uvit-s0"], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return load_file(folder/"runs"/"smoke"/make_run("smoke", "dense").id/"model.safetensors")

    one = train(tmp_path/"one")
    two = train(tmp_path/"two", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m")
    start = max(v.abs().max() for v in one.values())
    assert start > 0 and set(one) == set(two)
    for k in one: torch.testing.assert_close(two[k], one[k], rtol=1e-3, atol=1e-4, msg=lambda m: f"{k}: {m}")
