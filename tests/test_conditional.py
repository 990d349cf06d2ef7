"""Networks that are told labels or texts: dense, one-shot and ours, guided, at toy size."""
import shutil
from pathlib import Path
import pytest, torch
from sparsedm.execute import do_run, load_samples
from sparsedm.papers.sparsedm_conditional import guided_by
from sparsedm.run import make_run

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("net", ["labels", "words"])
def test_a_told_network_is_trained_pruned_and_guided(net, tmp_path, monkeypatch):
    for name in ("Snakefile", "settings.ini"): shutil.copy(ROOT/name, tmp_path/name)
    for name in ("extractors", "codecs"): shutil.copytree(ROOT/"data"/name, tmp_path/"data"/name)
    monkeypatch.setenv("SPARSEDM_ROOT", str(tmp_path))
    dense, one_shot, ours = (make_run("smoke-cond", m, backbone=net) for m in ("dense", "sparsegpt", "ours"))
    more = guided_by(ours, 3.)
    records = [do_run(run) for run in (dense, one_shot, ours, more)]
    assert all(torch.isfinite(torch.tensor(record["metrics"]["fid"])) for record in records)
    own, further = load_samples(ours), load_samples(more)
    assert own.shape == further.shape and not torch.equal(own, further)   # the same weights and noise, more guidance
