"""Networks that are told labels or texts, from dense training to guided samples, by runs."""
import math
from pathlib import Path
import pytest
import torch
from sparsedm.checkpoints import load_tensors
from sparsedm.execute import TimeIsUp, do_run, draw, execute_training, load_samples, load_start, plain
from sparsedm.papers.sparsedm_conditional import TOLD, guided_by
from sparsedm.records import model_path, run_folder
from sparsedm.run import make_run

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def home(tmp_path, monkeypatch):
    "Goes to an empty root of this name, which has the small assets."
    def go(name):
        root = tmp_path/name
        (root/"data").mkdir(parents=True)
        for assets in ("codecs", "extractors"): (root/"data"/assets).symlink_to(ROOT/"data"/assets)
        for file in ("Snakefile", "settings.ini"): (root/file).touch()
        monkeypatch.setenv("SPARSEDM_ROOT", str(root))
    return go


def weights(run): return load_tensors(model_path(run))[0]


@pytest.mark.parametrize("net", TOLD)
def test_told_trained_pruned_guided_and_resumed(home, net):
    dense, ours, one_shot = (make_run("smoke-cond", m, backbone=net) for m in ("dense", "ours", "sparsegpt"))
    runs = [dense, ours, one_shot, guided_by(ours, 3.), guided_by(ours, 0.)]
    home("unbroken")
    records = [do_run(run) for run in runs]
    assert all(math.isfinite(r["metrics"]["fid"]) and r["metrics"]["n_samples"] == 24 for r in records)
    assert [r["kept"] < r["params"] for r in records] == [False, True, True, True, True]
    assert records[1]["metrics"]["dense_mse"] > 0 and "dense_mse" not in records[3]["metrics"]
    strong, bare = runs[3:]
    assert weights(strong).keys() == weights(ours).keys()
    assert all(torch.equal(a, b) for run in (strong, bare) for a, b in zip(weights(run).values(), weights(ours).values()))
    assert not torch.equal(load_samples(strong), load_samples(bare))   # only the guidance differs
    again = draw(plain(load_start(strong)), strong, 8)                 # the first of them, whatever their number
    assert (again.int() - load_samples(strong)[:8].int()).abs().max() <= 1   # other batches, other rounding
    whole = {run: weights(run) for run in (dense, ours)}

    home("stopped")
    for run in (dense, ours):
        with pytest.raises(TimeIsUp): execute_training(run, False, deadline=0.)   # after the first step
        assert load_tensors(run_folder(run)/"checkpoint.safetensors")[1]["step"] == 1
        execute_training(run, False)
        assert all(torch.equal(w, whole[run][name]) for name, w in weights(run).items())
