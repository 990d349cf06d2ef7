"""What a plan counts, what a status says, and what is made again by a comparison: numbers by hand."""
import os, json
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch
import pytest, torch
from sparsedm import overview, verify
from sparsedm.declare import SCALES
from sparsedm.execute import do_run
from sparsedm.files import fresh_root, write_sealed
from sparsedm.overview import cost_of_run, lacking, measured_rate, network_cost, plan_page, status_page
from sparsedm.records import record_path, run_folder
from sparsedm.run import make_run, runs_of
from sparsedm.verify import Compared, badge, kept_runs, made_again


@pytest.fixture
def home(tmp_path, monkeypatch):
    "A root with what the repository brings, and nothing made."
    monkeypatch.setenv("SPARSEDM_ROOT", str(fresh_root(tmp_path)))
    return tmp_path


def test_what_is_assumed():
    assert (overview.ASSUMED, overview.ASSUMED_CORE, overview.AT_A_TIME) == (1e14, 2e10, 32)


def test_a_network_is_counted_once_with_its_products_of_attention():
    flops, params = network_cost("smoke")
    from sparsedm.macs import macs_summary
    from sparsedm.models import build_model
    model = build_model("smoke")
    assert params == sum(p.numel() for p in model.parameters())
    counted = macs_summary(model, (1, 1, 8, 8))   # ours counts norms and activations as well, the counter none
    assert counted["attention"] * .9 < flops / 2e9 < counted["attention"] * 1.02


@pytest.mark.parametrize("method, passes, curve", [("dense-ft", 3, False), ("ste", 3, True), ("ours", 4, True)])
def test_a_run_costs_its_steps_and_its_samples(method, passes, curve):
    run = make_run("smoke", method)
    forward, params = network_cost("smoke")
    cost = cost_of_run(run)
    assert cost.training == 6 * 8 * passes * forward
    assert cost.measuring == 24 * (2 if curve else 1) * 4 * forward   # two points of half the samples
    assert cost.disk == 4 * params + 256 * 3 * 8**2 and cost.while_training == 16 * params


def test_guidance_asks_twice_and_latents_of_a_large_autoencoder_are_eight_times_as_wide():
    run = make_run("smoke-cond", "dense", backbone="labels")
    guided = cost_of_run(run).measuring
    assert guided == 24 * 2 * 4 * network_cost(run.model)[0]
    assert cost_of_run(replace(run, options=run.options | dict(guidance=0.))).measuring == guided / 2
    imagenet = cost_of_run(make_run("paper-imagenet", "dense"))
    assert imagenet.disk == 4 * network_cost("uvit-l-imagenet256")[1] + 256 * 3 * 256**2 and imagenet.while_training == 0


def test_a_dense_model_that_is_there_is_not_trained_again(home):
    kept, other = make_run("demo", "dense"), make_run("demo", "dense", lr=.5)
    assert cost_of_run(kept).training == 0 < cost_of_run(other).training


def test_the_rate_is_that_of_the_records(home):
    assert measured_rate("smoke") is None
    run = make_run("smoke", "ste")
    for each in overview.to_do([run]): do_run(each)
    for each in (make_run("smoke", "dense"), run):
        path = record_path(each)
        record = json.loads(path.read_text())
        record.pop("checksum")
        write_sealed(path, record | dict(seconds=dict(record["seconds"], train=3., evaluate=2.)))
    done, dense = cost_of_run(run), make_run("smoke", "dense")
    of_dense = 20 * 16 * 3 * network_cost("smoke")[0] + cost_of_run(dense).measuring
    assert measured_rate("smoke") == pytest.approx((done.training + done.measuring + of_dense) / 10)
    with patch.object(overview, "to_do", lambda runs: [make_run("smoke", "ours")]):
        page = plan_page("smoke")
    ours = cost_of_run(make_run("smoke", "ours"))
    hours = (ours.training + ours.measuring) / measured_rate("smoke") / 3600
    assert f"{hours:,.1f} core-hours" in page and "as fast as its records were" in page


def test_several_gpus_train_one_measures_and_all_are_held():
    run, scale = make_run("paper-cifar10", "ours"), SCALES.named("paper-cifar10")
    assert scale.nets["uvit"].gpus == 4 and overview.gpus_of(run) == 4 and overview.gpus_of(make_run("paper-cifar10", "asp")) == 1
    cost = cost_of_run(run)
    longest = (cost.training / 4 + cost.measuring) / 1e14 / 3600
    with patch.object(overview, "to_do", lambda runs: [run]): page = plan_page("paper-cifar10")
    line = next(line for line in page.splitlines() if line.startswith("uvit"))
    assert line.split() == ["uvit", "tune", "500,000", "1", "4", f"{4 * longest:,.1f}", f"{longest:,.1f}"]
    assert f"2 jobs, {4 * longest:,.1f} GPU-hours." in page and "On one core" not in page   # its start is one
    assert f"{cost.disk / 1e9:,.1f} GB stay" in page and f"up to {cost.while_training / 1e9:,.1f} GB while 2 jobs train" in page


def test_a_plan_of_all_that_is_done_and_of_nothing(home):
    with patch.object(overview, "to_do", lambda runs: []):
        assert plan_page("smoke") == "scale smoke: every run has a record"
        with patch.object(overview, "runs_of", lambda scale: []): assert plan_page("smoke") == "scale smoke: it has no runs"
    assert [part.split(":")[0] for part in plan_page("paper").split("\n\nscale ")][1:] == [
        "paper-celeba", "paper-imagenet", "paper-coco", "paper-sweeps"]


def test_a_status_tells_the_kinds_apart(home):
    runs = [make_run("smoke", m) for m in ("dense", "ste", "ours", "improved", "fixed")]
    dense, begun, failed, damaged, trained = runs
    do_run(dense)
    for run in (begun, failed, trained): run_folder(run).mkdir(parents=True)
    from sparsedm.checkpoints import save_tensors
    save_tensors(run_folder(begun)/"checkpoint.safetensors", dict(w=torch.ones(1)), dict(step=3))
    (run_folder(failed)/"error.txt").write_text("Traceback\nValueError: first\nRuntimeError: no luck")
    (run_folder(trained)/"model.safetensors").touch()
    record_path(damaged).write_text("{}")
    page = status_page("smoke", most=2)
    left = len(runs_of("smoke")) - 5
    assert page.splitlines()[0] == f"scale smoke: 1 done, 2 begun, 2 failed, {left} missing"
    assert f"- {begun.id}: begun, step 3 of 6" in page and f"- {trained.id}: begun, trained, not measured" in page
    assert f"- {failed.id}: failed, RuntimeError: no luck" in page and f"- {damaged.id}: failed, " in page
    assert f"- … and {left - 2} more missing" in page
    assert "18 tables and figures to draw" in page and "- … and 16 more" in page
    assert "more" not in status_page("smoke", most=99)


def test_what_is_lacking_is_looked_for_and_not_fetched(home, monkeypatch):
    monkeypatch.setenv("SPARSEDM_DATA", str(home))
    from huggingface_hub import constants
    before = constants.HF_HUB_OFFLINE
    said = lacking("paper-cifar10")
    assert constants.HF_HUB_OFFLINE == before
    for part in ("CIFAR-10: no train-*.parquet", "cifar10_uvit_small.pth is not at", "google/ddpm-cifar10-32 of the Hub"):
        assert any(part in words for words in said), part
    assert len(said) == len(set(said)) and lacking("demo") == []


SMALL = make_run("smoke", "untrained")


def test_a_record_is_made_again_from_nothing_under_a_root_of_its_own(home, monkeypatch):
    monkeypatch.setenv("SPARSEDM_DATA", "somewhere")
    for run in overview.to_do([SMALL]): do_run(run)
    path = record_path(SMALL)
    record = json.loads(path.read_text())
    record.pop("checksum")
    write_sealed(path, record | dict(environment=record["environment"] | dict(device="cpu (1 threads)")))
    asked, before = [], torch.get_num_threads()
    def noted(run, progress):
        asked.append((run.id, torch.get_num_threads(), Path(os.environ["SPARSEDM_ROOT"]), Path(os.environ["SPARSEDM_DATA"])))
        return do_run(run, progress)

    torch.set_num_threads(2)
    with patch.object(verify, "do_run", noted):
        for _ in range(2): made_again(SMALL)   # what is done is not believed the second time
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
    own = home/"runs"/"verify"
    start = make_run("smoke", "dense").id
    assert [id for id, *_ in asked] == [start, SMALL.id, SMALL.id]
    assert {tuple(rest) for _, *rest in asked} == {(1, own, Path("somewhere").absolute())}
    assert os.environ["SPARSEDM_ROOT"] == str(home) and kept_runs(["smoke", "smoke"]) == [make_run("smoke", "dense"), SMALL]


def test_the_tolerances_and_the_badge():
    assert verify.TOLERANCE == dict(fid=.2, held_out=.005) and verify.EVIDENCE == ("evidence-digits",)
    def one(kept, now): return Compared("x", "smoke", dict(fid=(kept, now)))
    assert [one(10., x).within for x in (8., 12., 7.9, 12.1)] == [True, True, False, False]
    assert (one(0., 0.).off("fid"), one(0., 1.).off("fid"), one(-2., -1.).off("fid")) == (0., float("inf"), .5)
    assert badge([one(1., 1.), one(1., 2.)]) == (
        '<svg xmlns="http://www.w3.org/2000/svg" width="192" height="20" role="img">\n'
        '<title>records made again: 1 of 2</title><rect width="192" height="20" rx="3" fill="#444"/>\n'
        '<rect x="136" width="56" height="20" rx="3" fill="#b71c1c"/>\n'
        '<g fill="#fff" font-family="Verdana, DejaVu Sans, sans-serif" font-size="11">\n'
        '<text x="68.0" y="14" text-anchor="middle">records made again</text>'
        '<text x="164.0" y="14" text-anchor="middle">1 of 2</text></g></svg>\n')


KEPT = dict(metrics=dict(fid=1.))
REFUSED = [
    ("scales must be a list or tuple", lambda: kept_runs("smoke")), ("unknown scale 'nosuch'", lambda: kept_runs(["nosuch"])),
    ("run must be", lambda: verify.compared("x", KEPT, KEPT)),
    ("kept must be a record", lambda: verify.compared(SMALL, {}, KEPT)),
    ("now must be a record", lambda: verify.compared(SMALL, KEPT, None)), ("run must be", lambda: made_again("x")),
    ("n must be a whole number from 1", lambda: verify.verify(0)), ("seed must be a whole number", lambda: verify.verify(1, -1)),
    ("found must be a list or tuple, not empty", lambda: badge([])), ("preset must be a text", lambda: network_cost(["smoke"])),
    ("run must be", lambda: cost_of_run("x")), ("most must be a whole number", lambda: status_page("smoke", most=-1)),
    ("unknown scale 'nosuch'", lambda: plan_page("nosuch")),
]


@pytest.mark.parametrize("says, call", REFUSED)
def test_wrong_calls_name_what_is_wrong(says, call):
    with pytest.raises(ValueError, match=says): call()


def test_an_interrupted_comparison_says_how_to_go_on(monkeypatch):
    monkeypatch.setattr("sys.argv", ["verify", "--seed", "7"])
    stopped = pytest.raises(SystemExit, match="with --seed 7 it goes on")
    with patch.object(verify, "verify", side_effect=KeyboardInterrupt), stopped: verify.main()
    found = [Compared("x", "smoke", dict(fid=(1., 2.)))]
    with patch.object(verify, "verify", return_value=found) as asked, pytest.raises(SystemExit) as end: verify.main()
    assert end.value.code == 1 and asked.call_args.args == (4, 7, ("evidence-digits",))
