"""What is meant where nothing is said: another default is another result for whoever relies on it."""
import inspect
import pytest
from sparsedm import conditions, diff_pruning, diffusion, dynamic, execute, metrics, no_data, one_shot
from sparsedm import overview, pairs, progressive, run, shards, ste, training, transfer, verdicts, verify

RECIPE = dict(batch_size=128, lr=2e-4, warmup=2500, weight_decay=.03, ema=.9999, cooldown=0., decay="gradient", loss_scale=1.)
SPARSE = dict(pattern="2:4", estimator="improved", lambda_w=2e-4)
TAYLOR = dict(n=64, seed=0, threshold=.05, process="vp")
DEFAULTS = {
    training.TrainConfig: RECIPE | dict(betas=(.99, .999), flip=False, seed=0, compile=False, process="vp"),
    verify.verify: dict(n=4, seed=0, scales=("evidence-digits",)), verify.made_again: dict(progress=False),
    verify.kept_runs: dict(scales=("evidence-digits",)), overview.status_page: dict(most=10),
    training.train: dict(hooks=(), save_every=500, log_every=20, progress=True, shard=False),
    run.Run: RECIPE | dict(
        start="", teacher="", pattern="", estimator="", layers="paper", one_shot="", schedule="", released=False, lambda_w=2e-4,
        lambda_teacher=0., lambda_noise=1., train_on="data", steps=0, points=0, extractor="inception", n_samples=50_000,
        sampler="dpm-solver", sampler_steps=50),
    run.make_run: dict(seed=0, backbone="uvit", pattern="2:4"),
    ste.sparsify_: SPARSE, ste.NMSparse: SPARSE, ste.add_masked_decay_: dict(at="gradient"),
    transfer.transfer_loss: dict(lambda_teacher=.1, lambda_noise=1., process="vp"),
    transfer.teacher_samples: dict(seed=0, sampler="dpm-solver", steps=50, progress=False, process="vp"),
    dynamic.Moves: dict(regrow="", p=.5, anneal=True, every=100, until=.75),
    dynamic.Topology: dict(topology="erk", group="layer", moves=dynamic.Moves(), seed=0),
    dynamic.draw_masks: dict(topology="erk", group="layer", seed=0),
    one_shot.one_shot_: dict(pattern="2:4", method="magnitude", seed=0, n=256, damping=.01, process="vp"),
    one_shot.noisy_batches: dict(device="cpu", process="vp", batch=64),
    one_shot.asp_: dict(permute=False), one_shot.permute_channels_: dict(rounds=128),
    progressive.SwitchPatterns: dict(released=False),
    diff_pruning.taylor_: TAYLOR | dict(times=100), diff_pruning.diff_pruning: TAYLOR | dict(like="2:4"),
    no_data.own_samples: dict(seed=0, sampler="dpm-solver", steps=25, process="vp", progress=False),
    no_data.mend: dict(steps=300, lr=5e-4, batch_size=64, lambda_teacher=1., process="vp", seed=0, progress=False),
    diffusion.VP: dict(predicts="noise", beta=(.1, 20.)), diffusion.Steps: dict(predicts="noise", beta=(0., 1.), T=1000),
    diffusion.Sampler: dict(steps=50, needs=""), diffusion.discrete_betas: dict(n=1000, process="vp"),
    diffusion.noise_loss: dict(reduction="mean", process="vp"),
    diffusion.sample: dict(sampler="dpm-solver", batch_size=256, progress=False, process="vp"),
    metrics.evaluate: dict(extractor="digits-cnn", metrics=("fid", "kid", "isc", "prc", "mind"), device="cpu", seed=0,
                           progress=False),
    metrics.train_digits_cnn: dict(epochs=30, seed=0), metrics.train_fashion_cnn: dict(epochs=8, seed=0),
    conditions.word_features: dict(width=16),
    shards.write_shards: dict(per_shard=4096, batch=64, progress=True),
    shards.open_shards: dict(name="shards", split="train", verify=True),
    pairs.pairs_needed: dict(most=1000), pairs.decide: dict(margin=0.), pairs.spread: dict(digits=2),
    pairs.percent: dict(digits=1), verdicts.Records.of: dict(net="uvit", pattern="2:4"),
    execute.do_run: dict(progress=False, deadline=float("inf"), wait=True, processes=0),
    execute.loss_by_time: dict(noises=0),
}
CONSTANTS = {
    diffusion: dict(BETA_MIN=.1, BETA_MAX=20.), dynamic: dict(UPDATES=20),
    conditions: dict(PLACES=77, WIDTH=16), pairs: dict(LEVEL=.9, POWER=.8, MOST_EXACT=16), verdicts: dict(FEW=4),
    metrics: dict(COMPARED=10_000, DIRECTIONS=1024, KEEP_FROM=3_000),
    execute: dict(NOISE_SEEDS=10**6, HELD_OUT=1024, TIMES=tuple((i + .5) / 10 for i in range(10))),
}


@pytest.mark.parametrize("asked", DEFAULTS, ids=lambda f: f.__name__)
def test_defaults_stay(asked):
    kinds = (bool, int, float, str, tuple, dynamic.Moves)   # the rest says that nothing is given
    defaults = {k: p.default for k, p in inspect.signature(asked).parameters.items() if isinstance(p.default, kinds)}
    assert defaults == DEFAULTS[asked] and list(map(type, defaults.values())) == [type(DEFAULTS[asked][k]) for k in defaults]


@pytest.mark.parametrize("module", CONSTANTS, ids=lambda m: m.__name__)
def test_constants_stay(module):
    assert {name: getattr(module, name) for name in CONSTANTS[module]} == CONSTANTS[module]
