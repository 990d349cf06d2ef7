"""Wrong calls of public functions: each argument in turn gets values that it does not take.

A call is clear if it is refused by an error of Python's own kinds whose text names the argument or shows the value,
unclear if it is refused in another way, silent if it is not refused at all.
"""
import contextlib, io, math, re, tempfile, warnings
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from pkgutil import resolve_name
import numpy as np
import pandas as pd
import torch
from torch import nn
from layouts import LAYOUTS, lay
from sparsedm.data import States
from sparsedm.declare import load_papers

load_papers()
OF_PYTHON = (ValueError, TypeError, LookupError, OSError, ImportError)
UNCLEAR = re.compile(r"unsupported operand|object is not|not supported between|has no attribute|argument of type|"
                     r"must be real number|expected scalar|'NoneType'|not NoneType|but got NoneType|"
                     r"cannot unpack|positional argument|unhashable|"
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
# where data, published weights and conditions come in; a path of None is often the usual one
LONG = "x" * 300
NOT |= {
    "file name": ("../x", "/x", "", "a/b", "a\nb", "a\0b", "..", ".hidden", LONG, 3, None),
    "a path": ("/nowhere/at/all", "", "a\nb", "a\0b", LONG, 3, True, b"x", ["x"]),
    "here": ("", "a\nb", 3, True, None, b"x", ["x"]),   # not what the Hub would be asked for
    "part": ("nosuch", "../train", "", "a\nb", LONG, 3, None, ["train"]),
    "folder to write": ("", "a\nb", "a\0b", LONG, "/dev/null/x", 3, None, True),
    "side": (0, -8, 8.5, "8", None, True),
    "key": ((), (1.5,), ("3",), (None,), (True,), (-1,), (2**64,), (math.nan,), ([1],)),
    "null": (None, {}, 3, {"z": 1}, {"y": -1}, {"y": 11}, {"y": 1.5}, {"y": "a"}, {"y": [1, 2]}, {"y": None},
             {"y": True}, {3: 1}, {"y": math.nan}),
    "any null": (None, {}, 3, {"y": "a"}, {"y": None}, {"y": True}, {3: 1}, {"y": math.nan}, {"../y": 1}),
    "told rows": ({}, 3, ["y"], {"y": torch.tensor([[1], [2]])}, {"y": torch.tensor([1., 2.])}, {"z": torch.tensor([1, 2])}),
    "told": ({}, {"y": None}, {"y": [1, 2]}, {"y": torch.tensor([1])}, {"y": torch.tensor([[1], [2]])},
             {"y": torch.tensor([1., 2.])}, {"y": torch.tensor([-1, 2])}, {"y": torch.tensor([1, 11])},
             {"y": torch.tensor([1, 2]), "context": torch.zeros(2, 77, 16)}, {"z": torch.tensor([1, 2])}),
    "options": (None, 3, ["cond"], {}, {"cond": "nosuch"}, {"cond": 3}, {"cond": ["labels"]}, {"cond": "words"}, {"cond": ""},
                *({"cond": "labels", "drop": p, "guidance": 1.} for p in (-.1, 1.5, "x", None, True, 0., math.nan)),
                *({"cond": "labels", "drop": .1, "guidance": s} for s in (-.1, "x", None, True, math.nan, math.inf))),
    "shapes": (3, "a", None, [1], {"w": 3}, {3: (1, 2)}, {"w": "12"}),
    "texts": ("one text", None, 3, [], [3], [None], {"a": 1}),
    "rows": (3, "f", None, lambda numbers: None, lambda numbers: {}, lambda numbers: dict(labels=torch.ones(len(numbers))),
             lambda numbers: dict(values=np.ones(len(numbers))), lambda numbers: dict(values=torch.ones(1)),
             lambda numbers: dict(values=torch.tensor(1.)), lambda numbers: dict(values=torch.ones(len(numbers)) * math.nan),
             lambda numbers: dict(values=torch.ones(len(numbers), dtype=torch.complex64)),
             lambda numbers: dict(values=torch.ones(len(numbers), 1 + numbers[0] // 8)),
             lambda numbers: dict(values=torch.ones(len(numbers)).to(torch.float64 if numbers[0] else torch.float32)),
             lambda numbers: {name: torch.ones(len(numbers), 2) for name in ("values", "more")[:1 + (numbers[0] > 0)]},
             lambda numbers: {"values": torch.ones(len(numbers), 2), 3: torch.ones(len(numbers))}),
    "recipe": (3, "a", None, [1], {"a": math.nan}, {"a": {1, 2}}, {3: "a"}, {"a": (1,)}, {"a": torch.ones(2)}),
    "index": (100, -100, 1.5, "ab", None, [1.5], [100], True, torch.tensor([.5])),
    "numbers of images": (3, "ab", None, [1.5], [100], [-1], [True], [], torch.tensor([.5])),
    "labels": (3, "ab", [0] * 4, torch.zeros(3).long(), torch.zeros(4), torch.full((4,), -1), torch.zeros(4, 1).long()),
    "captions": (3, "abcd", None, (("a",),) * 3, ("a",) * 4, ((),) * 4),
    "counts": (3, None, {}, {"train": -1}, {"train": "4"}, {"train": True}, {3: 4}, {"../x": 4}),
    "sums": (3, None, {"a": 3}, {"../a": "0" * 32}, {"/a": "0" * 32}, ["a"]),
    "splits": (3, None, {}, ["train"], {"../x": "train"}, {"train": 3}, {"": "train"}, {"a\nb": "train"}),
    "folder in": ("../x", "/x", "", "a\nb", "a\0b", 3, None),
    "row": (3, None, "nosuch", {}),
}
NOT |= {"a run": (None, "dense-uvit-s0", {}, 3)}


@dataclass(frozen=True)
class Call:
    "A function or method, a call that is right, and the kinds of its arguments; `key` is for a `*key`."
    where:str
    good:object     # () → arguments by name
    kinds:dict

    def do(self, given):
        return resolve_name(f"sparsedm.{self.where}")(*given.pop("*key", ()), **given)


def call(where, good, **kinds): return Call(where, good, kinds)


def uvit(sparse=""):
    from sparsedm.models import build_model
    from sparsedm.ste import bake_, sparsify_
    torch.manual_seed(0)
    model = build_model("smoke")
    if sparse: sparsify_(model, "2:4", "ste")
    return bake_(model) if sparse == "baked" else model


def smoke_run():
    from sparsedm.run import make_run
    return make_run("smoke", "ours")


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


@cache
def official_file():
    path = Path(tempfile.mkdtemp())/"nnet.pth"
    torch.save(uvit().state_dict(), path)
    return path


def shapes_of(preset):
    from sparsedm.official import shapes_of
    return shapes_of(preset)


def ddpm_config():
    from sparsedm.declare import PRESETS
    from sparsedm.models import diffusers_arguments
    config = diffusers_arguments(PRESETS.named("ddpm-cifar10"))
    return dict(config=dict(config, _class_name="UNet2DModel"), preset="ddpm-cifar10", source="x")


@cache
def toy_data():
    return lay(Path(tempfile.mkdtemp()))


def opened_source(**more):
    from sparsedm.sources import open_source
    return open_source(**dict(name="toy-classes", split="train", size=8, path=toy_data()) | more)


def listed(**more):
    names = tuple(f"train/n{i % 2}/{i}.png" for i in range(4))
    return dict(names=names, read=lambda i: toy_data()/"classes"/names[i], labels=None, captions=()) | more


def numbers(numbers): return dict(values=torch.tensor(numbers).float()[:, None], labels=torch.tensor(numbers))


def written(**more): # arguments of write_shards
    return dict(folder=Path(tempfile.mkdtemp())/"new", rows=20, rows_of=numbers, recipe=dict(made="numbers"), per_shard=8,
                batch=4, progress=False) | more


def write_toy(folder):
    from sparsedm.shards import write_shards
    return write_shards(**written(folder=folder))


@cache
def shard_folder(): return write_toy(Path(tempfile.mkdtemp())/"shards")


def shards():
    from sparsedm.shards import open_shards
    return open_shards(shard_folder())


def prepared(**more):
    from sparsedm.prepare import pixels
    toy_data()
    return dict(name="toy-8", source="toy-classes", size=8, splits=dict(train="train"), make=pixels, codec="pixels", flip=False,
                text="", batch=64) | more


def prepared_row():
    from sparsedm.prepare import PREPARED, Prepared, declare
    if "toy-8" not in PREPARED: declare(Prepared(**prepared()))
    return PREPARED["toy-8"]


def to_prepare():
    return dict(name=prepared_row().name, split="train", path=toy_data(), device="cpu", per_shard=3, progress=False)


@cache
def labelled():
    from sparsedm.models import build_model
    torch.manual_seed(0)
    return build_model("smoke-labels")


def guided_model():
    from sparsedm.guidance import Guided
    return Guided(labelled(), 1., dict(y=10))


def drop():
    from sparsedm.guidance import Drop
    return Drop(.5, dict(y=10))


def told_run():
    from sparsedm.run import make_run
    return make_run("smoke-cond", "dense", backbone="labels")


def told_run_scale():
    from sparsedm.declare import SCALES
    return SCALES.named("smoke-cond")


COND = dict(y=torch.tensor([1, 2]))
SMALL_SHAPES = {"w": (8, 16)}
LATENT = torch.randn(2, 3, 4, 4)
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
    # published weights
    call("declare.scales_of", lambda: dict(name="smoke"), name="name"),
    call("overview.plan_page", lambda: dict(name="smoke"), name="name"),
    call("overview.status_page", lambda: dict(name="smoke", most=3), name="name", most="whole"),
    call("overview.lacking", lambda: dict(scale="smoke"), scale="name"),
    call("overview.measured_rate", lambda: dict(scale="smoke"), scale="name"),
    call("overview.network_cost", lambda: dict(preset="smoke"), preset="name"),
    call("overview.cost_of_run", lambda: dict(run=smoke_run()), run="a run"),
    call("verify.kept_runs", lambda: dict(scales=["smoke"]), scales="words"),
    call("verify.verify", lambda: dict(n=1, seed=0, scales=["smoke"]), n="count", seed="whole", scales="words"),
    call("verify.made_again", lambda: dict(run=smoke_run()), run="a run"),
    call("crate.write_crate", lambda: dict(scale="smoke", folder="nowhere"), scale="name", folder="folder to write"),
    call("official.find_official", lambda: dict(given=official_file()), given="a path"),
    call("official.load_official", lambda: dict(name=official_file(), preset=None, local_files_only=True), name="a path",
         local_files_only="flag"),
    call("official.load_official", lambda: dict(name=official_file(), preset="smoke"), preset="part"),
    call("official.read_state", lambda: dict(path=official_file()), path="a path"),
    call("official.shapes_of", lambda: dict(preset="smoke"), preset="name"),
    call("official.differences", lambda: dict(preset="smoke", shapes=SMALL_SHAPES), preset="name", shapes="shapes"),
    call("official.fitting", lambda: dict(shapes=SMALL_SHAPES), shapes="shapes"),
    call("official.looks_like", lambda: dict(shapes=SMALL_SHAPES), shapes="shapes"),
    call("official.preset_for", lambda: dict(shapes=shapes_of("smoke"), preset="smoke", path="x"), shapes="shapes",
         preset="part"),
    call("official.unet_preset", ddpm_config, config="mapping", preset="part"),
    # sources of images
    call("sources.open_source", lambda: dict(name="toy-classes", split="train", size=8, path=toy_data()), name="part",
         split="part", size="side", path="a path"),
    call("sources.Source", lambda: dict(name="toy-2", list=print, folder="toy", counts=dict(train=4), how="It is made.",
         sums={}), name="file name", list="function", folder="folder in", counts="counts", how="words", sums="sums"),
    call("sources.Source", lambda: dict(name="toy-2", list=print, folder="toy", counts=dict(train=4), how="It.", crop=8),
         crop="side"),
    call("sources.Listing", listed, names="words", read="function", labels="labels", captions="captions", classes="words"),
    call("sources.Pictures", lambda: dict(source=opened_source().source, split="train", size=8, listing=opened_source().listing),
         source="row", split="part", size="side", listing="row"),
    call("sources.Pictures.__getitem__", lambda: dict(self=opened_source(), index=[0, 1]), index="numbers of images"),
    *(call(f"sources.{layout.__name__}", lambda name=name: dict(folder=toy_data()/name, split="train"), folder="a path",
           split="part") for name, layout in LAYOUTS.items() if name != "flat"),
    call("sources.imagenet", lambda: dict(folder=toy_data()/"classes", split="train"), folder="a path", split="part"),
    call("sources.image_folder", lambda: dict(folder=toy_data()/"flat", split="train"), folder="a path"),
    # shards
    call("shards.write_shards", written, folder="folder to write", rows="count", rows_of="rows", recipe="recipe",
         per_shard="count", batch="count", progress="flag"),
    call("shards.open_shards", lambda: dict(folder=shard_folder(), name="n", split="train", verify=True), folder="a path",
         name="words", split="words", verify="flag"),
    call("shards.Shards.column", lambda: dict(self=shards(), name="labels"), name="part"),
    call("shards.Column", lambda: dict(shards=shards(), name="labels"), shards="row", name="part"),
    call("shards.Shards.read", lambda: dict(self=shards(), name="labels", index=[0]), name="part", index="index"),
    call("shards.Shards.take", lambda: dict(self=shards(), index=torch.tensor([3])), index="index"),
    call("shards.Shards.drawn", lambda: dict(self=shards(), index=[3], generator=None), index="index", generator="path"),
    # what is prepared
    call("prepare.Prepared", prepared, name="file name", source="part", size="side", splits="splits", make="function",
         codec="part", flip="flag", text="words", batch="count"),
    call("prepare.prepare", to_prepare, name="part", split="part", path="a path", device="device", per_shard="count",
         progress="flag"),
    call("prepare.folder_of", lambda: dict(row=prepared_row(), split="train"), row="row", split="part"),
    call("prepare.declare", lambda: dict(row=prepared_row()), row="row"),
    call("prepare.pixels", lambda: dict(pictures=opened_source(), device="cpu"), pictures="row"),
    call("prepare.load_autoencoder", lambda: dict(name="x"), name="here", subfolder="words"),
    call("prepare.latents", lambda: dict(name="x"), name="here", subfolder="words"),
    call("prepare.TextEncoder", lambda: dict(name="x"), name="here", device="device"),
    call("prepare.with_text", lambda: dict(make=prepared()["make"], name="x", captions=5), make="function", name="here",
         captions="count"),
    call("prepare.add_codec", lambda: dict(name="toy-codec", autoencoder="x"), name="file name", autoencoder="here",
         subfolder="words"),
    # what a network is told
    call("guidance.null_of", lambda: dict(null=dict(y=10), model=labelled()), null="null", model="words"),
    call("guidance.null_of", lambda: dict(null=dict(y=10), model=uvit()), null="null"),
    call("guidance.Guided", lambda: dict(model=labelled(), scale=1., null=dict(y=10)), model="mapping", scale="number",
         null="null"),
    call("diffusion.predict_noise", lambda: dict(model=guided_model(), x_t=LATENT, t=T, cond=COND), cond="told", t="times",
         x_t="weight"),
    call("diffusion.sample", lambda: dict(model=guided_model(), seeds=[0, 1], shape=(3, 4, 4), steps=2, cond=COND,
         progress=False), cond="told"),
    call("guidance.Drop", lambda: dict(p=.5, null=dict(y=10)), p="share", null="any null"),
    call("guidance.Drop.check", lambda: dict(self=drop(), model=labelled(), cond=COND), model="row", cond="told rows"),
    call("training.train", lambda: dict(model=labelled(), images=States(torch.zeros(9, 3, 4, 4)), cfg=config(), progress=False,
         cond=dict(y=torch.arange(9)), drop=drop()), cond="told", drop="row"),
    call("conditions.word_features", lambda: dict(texts=["a"], width=16), texts="texts", width="count"),
    call("conditions.captions", lambda: dict(data=digits()), data="row"),
    *(call(f"conditions.{name}", lambda: dict(run=told_run()), run="a run")
      for name in ("condition_of", "told_rows", "drop_of")),
    call("conditions.told_rows", lambda: dict(run=told_run(), split="train"), split="part"),
    call("conditions.told_samples", lambda: dict(run=told_run(), n=3), run="a run", n="count"),
    call("conditions.guided", lambda: dict(model=labelled(), run=told_run()), model="model", run="a run"),
    call("conditions.check_told", lambda: dict(model="smoke-labels", options=dict(cond="labels")), model="part",
         options="options"),
    call("run.make_run", lambda: dict(scale="smoke-cond", method="ours", backbone="labels"), options="options"),
    call("papers.sparsedm_conditional.guided_by", lambda: dict(run=told_run(), scale=3.), run="a run", scale="number"),
    call("papers.sparsedm_conditional.is_conditional", lambda: dict(scale=told_run_scale()), scale="row"),
    call("seeds.mixed_seed", lambda: {"*key": (1, 2)}, **{"*key": "key"}),
    call("seeds.seeded", lambda: {"*key": (1, 2), "device": "cpu"}, **{"*key": "key", "device": "device"}),
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
    ("official.load_official", "preset", "None"): "any that fits",
    ("official.preset_for", "preset", "None"): "any that fits",
    ("official.unet_preset", "preset", "None"): "any that fits",
    ("sources.Source", "crop", "None"): "the largest square",
    ("guidance.null_of", "model", "None"): "any",
    ("guidance.Drop.check", "model", "None"): "any",
    ("training.train", "drop", "None"): "nothing is left out",
    ("run.make_run", "options", "{}"): "those of the network",
    ("shards.Shards.drawn", "generator", "None"): "the mean is taken",
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
            made.do(given)
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
