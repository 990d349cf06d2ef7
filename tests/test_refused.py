"""Wrong calls that look right, and what each is told."""
import math
from unittest.mock import patch
import numpy as np
import pytest, torch
from safetensors import SafetensorError
from sparsedm import checkpoints
from sparsedm.accelerate import parity
from sparsedm.checkpoints import kept_tensor, load_state, save_model, save_tensors
from sparsedm.conditions import word_features
from sparsedm.cpu_scratch import entries_
from sparsedm.data import Images, States, load_images
from sparsedm.diff_pruning import taylor_
from sparsedm.diffusion import clean_of, noise_loss, noise_of, predict, process, q_sample
from sparsedm.dynamic import densities, draw_masks, grouped
from sparsedm.files import atomic_write
from sparsedm.guidance import Drop, Guided
from sparsedm.models import build_model
from sparsedm.one_shot import one_shot_
from sparsedm.pairs import effect, holm, power
from sparsedm.run import make_run
from sparsedm.shards import write_shards
from sparsedm.ste import sparsify_
from sparsedm.strokes import padded

X, T = torch.randn(2, 1, 8, 8), torch.tensor([.2, .7])
BYTES = (X > 0).byte()


def smoke(**more): return build_model("smoke", depth=0, **more)
def columns(first): return lambda rows: dict(values=torch.zeros(len(rows), 3 if rows[0] < 2 else first))


@pytest.mark.parametrize("why, call", [
    ("x0 must be a tensor of floating-point numbers; got Tensor torch.uint8", lambda tmp: q_sample(BYTES, T, X)),
    ("noise must be a tensor of floating", lambda tmp: q_sample(X, T, BYTES)),
    ("x0 must be a tensor of floating", lambda tmp: noise_loss(smoke(), BYTES, T, X)),
    ("x_t must be a tensor of floating", lambda tmp: predict(smoke(), BYTES, T)),
    (r"out: shape \(2, 1, 8, 8\) of x_t expected, got \(1, 1, 8, 8\)", lambda tmp: noise_of(X[:1], X, T, "flow")),
    ("out: shape", lambda tmp: clean_of(X[:1], X, T)),
    (r"beta must be two numbers from 0, not both 0; got \(-1.0, -2.0\)", lambda tmp: process("vp", beta=(-1., -2.))),
    (r"null\['y'\] must be a label; got 9.5", lambda tmp: Guided(smoke(num_classes=11), 1., dict(y=9.5))),
    (r"null\['y'\] must be torch.int64", lambda tmp: Drop(1., dict(y=9.5))(dict(y=torch.tensor([1, 2])), 0)),
    ("cond must be a dict of tensors, at least one; got {}", lambda tmp: Drop(1., dict(y=9))({}, 0)),
    ("group is 4, which does not divide the 6 inputs", lambda tmp: grouped(torch.randn(4, 6), 4)),
    ("weights must be a dict of weights, see maskable", lambda tmp: draw_masks({"a": (8, 16)}, .5)),
    ("shapes must be a dict of shapes of weights", lambda tmp: densities({"a": torch.randn(4, 4)}, .5)),
    ("sampler 'ddpm' needs a process of discrete steps", lambda tmp: make_run("smoke", "ours", sampler="ddpm")),
    ("unknown process 'nosuch'", lambda tmp: make_run("smoke", "ours", options=dict(process="nosuch"))),
    ("sampler_steps must be at most 1000; got 1001",
     lambda tmp: make_run("smoke", "ours", sampler_steps=1001, options=dict(process="linear"))),
    ("values must be a tensor; got array", lambda tmp: States(np.zeros((4, 8)))),
    (r"labels must be None or a tensor; got \[0, 1\]", lambda tmp: Images(BYTES, [0, 1], "a", "train")),
    ("tensors must be a dict of tensors in memory", lambda tmp: save_tensors(tmp/"a", {"a": np.zeros(3)})),
    ("path must be the path of a file or folder; got None", lambda tmp: save_model(smoke(), None)),
    ("made must be a tensor; got array", lambda tmp: kept_tensor(tmp/"a", lambda: np.zeros(3))),
    ("a holds w; restore it", lambda tmp: kept_tensor(save_tensors(tmp/"a", {"w": X}))),
    ("types differ, such as", lambda tmp: load_state(smoke(), {k: v.int() for k, v in smoke().state_dict().items()}, "a")),
    (r"has columns .*'float32', 4\]}, the one before .*'float32', 3\]}",
     lambda tmp: write_shards(tmp, 4, columns(4), {}, per_shard=2, progress=False)),
    ('a function that gives a dict of tensors, among them "values"',
     lambda tmp: write_shards(tmp, 4, lambda rows: torch.zeros(len(rows), 3), {}, progress=False)),
    ("no parameter requires a gradient", lambda tmp: taylor_(smoke().requires_grad_(False), load_images("digits"), 4, 2)),
    ("mask must be a tensor; got", lambda tmp: entries_(smoke(), {"mid_block.mlp.fc1.weight": [True]})),
    ("fast must be a Replay; got UViT", lambda tmp: parity(smoke(), smoke(), (X, T))),
    (r"texts must be a list or tuple, not empty, each of it a text; got \[3\]", lambda tmp: word_features([3])),
    ("p must be a list of numbers from 0 to 1", lambda tmp: holm([.1, 3.])),
    ("level must be a number above 0 below 1; got 95", lambda tmp: power(.1, .1, 9, level=95)),
    ("x must be a list or series of finite numbers", lambda tmp: effect([.1, math.nan, .2])),
    ("exclude: no Linear or Conv layer is called ''", lambda tmp: sparsify_(smoke(), exclude="")),
    ("cond must be None or a dict; got", lambda tmp: one_shot_(smoke(), method="wanda", images=load_images("digits"), cond=[X])),
    (r"points must be \(N, T, 3\)", lambda tmp: padded([torch.zeros(3, 2)])),
])
def test_what_looks_right_and_is_not_is_refused(tmp_path, why, call):
    with pytest.raises((ValueError, TypeError), match=why): call(tmp_path)


def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_what_was_there(tmp_path):
    path = save_tensors(tmp_path/"a.safetensors", {"w": X})
    before = path.read_bytes()
    full = SafetensorError("No space left on device")
    with patch.object(checkpoints, "save_file", side_effect=full), pytest.raises(OSError, match="a.safetensors could not be"):
        save_tensors(path, {"w": X + 1})
    def write(unfinished): raise OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space left on device: '.*a.safetensors'"): atomic_write(path, write)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_samples_of_another_run_or_model_are_not_taken_for_this_ones(tmp_path):
    path = tmp_path/"samples.safetensors"
    kept_tensor(path, lambda: X, run="a")
    assert torch.equal(kept_tensor(path, run="a"), X)
    with pytest.raises(ValueError, match="samples.safetensors is another's: its run is 'a', 'b' was expected"):
        kept_tensor(path, run="b")
    with pytest.warns(UserWarning, match="made again: ValueError"): kept_tensor(path, lambda: X + 1, run="b")
    assert torch.equal(kept_tensor(path, run="b"), X + 1)
    save_tensors(path, {"samples": X})   # of before there were facts
    assert torch.equal(kept_tensor(path, run="b"), X)
