"""Ids are for ever: records and checkpoints that came with the repository stay valid."""
import hashlib, subprocess, sys
from pathlib import Path
import pytest
from sparsedm.checkpoints import load_model
from sparsedm.records import kept_path, read_records, record_path
from sparsedm.run import find_run, runs_of

ROOT = Path(__file__).resolve().parent.parent
HASHES = {   # scale: (runs, hash of their ids in order, hash of the ids of their weights)
    "smoke": (91, "fe6ee357436e5446", "2aa75663e6e37df3"),
    "demo": (240, "59737df3eaf9c950", "d49f8898a538cda6"),
    "evidence-digits": (462, "02a26094fefca57e", "0780dc9e2bf1d7b3"),
    "evidence-fashion": (232, "e21bb3e3c5e6e94a", "8a6e15b44ebf14c2"),
    "cifar-cpu": (18, "19fe68ab60382c5c", "7be1e11590ecc75f"),
    "cifar": (147, "2f95107f4296e09b", "bbe1f97535a3290a"),
}
CIFAR = {   # the records of cifar-cpu
    "asp-ft-unet-2of4-s0-869b974c", "asp-ft-uvit-2of4-s0-3ca0f6c6", "asp-unet-2of4-s0-a7326b6b", "asp-uvit-2of4-s0-60ddcdf5",
    "dense-ft-unet-s0-b1cf4e83", "dense-ft-uvit-s0-1c26d5aa", "dense-unet-s0-18891648", "dense-uvit-s0-ceffca89",
    "diff-pruning-unet-2of4-s0-37108ad8", "diff-pruning-uvit-2of4-s0-8e441920", "improved-unet-2of4-s0-986e4d68",
    "improved-uvit-2of4-s0-54e5ea5b", "ours-unet-2of4-s0-88cb1891", "ours-uvit-2of4-s0-337fd8c8", "ste-unet-2of4-s0-1c0bef54",
    "ste-uvit-2of4-s0-487f57b4", "untrained-unet-2of4-s0-854d3aae", "untrained-uvit-2of4-s0-559990fc",
}


def short(names): return hashlib.sha256(" ".join(names).encode()).hexdigest()[:16]


@pytest.mark.parametrize("scale", HASHES)
def test_ids_and_their_order_stay(scale):
    runs = runs_of(scale)
    assert HASHES[scale] == (len(runs), short(r.id for r in runs), short(r.weights_id for r in runs))


def test_the_records_of_cifar_load_under_their_ids():
    runs = runs_of("cifar-cpu")
    assert {r.id for r in runs} == CIFAR
    assert [r["id"] for r in read_records(runs)] == [r.id for r in runs]
    assert {p.stem for p in record_path(runs[0]).parent.glob("*.json")} == CIFAR
    assert find_run("ours-uvit-2of4-s0-337fd8c8") == find_run("ours-uvit-2of4-s0", "cifar-cpu")


@pytest.mark.parametrize("scale", ["evidence-digits", "evidence-s2s", "cifar-cond"])
def test_every_record_that_came_along_belongs_to_a_run(scale):
    came = {p.stem for p in (ROOT/"data"/"records"/scale).glob("*.json")}
    assert came and came <= {r.id for r in runs_of(scale)}


def test_a_run_is_found_by_its_id_or_its_name_alone_in_all_scales():
    "In a process that has made no run, and read no declaration."
    wanted = {"ours-uvit-2of4-s0-337fd8c8": "cifar-cpu", "asp-uvit-2of4-s4": "evidence-digits"}
    code = f"from sparsedm.run import find_run\nprint(*(find_run(text).scale for text in {list(wanted)}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == list(wanted.values()), done.stderr[-2000:]


@pytest.mark.parametrize("scale, models", [("demo", 9), ("evidence-digits", 15), ("cifar-cpu", 2)])
def test_kept_models_belong_to_their_runs(scale, models):
    runs = [r for r in runs_of(scale) if r.pretrained]
    assert len(runs) == models
    for run in runs: assert load_model(kept_path(run), run=run.weights_id).config["kind"] in ("uvit", "unet")
