"""What a `Run` says arrives where it acts: each field, from the declaration to the call that obeys it."""
from dataclasses import asdict, fields, replace
from types import SimpleNamespace
from unittest.mock import patch
import pandas as pd
import pytest, torch
from torch import nn
from sparsedm import execute, records
from sparsedm.data import Images, load_images
from sparsedm.declare import HOOKS, LOSSES, METHODS, PREPARE
from sparsedm.diffusion import noise_loss
from sparsedm.dynamic import Topology
from sparsedm.execute import (NOISE_SEEDS, Curve, Flips, distance_to_dense, draw, execute_evaluation, execute_training, floor,
                              hooks_of, load_start, loss_by_time, throughput, train_config, training_images)
from sparsedm.layers import weight_layers
from sparsedm.models import build_model
from sparsedm.progressive import SwitchPatterns
from sparsedm.run import Run, make_run
from sparsedm.ste import sparse_layers, sparsify_, sparsity_of
from sparsedm.training import TrainConfig, batch, learning_rate, train

PLAIN = make_run("smoke", "ours", steps=6, one_shot="", schedule="", points=0)
A_START = patch.object(execute, "load_start", lambda run: a_network(5))
DRAWN = Images(torch.full((5, 1, 8, 8), 77, dtype=torch.uint8), None, "drawn", "train")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    "A root of its own, with the extractors of the repository."
    for name in ("Snakefile", "settings.ini"): (tmp_path/name).touch()
    (tmp_path/"data").mkdir()
    (tmp_path/"data"/"extractors").symlink_to(execute.runs_dir("smoke").parent.parent/"data"/"extractors")
    monkeypatch.setenv("SPARSEDM_ROOT", str(tmp_path))
    monkeypatch.setattr(execute, "_sha_of_start", lambda run: "whose")   # of a file that is not there


class Asked(Exception): "What was to be found out is known."


def calls_of(module, name, do):
    "The arguments of the first call of a function while do() runs, which ends there."
    seen = SimpleNamespace()
    def spy(*args, **kwargs):
        seen.args, seen.kwargs = args, kwargs
        raise Asked
    with patch.object(module, name, spy), pytest.raises(Asked): do()
    return seen


def training_of(run):
    "(model, images, recipe, loss, hooks) that a run's training gets, its start being a fresh network."
    with patch.object(execute, "load_start", lambda run: a_network(5)):
        seen = calls_of(execute, "train", lambda: execute_training(run))
    model, images, cfg, _, loss_fn = seen.args
    return SimpleNamespace(model=model, images=images, cfg=cfg, loss_fn=loss_fn, hooks=seen.kwargs["hooks"])


def a_network(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_model("smoke")


def sampled(run):
    "Arguments of the sampling of a run's images."
    return calls_of(execute, "sample", lambda: draw(nn.Identity(), run, 3))


class Constant(nn.Module):
    "Answers a number everywhere."
    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))
    def forward(self, x, t): return self.value.expand_as(x)


def loss_of(run, student=1., teacher=3., noise=.5):
    "A run's loss where student, teacher and noise are numbers."
    x0 = torch.zeros(2, 1, 4, 4)
    loss_fn = LOSSES.named(run.loss)(run, lambda: Constant(teacher))
    return loss_fn(Constant(student), x0, torch.tensor([.2, .8]), torch.full_like(x0, noise)).item()


def a_sparsity(run): return next(sparsity_of(m) for m in sparse_layers(training_of(run).model).values())
def hook_of(run, kind): return next((h for h in hooks_of(run, None) if isinstance(h, kind)), None)


# the recipe of the training

RECIPE = dict(steps=7, batch_size=17, lr=3e-3, warmup=9, weight_decay=.7, ema=.43, cooldown=.6, betas=[.5, .6], seed=4,
              decay="update", loss_scale=8.)


@pytest.mark.parametrize("name", RECIPE)
def test_the_recipe_of_a_training_is_the_runs(name):
    plain, changed = asdict(train_config(PLAIN)), training_of(replace(PLAIN, **{name: RECIPE[name]})).cfg
    assert isinstance(changed, TrainConfig)
    assert asdict(changed) == plain | {name: RECIPE[name]} != plain


def test_the_process_and_the_flips_are_those_of_network_and_data():
    assert train_config(replace(PLAIN, options=dict(process="linear"))).process == "linear"
    assert train_config(replace(PLAIN, model="digits-uvit")).process == PLAIN.process == "vp"
    assert [train_config(replace(PLAIN, data=name)).flip for name in ("digits", "cifar10")] == [False, True]


class Looks:
    "Settings of the optimizer, weights and average at each step."
    def __init__(self): self.rates, self.nets = [], []
    def attach(self, model, optimizer, ema): self.model, self.optimizer, self.ema = model, optimizer, ema
    def before_step(self, step): self.rates.append(self.optimizer.param_groups[0]["lr"])
    def after_step(self, step):
        self.nets.append([torch.cat([p.detach().flatten() for p in net.parameters()]) for net in (self.model, self.ema)])


def test_the_recipe_arrives_in_the_optimizer_and_the_average():
    cfg = TrainConfig(6, batch_size=4, lr=1e-2, warmup=3, weight_decay=.7, betas=(.5, .6), ema=.75, cooldown=.5, seed=4)
    looks = Looks()
    torch.manual_seed(0)
    train(build_model("smoke", depth=0), load_images("digits"), cfg, hooks=[looks], progress=False)
    group, = looks.optimizer.param_groups
    assert (group["weight_decay"], tuple(group["betas"])) == (.7, (.5, .6)) and type(looks.optimizer) is torch.optim.AdamW
    assert looks.rates == [learning_rate(cfg, step) for step in range(6)]
    assert looks.rates == pytest.approx([x * 1e-2 for x in (1/3, 2/3, 1, 1, 2/3, 1/3)])
    average = looks.nets[1][0]   # the first is taken as it is
    for weights, ema in looks.nets[1:]:
        average = .75 * average + .25 * weights if weights is not looks.nets[1][0] else weights
        torch.testing.assert_close(ema, average)


def test_seed_step_and_flip_decide_the_batch():
    digits, cfg = load_images("digits"), TrainConfig(6, batch_size=32, seed=1)
    first, second, later = batch(digits, cfg, 3), batch(digits, replace(cfg, seed=2), 3), batch(digits, cfg, 4)
    assert [len(part) for part in first[:3]] == [32] * 3
    assert not torch.equal(first[0], second[0])
    assert all(not torch.equal(a, b) for a, b in zip(first[:3], later[:3]))
    flipped = batch(digits, replace(cfg, flip=True), 3)
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped[0], first[0])]
    assert 0 < sum(mirrored) < 32 and all(m or torch.equal(a, b) for m, a, b in zip(mirrored, flipped[0], first[0]))
    assert torch.equal(flipped[1], first[1]) and torch.equal(flipped[2], first[2])   # flips have a generator of their own


def test_each_seed_has_times_and_noise_of_its_own():
    digits, cfg = load_images("digits"), TrainConfig(6, batch_size=32, seed=1)
    first, second = (batch(digits, replace(cfg, seed=seed), 3) for seed in (1, 2))
    assert not torch.equal(first[1], second[1]) and not torch.equal(first[2], second[2])


# what is learned from

def test_each_weight_of_the_loss_is_at_its_own_term():
    "Student 1, teacher 3, noise ½: the two terms are 4 and ¼."
    for teacher, noise in ((.3, .7), (.7, .3), (2., 0.)):
        run = replace(PLAIN, lambda_teacher=teacher, lambda_noise=noise)
        assert run.loss == "transfer" and loss_of(run) == pytest.approx(teacher * 4 + noise * .25, rel=1e-6)
        asked = training_of(run).loss_fn
        student, x0, t = build_model("smoke"), torch.rand(2, 1, 8, 8), torch.tensor([.2, .8])
        by_hand = LOSSES.named("transfer")(run, lambda: a_network(5))
        assert asked(student, x0, t, x0).item() == pytest.approx(by_hand(student, x0, t, x0).item())
    without = replace(PLAIN, lambda_teacher=0., lambda_noise=.7)
    assert without.loss == "noise" and loss_of(without) == pytest.approx(.25)   # a weight of the only term would be a rate


def test_the_process_arrives_in_both_losses():
    "A flow's right answer is ε − x_0, not ε."
    x0, noise, t = torch.full((2, 1, 4, 4), -.25), torch.full((2, 1, 4, 4), .5), torch.tensor([.2, .8])
    for weight, by_teacher in ((0., 0.), (1., 4.)):
        run = replace(PLAIN, lambda_teacher=weight, lambda_noise=1., options=dict(process="flow"))
        loss_fn = LOSSES.named(run.loss)(run, lambda: Constant(3.))
        assert loss_fn(Constant(1.), x0, t, noise).item() == pytest.approx(.0625 + by_teacher)


def test_a_runs_own_loss_is_the_one_that_is_asked_for():
    def mine(run, teacher): return lambda net, x0, t, noise: 7. + 0 * net(x0, t).sum()
    with patch.dict(LOSSES, mine=mine):
        run = replace(PLAIN, options=dict(loss="mine"))
        assert training_of(run).loss_fn(Constant(1.), DRAWN.images.float(), 0, 0).item() == 7.


@pytest.mark.parametrize("train_on, count", [("data", 1797), ("teacher", 5), ("both", 1797 + 5)])
def test_what_a_run_trains_on_is_what_it_says(train_on, count):
    run, real = replace(PLAIN, data="digits", train_on=train_on, seed=3), load_images("digits")
    with patch.object(execute, "teacher_samples", lambda *args, **kwargs: DRAWN), A_START:
        found = training_images(run).images
    assert len(found) == count
    if train_on != "teacher": assert torch.equal(found[:1797], real.images)
    if train_on != "data": assert torch.equal(found[-5:], DRAWN.images)


def test_samples_of_the_teacher_are_drawn_as_the_run_says_from_seeds_of_their_own():
    run = replace(PLAIN, data="digits", train_on="teacher", seed=3, sampler="ddim", sampler_steps=7)
    dense = a_network(5)
    with patch.object(execute, "load_start", lambda run: dense):
        seen = calls_of(execute, "teacher_samples", lambda: training_images(run))
    teacher, n, shape, first = seen.args
    assert teacher is dense and (n, shape) == (1797, (1, 8, 8))
    assert seen.kwargs == dict(sampler="ddim", steps=7, cond={})
    assert 3 * NOISE_SEEDS < first < first + n < 4 * NOISE_SEEDS and first - 3 * NOISE_SEEDS > 50_000   # no evaluation's


def test_the_data_of_a_run_are_trained_on_and_compared_with():
    for name in ("digits-split", "digits"):
        run, n = replace(PLAIN, data=name), len(load_images(name))
        assert len(training_of(run).images) == n == len(evaluated(run)[1][1])


# what is trained

def test_the_start_is_the_runs_or_a_network_of_its_model_and_seed():
    other = make_run("smoke", "dense", lr=.5)
    asked = calls_of(execute, "find_run", lambda: load_start(replace(PLAIN, start=other.id, teacher="x"))).args
    assert asked == (other.id, "smoke")
    random = replace(PLAIN, start="", teacher=other.id)
    another = replace(random, model="digits-uvit")
    assert calls_of(execute, "find_run", lambda: load_start(random)).args == (other.id, "smoke")
    first, again, second = (training_of(replace(random, seed=seed)).model.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[k], again[k]) for k in first) and any(not torch.equal(first[k], second[k]) for k in first)
    from_start, fresh = training_of(PLAIN).model.state_dict(), a_network(5).state_dict()
    assert all(torch.equal(fresh[k], from_start[k]) for k in fresh)
    assert calls_of(execute, "build_model", lambda: execute_training(another)).args == ("digits-uvit",)


def test_pattern_estimator_layers_and_weight_arrive_in_the_layers():
    for name, value in dict(pattern="1:4", estimator="ste", lambda_w=.25).items():
        changed, plain = a_sparsity(replace(PLAIN, **{name: value})), a_sparsity(PLAIN)
        assert getattr(changed, name) == value != getattr(plain, name)
    by_rule = {rule: set(sparse_layers(training_of(replace(PLAIN, layers=rule)).model)) for rule in ("paper", "code", "asp")}
    assert by_rule["code"] < by_rule["paper"] and by_rule["asp"] < by_rule["paper"] and by_rule["asp"] != by_rule["code"]
    assert sparse_layers(training_of(replace(PLAIN, pattern="", estimator="")).model) == {}


def test_a_run_is_pruned_as_it_says_and_calibrated_with_its_seed():
    def spy(run, model): raise KeyboardInterrupt(run.one_shot)
    with patch.dict(PREPARE, spy=spy), pytest.raises(KeyboardInterrupt, match="spy"):
        training_of(replace(PLAIN, one_shot="spy"))
    wanda = replace(PLAIN, one_shot="wanda", pattern="2:4", layers="code")
    masks = [[sparsity_of(m).mask for m in sparse_layers(training_of(replace(wanda, **changes)).model).values()]
             for changes in ({}, {}, dict(seed=9), dict(layers="paper"), dict(one_shot="magnitude"))]
    assert all(map(torch.equal, masks[0], masks[1])) and len(masks[3]) > len(masks[0]) == len(masks[4])
    assert not all(map(torch.equal, masks[0], masks[2])) and not all(map(torch.equal, masks[0], masks[4]))


# hooks

def test_the_schedule_arrives_with_its_steps_and_whether_it_is_as_released():
    run = replace(PLAIN, schedule="31:32", steps=10)
    hook = hook_of(run, SwitchPatterns)
    assert (hook.patterns[0], hook.patterns[-1], hook.steps, hook.released) == ("31:32", "2:4", 10, False)
    assert hook_of(replace(run, released=True), SwitchPatterns).released
    assert hook_of(replace(run, schedule="7:8"), SwitchPatterns).patterns[1] == "6:8"
    assert hook_of(PLAIN, SwitchPatterns) is None
    kinds = [type(h).__name__ for h in training_of(replace(run, steps=40)).hooks]
    assert kinds[0] == "SwitchPatterns"   # it changes patterns, which the others look at


def test_points_and_flips_are_looked_at_where_the_run_asks_for_them():
    assert hook_of(replace(PLAIN, points=3, steps=90), Curve).at == {0, 30, 60, 90}
    assert hook_of(PLAIN, Curve) is None and hook_of(replace(PLAIN, points=3, steps=0), Curve) is None
    assert [hook_of(replace(PLAIN, steps=n), Flips).every for n in (6, 60, 600)] == [2, 3, 30]
    flips = {name: hook_of(replace(PLAIN, estimator=name), Flips) is not None for name in ("ste", "improved", "fixed")}
    assert flips == dict(ste=True, improved=True, fixed=False)


def test_a_method_names_hooks_and_options_make_a_topology():
    mine = SimpleNamespace(after_step=lambda step: None)
    with patch.dict(HOOKS):
        method = replace(METHODS.named("ours"), name="hooked", hooks=("mine",))
        HOOKS["mine"] = replace(HOOKS.named("flips"), name="mine", make=lambda run, folder: mine, when=None)
        with patch.dict(METHODS, hooked=method): assert mine in hooks_of(replace(PLAIN, method="hooked"), None)
        assert mine not in hooks_of(PLAIN, None)
    sparse = replace(PLAIN, options=dict(sparsity=.75, regrow="random", group="row", topology="uniform", p=.1, updates=2), seed=8)
    topology = hook_of(sparse, Topology)
    assert (topology.sparsity, topology.group, topology.topology, topology.seed, topology.steps) == (.75, "row", "uniform", 8, 6)
    assert (topology.moves.regrow, topology.moves.p, topology.moves.every) == ("random", .1, 2)


# how it is measured

def test_images_are_drawn_as_the_run_says():
    run = replace(PLAIN, sampler="euler-maruyama", sampler_steps=9, seed=3)
    seen = sampled(run)
    assert seen.args[1] == range(3 * NOISE_SEEDS, 3 * NOISE_SEEDS + 3) and seen.args[2] == (1, 8, 8)
    assert (seen.kwargs["sampler"], seen.kwargs["steps"], seen.kwargs["process"]) == ("euler-maruyama", 9, "vp")
    assert sampled(replace(run, sampler="ddim", options=dict(process="linear"))).kwargs["process"] == "linear"


def evaluated(run):
    "(sizes of what was drawn, arguments of `evaluate`)"
    sizes = []
    def drawn(net, run, n):
        sizes.append(n)
        return torch.zeros(n, 1, 8, 8, dtype=torch.uint8)
    with patch.object(execute, "draw", drawn):
        seen = calls_of(execute, "evaluate", lambda: execute_evaluation(run, build_model("smoke")))
    return sizes, seen.args


def test_as_many_images_as_the_run_says_are_scored_in_its_features():
    sizes, args = evaluated(replace(PLAIN, n_samples=11, extractor="fashion-cnn"))
    assert sizes == [11] and len(args[0]) == 11 and args[2] == "fashion-cnn"
    some = replace(PLAIN, data="digits-split", n_samples=11, extractor="fashion-cnn")
    asked = calls_of(execute, "score_floor", lambda: floor(some))
    assert asked.args == ("digits-split",) and (asked.kwargs["n"], asked.kwargs["extractor"]) == (11, "fashion-cnn")
    curve = Curve(replace(PLAIN, points=1, n_samples=11, extractor="fashion-cnn"))
    curve.attach(None, None, build_model("smoke"))
    with patch.object(execute, "draw", lambda net, run, n: torch.zeros(n, 1, 8, 8, dtype=torch.uint8)):
        asked = calls_of(execute, "evaluate", lambda: curve.after_step(0))
    assert len(asked.args[0]) == 5 and asked.args[2:4] == ("fashion-cnn", ("fid",))


def test_the_distance_is_to_the_teachers_images_of_the_same_seed():
    run = replace(PLAIN, teacher="the-dense-one", seed=2, n_samples=4)
    images = torch.full((4, 1, 8, 8), 51, dtype=torch.uint8)
    with patch.object(execute, "load_start"), patch.object(execute, "draw", lambda net, run, n: torch.zeros_like(images[:n])):
        found = distance_to_dense(images, run)
    assert found == dict(dense_mse=pytest.approx(.04), dense_n=4)
    kept, = execute.runs_dir("smoke").rglob("*.safetensors")
    assert kept.parent.name == "the-dense-one" and kept.name == "first-4-s2.safetensors"


def test_the_loss_by_time_is_of_the_runs_process_and_data():
    net, run = build_model("smoke"), replace(PLAIN, n_samples=8, data="digits-split")
    linear = replace(run, options=dict(process="linear"))
    x0 = load_images("digits-split", "test").images.float() / 127.5 - 1
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    for r in (run, linear):
        with torch.no_grad(): by_hand = noise_loss(net, x0, torch.full((len(x0),), .45), noise, process=r.process).item()
        assert loss_by_time(net, r)[4] == pytest.approx(by_hand, rel=1e-4)


def test_rates_are_images_over_seconds():
    run = replace(PLAIN, n_samples=30, batch_size=8)
    with patch("torch.cuda.is_available", return_value=False):
        found = throughput(run, {}, [1.] * 6, dict(sample=5., train=3.))
    assert found == dict(sample_images_s=6., train_images_s=16.)


def test_on_a_gpu_rates_are_set_against_its_peak():
    "2 TFLOP/s are 1e12 multiplications with their additions a second; a network of 5e9 takes 1/200 of that."
    run = replace(PLAIN, n_samples=30, batch_size=8, sampler_steps=10, lambda_teacher=.1)
    peak = patch.object(execute, "gpu_tflops", lambda: 2.)
    with patch("torch.cuda.is_available", return_value=True), peak:
        found, more = (throughput(r, dict(attention=5.), [1.] * 6, dict(sample=5., train=3.)) for r in
                       (run, replace(run, lambda_teacher=0.)))
    assert found == dict(sample_images_s=6., train_images_s=16., gpu_tflops=2., sample_share=pytest.approx(6 * 10 / 200),
                         train_share=pytest.approx(16 * 4 / 200))   # forward, twice that backward, and the teacher
    assert more["train_share"] == pytest.approx(16 * 3 / 200)


def test_flips_are_the_share_of_the_mask_that_a_step_changes():
    layer = sparsify_(nn.Linear(8, 2, bias=False), "2:4", "ste", layers="paper")
    w = next(layer.parameters())
    w.data = torch.tensor([[4., 3, 2, 1, 1, 2, 3, 4], [4., 3, 2, 1, 1, 2, 3, 4]])
    flips = Flips(2)
    flips.attach(nn.Sequential(layer), None, None)
    for step in range(4):
        flips.before_step(step)
        w.data[0, 2] += .75   # in the second step it overtakes the 3 beside it
        flips.after_step(step + 1)
    assert flips.state() == {"flips": [[2, 2 / 16], [4, 0.]]}   # looked at in every second step


def written(run, losses):
    "The results that a run with these losses hands to its record."
    net, scores = build_model("smoke"), dict(fid=1.)
    trained = patch.object(execute, "execute_training", lambda *args: (net, losses, {"flips": []}, 3.))
    images = torch.zeros(300, 1, 8, 8, dtype=torch.uint8)
    measured = patch.object(execute, "execute_evaluation", lambda *args: (images, scores, {}, [1.], dict(evaluate=2., sample=1.)))
    with trained, measured: return calls_of(execute, "write_record", lambda: execute.do_run(run)).kwargs


def test_a_record_keeps_about_a_hundred_losses_and_256_images():
    few, many = written(PLAIN, [1., 2., 3.]), written(PLAIN, [float(k) for k in range(250)])
    assert (few["loss"], few["loss_stride"]) == ([1., 2., 3.], 1)
    assert many["loss_stride"] == 2 and many["loss"] == [2 * k + .5 for k in range(125)]   # means of two
    assert written(PLAIN, [1 / 3])["loss"] == [.33333] and written(PLAIN, [])["loss"] == []
    assert len(execute.load_samples(PLAIN)) == 256
    assert few["seconds"] == dict(evaluate=2., sample=1., train=3.) and few["label"] == METHODS.named("ours").label
    assert few["params"] == few["kept"] == sum(m.weight.numel() for m in weight_layers(build_model("smoke")).values())


def test_a_record_has_the_label_of_its_method_and_all_fields_of_its_run():
    results = dict(label=METHODS.named("ours").label)
    with patch.object(records, "check_record"): path = records.write_record(PLAIN, **results)
    found = records.read_json(path)
    assert found["run"] == asdict(PLAIN) and found["label"] == results["label"] and path.stem == PLAIN.id
    assert path.parent.name == PLAIN.scale


def test_no_steps_no_training():
    with patch.object(execute, "load_start", lambda run: build_model("smoke")), patch.object(execute, "train") as trained:
        model, losses, seen, _ = execute_training(replace(PLAIN, steps=0))
    assert not trained.called and losses == [] and seen == {"flips": [], "curve": []} and sparse_layers(model)


SEEN_HERE = {*RECIPE, *"""scale method data model start teacher pattern estimator layers one_shot schedule released lambda_w
             lambda_teacher lambda_noise train_on points extractor n_samples sampler sampler_steps options""".split()}


def test_every_field_is_looked_at():
    assert {f.name for f in fields(Run)} - SEEN_HERE == {"backbone"}   # which of the scale's nets: `make_run` reads it
    assert make_run("demo", "ours", backbone="unet").model != make_run("demo", "ours").model
    assert pd.Series(PLAIN.name.split("-")).tolist() == ["ours", "uvit", "2of4", "s0"]
