"""Wrong calls of public functions: each argument in turn gets values that it does not take.

A call is clear if it is refused by an error of Python's own kinds whose text names the argument or shows the value,
unclear if it is refused in another way, silent if it is not refused at all.
"""
import contextlib, importlib, io, math, re, tempfile, warnings
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
import numpy as np
import pandas as pd
import torch
from torch import nn
from sparsedm.declare import load_papers

load_papers()
OF_PYTHON = (ValueError, TypeError, LookupError, OSError, ImportError)
UNCLEAR = re.compile(r"unsupported operand|object is not|not supported between|has no attribute|argument of type|"
                     r"must be real number|expected scalar|'NoneType'|not NoneType|but got NoneType|"
                     r"cannot unpack|positional argument|"
                     r"indices must be int|object cannot be|required argument|an integer is required|'<'|'>'")

# what an argument may not be, by its kind
NOT = dict(
    whole=(-1, 1.5, "3", None, True, math.nan),
    count=(-1, 0, 1.5, "3", None, True, math.nan),
    number=("x", None, True, math.nan, math.inf, 1j),
    positive=(0, -1, "x", None, True, math.nan, math.inf),
    share=(-.1, 1.5, "x", None, True, math.nan),
    below1=(-.1, 1., "x", None, True, math.nan),
    flag=("no", 2, None),
    name=("nosuch", 3, None, ["a"]),
    pattern=("banana", "3:2", "2:4:8", "0:4", 24, "-1:4", ["2:4"]),
    model=(None, "uvit", {"w": 1}, nn.Linear),
    weight=([[1., 2.]], np.ones((4, 8)), torch.ones(4, 8, dtype=torch.int8), None, "w", torch.ones(8)),
    images=(np.zeros((4, 1, 8, 8)), None, "digits", torch.zeros(4, 1, 8, 8)),
    states=(None, "digits", 3, [1, 2]),
    times=(-1., 2., math.nan, "0.5", None),
    shape=(3, "1x8x8", (1, -8, 8), (1, 8.5, 8), None, ()),
    seeds=("12", 3.5, None, [], [-1], [1.5]),
    device=("tpu", 3, "cuda"),
    path=("/nowhere/at/all", 3, None),
    function=(3, "f"),
    config=(None, 3, {}, {"kind": "nosuch"}),
    condition=(3, "labels", {"y": 3}, [1]),
    mapping=(3, "a", None, [1]),
    numbers=("x", None, 3j, ["a", "b", "c"], {}),
    vector=([1.], "x", torch.ones(3, 3), torch.ones(2), 3),
    words=(3, None, ["a"], b"x"),
)
NOT |= {"a run": (None, "dense-uvit-s0", {}, 3)}


@dataclass(frozen=True)
class Call:
    "A function, a call that is right, and the kinds of its arguments."
    where:str
    good:object     # () → arguments by name
    kinds:dict

    def function(self):
        module, name = self.where.rsplit(".", 1)
        return getattr(importlib.import_module(f"sparsedm.{module}"), name)


def call(where, good, **kinds): return Call(where, good, kinds)


def uvit(sparse=""):
    from sparsedm.models import build_model
    from sparsedm.ste import bake_, sparsify_
    torch.manual_seed(0)
    model = build_model("smoke")
    if sparse: sparsify_(model, "2:4", "ste")
    return bake_(model) if sparse == "baked" else model


@cache
def digits():
    from sparsedm.data import load_images
    return load_images("digits")


def config(**more):
    from sparsedm.training import TrainConfig
    return TrainConfig(2, 8, warmup=0, ema=.5, **more)


def recipe(**more): return {**dict(steps=2, batch_size=8), **more}
def adam(model): return torch.optim.AdamW(model.parameters(), lr=1e-3)


def sparse_and_optimizer():
    from sparsedm.ste import sparsify_
    model = sparsify_(uvit(), "2:4", "improved")
    return dict(optimizer=adam(model), model=model)


def make_run():
    from sparsedm.run import make_run
    return make_run("smoke", "ours")


def packed_linear():
    from sparsedm.cpu_linear import pack_rows
    return dict(x=torch.randn(2, 16), p=pack_rows(W * (W > 0)))


def packed_conv():
    from sparsedm.cpu_conv import pack_conv
    w = torch.randn(16, 8, 3, 3)
    return dict(x=torch.randn(1, 8, 6, 6), p=pack_conv(w * (w > 0)), stride=1, padding=1)


def packed_values():
    from sparsedm.packing import pack
    values, indices = pack(W * torch.tensor([1., 0, 0, 1]).repeat(4))
    return dict(values=values, indices=indices)


def mended():
    from sparsedm.no_data import own_samples
    samples = own_samples(uvit(), 4, (1, 8, 8), steps=2, progress=False)
    return dict(student=uvit("sparse"), teacher=uvit(), samples=samples, steps=1, batch_size=2)


W = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
X0, T, NOISE = torch.randn(2, 1, 8, 8), torch.tensor([.2, .7]), torch.randn(2, 1, 8, 8)
RUN = lambda **more: dict(scale="smoke", method="ours", **more)

CALLS = (
    call("masking.parse_pattern", lambda: dict(pattern="2:4"), pattern="pattern"),
    call("masking.nm_mask", lambda: dict(w=W, pattern="2:4"), w="weight", pattern="pattern"),
    call("masking.nm_weight", lambda: dict(w=W, pattern="2:4"), w="weight", pattern="pattern"),
    call("masking.transposable_mask", lambda: dict(w=W, pattern="2:4"), w="weight", pattern="pattern"),
    call("ste.NMSparse", lambda: dict(w=W, pattern="2:4", estimator="ste", lambda_w=0.), w="weight", pattern="pattern",
         estimator="name", lambda_w="number"),
    call("ste.sparsify_", lambda: dict(model=uvit(), pattern="2:4", estimator="ste", lambda_w=0., layers="paper"),
         model="model", pattern="pattern", estimator="name", lambda_w="number", layers="name"),
    call("ste.sparsify_", lambda: dict(model=uvit(), filter_fn=lambda m, n: True), filter_fn="function"),
    call("ste.bake_", lambda: dict(model=uvit("sparse")), model="model"),
    call("ste.sparsity_report", lambda: dict(model=uvit("sparse")), model="model"),
    call("ste.layer_report", lambda: dict(model=uvit("sparse")), model="model"),
    call("ste.add_masked_decay_", sparse_and_optimizer, optimizer="model", model="model", at="name"),
    call("layers.layer_patterns", lambda: dict(model=uvit(), targets="*"), model="model", targets="name"),
    call("like.sparsify_like_", lambda: dict(model=uvit(), like=uvit("sparse")), model="model", like="path"),
    call("like.sparsify_zeros_", lambda: dict(model=uvit("baked")), model="model"),
    call("transfer.transfer_loss", lambda: dict(teacher=uvit(), lambda_teacher=.1, lambda_noise=1., process="vp"),
         teacher="model", lambda_teacher="number", lambda_noise="number", process="name"),
    call("transfer.teacher_samples", lambda: dict(teacher=uvit(), n=2, shape=(1, 8, 8), seed=0, steps=2), n="count",
         shape="shape", seed="whole", steps="count", teacher="model"),
    call("dynamic.densities", lambda: dict(shapes={"w": (8, 16)}, sparsity=.5, topology="erk"), shapes="mapping",
         sparsity="below1", topology="name"),
    call("dynamic.layer_counts", lambda: dict(shapes={"w": (8, 16)}, sparsity=.5, topology="erk", group="row"),
         sparsity="below1", topology="name", group="name"),
    call("dynamic.Moves", lambda: dict(regrow="random", p=.5, anneal=True, every=10, until=.75), regrow="name",
         p="below1", anneal="flag", every="count", until="share"),
    call("dynamic.Topology", lambda: dict(sparsity=.5, steps=100, topology="erk", group="layer", seed=0),
         sparsity="below1", steps="count", topology="name", group="name", seed="whole"),
    call("dynamic.draw_masks", lambda: dict(weights={"w": W}, sparsity=.5, seed=0), weights="mapping",
         sparsity="below1", seed="whole"),
    call("dynamic.prune_and_regrow", lambda: dict(w=W, mask=torch.ones(8, 16).bool(), score=W.abs(), k=3), w="weight",
         mask="weight", score="weight", k="whole"),
    call("one_shot.one_shot_", lambda: dict(model=uvit(), pattern="2:4", method="wanda", images=digits(), seed=0, n=8,
         damping=.01, process="vp"), model="model", pattern="pattern", method="name", images="images", seed="whole",
         n="count", damping="positive", process="name"),
    call("no_data.own_samples", lambda: dict(model=uvit(), n=2, shape=(1, 8, 8), seed=0, steps=2), model="model",
         n="count", shape="shape", seed="whole", steps="count"),
    call("packing.pack", lambda: dict(w=W * torch.tensor([1., 0, 0, 1]).repeat(4)), w="weight"),
    call("packing.save_packed", lambda: dict(model=uvit("baked"), path=Path(tempfile.mkdtemp())/"a.safetensors"),
         model="model", dtype="name"),
    call("packing.load_packed", lambda: dict(path="x"), path="path"),
    call("checkpoints.save_model", lambda: dict(model=uvit(), path=Path(tempfile.mkdtemp())/"a.safetensors"),
         model="model"),
    call("checkpoints.load_model", lambda: dict(path="x"), path="path"),
    call("checkpoints.load_tensors", lambda: dict(path="x"), path="path"),
    call("diffusion.alpha_bar", lambda: dict(t=.5, process="vp"), t="times", process="name"),
    call("diffusion.beta", lambda: dict(t=.5, process="vp"), t="times", process="name"),
    call("diffusion.signal_and_noise", lambda: dict(t=.5, process="vp"), t="times", process="name"),
    call("diffusion.time_of", lambda: dict(sigma=.5, process="vp"), sigma="positive", process="name"),
    call("diffusion.q_sample", lambda: dict(x0=X0, t=T, noise=NOISE), x0="weight", t="times", noise="weight"),
    call("diffusion.noise_loss", lambda: dict(model=uvit(), x0=X0, t=T, noise=NOISE, reduction="mean"), x0="weight",
         t="times", noise="weight", reduction="name", process="name", model="model"),
    call("diffusion.initial_noise", lambda: dict(seeds=[1, 2], shape=(1, 8, 8)), seeds="seeds", shape="shape"),
    call("diffusion.sample", lambda: dict(model=uvit(), seeds=[0], shape=(1, 8, 8), sampler="ddim", steps=2,
         batch_size=2, process="vp"), model="model", seeds="seeds", shape="shape", sampler="name", steps="count",
         batch_size="count", process="name", device="device", cond="condition"),
    call("diffusion.discrete_betas", lambda: dict(n=10), n="count", process="name"),
    call("diffusion.to_uint8", lambda: dict(x=X0), x="weight"),
    call("models.build_model", lambda: dict(name="smoke", embed_dim=32, depth=2, num_heads=2), name="name",
         embed_dim="count", depth="whole", num_heads="count"),
    call("models.build_model", lambda: dict(name="digits-unet", layers=1), layers="count"),
    call("models.build_from_config", lambda: dict(config=dict(kind="uvit")), config="config"),
    call("official.load_official", lambda: dict(name="x", preset="uvit-s-cifar10"), name="path", preset="name"),
    call("data.load_images", lambda: dict(name="digits", split="train"), name="name", split="name"),
    call("data.batch_indices", lambda: dict(n=10, batch_size=2, step=0, seed=0), n="count", batch_size="count",
         step="whole", seed="whole"),
    call("data.image_grid", lambda: dict(images=digits().images[:4], ncol=2, scale=2, pad=1), images="images",
         ncol="count", scale="positive", pad="whole"),
    call("data.random_flip", lambda: dict(x=X0), x="weight"),
    call("metrics.frechet_distance", lambda: dict(x=W, g=W), x="weight", g="weight"),
    call("metrics.evaluate", lambda: dict(samples=digits().images[:40], reference=digits().images[40:100],
         metrics=("fid",), seed=0, extractor="digits-cnn"), samples="images", reference="images", extractor="name",
         metrics="name", device="device", seed="whole"),
    call("metrics.score_floor", lambda: dict(name="digits", n=100, metrics=("fid",)), name="name", n="count"),
    call("metrics.paired_distance", lambda: dict(a=digits().images[:4], b=digits().images[4:8]), a="images",
         b="images"),
    call("macs.count_macs", lambda: dict(model=uvit(), x_shape=(1, 1, 8, 8), pattern="2:4"), model="model",
         x_shape="shape", pattern="pattern"),
    call("training.TrainConfig", recipe, steps="count", batch_size="count", lr="positive", warmup="whole",
         weight_decay="number", ema="below1", flip="flag", seed="whole", compile="flag", decay="name",
         cooldown="share", loss_scale="positive", process="name", betas="name"),
    call("training.train", lambda: dict(model=uvit(), images=digits(), cfg=config(), progress=False, save_every=5,
         log_every=5), model="model", images="images", cfg="config", save_every="count", log_every="count",
         loss_fn="function", cond="condition", hooks="path"),
    call("progressive.SwitchPatterns", lambda: dict(patterns=("3:4", "2:4"), steps=10, released=False),
         patterns="name", steps="count", released="flag"),
    call("diff_pruning.diff_pruning", lambda: dict(model=uvit(), images=digits(), like="2:4", n=4, threshold=.05),
         model="model", images="images", like="pattern", n="count", threshold="share"),
    call("run.make_run", RUN, scale="name", method="name", seed="whole", backbone="name", pattern="pattern",
         lr="positive", steps="whole", batch_size="count", train_on="name", lambda_w="number", ema="share",
         sampler="name", extractor="name", n_samples="count", decay="name", options="mapping", warmup="whole",
         lambda_teacher="number", estimator="name", one_shot="name", layers="name", cooldown="share"),
    call("run.runs_of", lambda: dict(scale="smoke", name="fig3"), scale="name", name="name"),
    call("run.find_run", lambda: dict(text="dense-uvit-s0", scale="smoke"), text="name", scale="name"),
    call("graph.run_graph", lambda: dict(scale="smoke", cores=1, dry_run=True), scale="name", cores="whole",
         names="name"),
    call("graph.make_plan", lambda: dict(runs=[], cores=1), cores="count"),
    call("experiments.drive", lambda: dict(scale="smoke", minutes=1e-9, names=()), scale="name", minutes="positive",
         names="name"),
    call("strokes.to_sequence", lambda: dict(strokes=[np.ones((3, 2)).cumsum(0)], spacing=.1), strokes="states",
         spacing="positive"),
    call("strokes.rasterise", lambda: dict(x=torch.zeros(1, 4, 3), mask=torch.ones(1, 4).bool(), size=28, width=1.6),
         x="weight", mask="weight", size="count", width="positive"),
    call("strokes.stroke_masks", lambda: dict(n=2, seed=0), n="count", seed="whole"),
    call("latent.small_autoencoder", lambda: dict(name="digits-latent"), name="name"),
    call("pairs.power", lambda: dict(true=.1, sd=.1, n=3), sd="positive", n="count", true="number"),
    call("pairs.detectable", lambda: dict(sd=.1, n=3), sd="positive", n="count"),
    call("share.load_shared", lambda: dict(path="x"), path="path"),
    call("share.save_shared", lambda: dict(model=uvit("baked"), folder=tempfile.mkdtemp(), licence="mit"),
         model="model"),
    call("exchange.load_others_", lambda: dict(model=uvit(), path="x"), model="model", path="path"),
    call("accelerate.accelerate_", lambda: dict(model=uvit("baked"), inputs=(X0, T), compile=False, progress=False),
         model="model", inputs="states", kwargs="condition"),
    call("accelerate.pattern_of", lambda: dict(w=W), w="weight"),
    call("accelerate.layer_inputs", lambda: dict(model=uvit(), x=X0, t=T), model="model"),
    call("checkpoints.save_tensors", lambda: dict(path=Path(tempfile.mkdtemp())/"a.safetensors", tensors={"w": W}),
         tensors="mapping"),
    call("checkpoints.load_state", lambda: dict(model=uvit(), state=uvit().state_dict(), path="x"), model="model",
         state="mapping"),
    call("cpu_conv.pack_conv", lambda: dict(w=torch.randn(16, 8, 3, 3), channels=0), w="weight", channels="whole"),
    call("cpu_conv.sparse_conv2d", packed_conv, x="weight", bias="vector", stride="count", padding="whole"),
    call("cpu_linear.pack_rows", lambda: dict(w=W, block=0), w="weight", block="whole"),
    call("cpu_linear.sparse_linear", packed_linear, x="weight", p="model", bias="vector"),
    call("cpu_training.trained_linear", lambda: dict(x=torch.randn(2, 16), w=W), x="weight", w="weight", bias="vector"),
    call("cpu_training.train_sparse_", lambda: dict(model=uvit("baked")), model="model"),
    call("cpu_scratch.entries_", lambda: dict(model=uvit(), masks={}), model="model", masks="mapping"),
    call("cpu_scratch.plain_", lambda: dict(model=uvit()), model="model"),
    call("data.to_float", lambda: dict(images=digits().images[:2]), images="images"),
    call("diff_pruning.taylor_", lambda: dict(model=uvit(), images=digits(), n=4, times=2, seed=0, threshold=.05),
         model="model", images="images", n="count", times="count", seed="whole", threshold="share", process="name"),
    call("diff_pruning.half_size", lambda: dict(config=uvit().config), config="config"),
    call("diffusion.process", lambda: dict(name="vp"), name="name"),
    call("diffusion.draw_times", lambda: dict(u=T, process="vp"), u="times", process="name"),
    call("diffusion.model_time", lambda: dict(t=T, process="vp"), t="times", process="name"),
    call("diffusion.predict_noise", lambda: dict(model=uvit(), x_t=X0, t=T), model="model", x_t="weight", t="times",
         process="name", cond="condition"),
    call("diffusion.scheduler", lambda: dict(sampler="ddim", process="vp"), sampler="name", process="name"),
    call("dynamic.maskable", lambda: dict(model=uvit()), model="model"),
    call("dynamic.counts", lambda: dict(shapes={"w": (8, 16)}, sparsity=.5, topology="erk"), shapes="mapping",
         sparsity="below1", topology="name"),
    call("exchange.export_onnx", lambda: dict(model=uvit(), path=Path(tempfile.mkdtemp())/"a.onnx"), model="model"),
    call("exchange.read_state", lambda: dict(path="x"), path="path"),
    call("graph.cost_of", lambda: dict(runs=[make_run()], cores=2), runs="states", cores="count"),
    call("graph.gather", lambda: dict(scale="smoke", name="fig3", build=False), scale="name", name="name"),
    call("graph.ensure", lambda: dict(runs=[], build=False), runs="states"),
    call("graph.to_draw", lambda: dict(scale="smoke", names=()), scale="name", names="name"),
    call("experiments.wanted_runs", lambda: dict(scale="smoke", names=()), scale="name", names="name"),
    call("like.zeros_pattern", lambda: dict(w=W), w="weight"),
    call("macs.macs_summary", lambda: dict(model=uvit(), x_shape=(1, 1, 8, 8)), model="model", x_shape="shape",
         pattern="pattern"),
    call("metrics.reference_features", lambda: dict(images=digits().images[:40], extractor="digits-cnn",
         progress=False), images="images", extractor="name", device="device"),
    call("models.model_input", lambda: dict(config=uvit().config, batch=1, seed=0), config="config", batch="count",
         seed="whole", device="device"),
    call("no_data.mend", mended, student="model", teacher="model", samples="images", steps="count", lr="positive",
         batch_size="count", lambda_teacher="number", process="name", seed="whole"),
    call("one_shot.permute_channels_", lambda: dict(model=uvit(), rounds=1), model="model", rounds="count"),
    call("packing.unpack", packed_values, values="weight", indices="weight"),
    call("packing.why_not_24", lambda: dict(w=W), w="weight"),
    call("pairs.effect", lambda: dict(x=pd.Series([.1, .2, .3])), x="numbers"),
    call("pairs.sign_flip", lambda: dict(x=[.1, .2, .3]), x="numbers"),
    call("pairs.holm", lambda: dict(p=[.01, .2]), p="numbers"),
    call("pairs.pairs_needed", lambda: dict(true=.1, sd=.1, most=100), true="number", sd="positive", most="count"),
    call("records.read_record", lambda: dict(run=make_run()), run="a run"),
    call("records.read_records", lambda: dict(runs=[]), runs="states"),
    call("records.check_record", lambda: dict(record={}), record="mapping"),
    call("execute.do_run", lambda: dict(run=make_run()), run="a run", deadline="numbers"),
    call("rules.on_meta", lambda: dict(preset="smoke"), preset="name"),
    call("share.model_card", lambda: dict(model=uvit("baked"), licence="mit"), model="model", licence="words"),
    call("share.denoiser_of", lambda: dict(folder=tempfile.mkdtemp()), folder="path"),
    call("ste.sparse_layers", lambda: dict(model=uvit()), model="model"),
    call("ste.sparsity_config", lambda: dict(model=uvit("sparse")), model="model"),
    call("strokes.svg_strokes", lambda: dict(text="<svg/>"), text="words"),
    call("strokes.to_strokes", lambda: dict(sequence=torch.zeros(4, 3)), sequence="weight"),
    call("strokes.padded", lambda: dict(sequences=[torch.zeros(4, 3)]), sequences="numbers"),
    call("strokes.kanji", lambda: dict(split="train", spacing=.1, most=160), split="name", spacing="positive",
         most="count"),
    call("strokes.read_ndjson", lambda: dict(path="x"), path="path"),
    call("training.learning_rate", lambda: dict(cfg=config(), step=0), cfg="config", step="whole"),
    call("training.load_checkpoint", lambda: dict(path="x", now=None), path="path"),
    call("transfer.transfer_term", lambda: dict(student=X0, teacher=NOISE), student="weight", teacher="weight"),
    call("verdicts.records_of", lambda: dict(scale="smoke"), scale="name"),
)

# allowed, and why
ALLOWED = {
    ("diffusion.time_of", "sigma", "0"): "no noise is time 0",
    ("diffusion.initial_noise", "seeds", "[-1]"): "a seed of 64 bits may have a sign",
    ("diffusion.sample", "seeds", "[-1]"): "a seed of 64 bits may have a sign",
    ("diffusion.sample", "steps", "None"): "the sampler's own number",
    ("diffusion.to_uint8", "x", repr(torch.ones(8))): "pictures of any shape",
    ("data.image_grid", "scale", "None"): "to at least 32 pixels",
    ("metrics.score_floor", "n", "None"): "all",
    ("ste.sparsify_", "layers", "None"): "the rule for the model",
    ("layers.layer_patterns", "targets", "None"): "the rule for the model",
    ("experiments.drive", "minutes", "inf"): "until all is done",
    ("pairs.detectable", "sd", "0"): "pairs that do not differ see everything",
    ("pairs.power", "n", "0"): "no pair finds anything",
    ("pairs.detectable", "n", "0"): "no pair finds anything",
    ("share.denoiser_of", "folder", "'/nowhere/at/all'"): "'.' of all that is no pipeline",
} | {(where, "w", repr(w)): "zeros of numbers of any kind and shape are counted"
     for where in ("accelerate.pattern_of", "like.zeros_pattern", "packing.why_not_24")
     for w in (torch.ones(4, 8, dtype=torch.int8), torch.ones(8))} | {
}


def outcome(made, name, value):
    "silent, clear or unclear, and what was said."
    given = made.good() | {name: value}
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made.function()(**given)
    except OF_PYTHON as e:
        said = f"{type(e).__name__}: {e}"
        return ("unclear" if UNCLEAR.search(str(e)) or not str(e) else "clear"), said
    except Exception as e: return "unclear", f"{type(e).__name__}: {e}"
    except SystemExit as e: return "unclear", f"SystemExit: {e}"
    return "silent", ""


def attempts():
    for made in CALLS:
        for name, kind in made.kinds.items():
            for value in NOT[kind]: yield made, name, value


def counts(every=1):
    "How attempts ended, all or one in so many; those that were not clear are printed."
    counts = dict(clear=0, unclear=0, silent=0, allowed=0)
    for made, name, value in islice(attempts(), 0, None, every):
        how, said = outcome(made, name, value)
        shown = repr(value).replace("\n", " ")[:40]
        if how == "silent" and (made.where, name, repr(value)) in ALLOWED: how = "allowed"
        counts[how] += 1
        if how in ("silent", "unclear"): print(f"{how:8} {made.where}({name}={shown}) {said[:150]!r}", flush=True)
    return {how: n for how, n in counts.items() if n}
