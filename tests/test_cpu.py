"""The CPU's kernels against float64 on random shapes, patterns, types and layouts; threads, processes, caches."""
import math, os, random, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from sparsedm import cpu
from sparsedm.cpu_conv import pack_conv, sparse_conv2d
from sparsedm.cpu_linear import pack_rows, sparse_linear, sparse_mlp
from sparsedm.cpu_masks import masked_decay_, nm_apply
from sparsedm.cpu_training import conv_packs, linear_packs, trained_conv2d, trained_linear
from sparsedm.masking import PATTERNS, nm_mask, parse_pattern

try: cpu.compiler()
except cpu.NoKernels as e: pytest.skip(str(e), allow_module_level=True)
CASES = 120   # of each kind


# ---- random cases ----

class Case:
    "Sizes, a weight and inputs drawn from one seed."
    def __init__(self, seed):
        self.pick, self.g = random.Random(seed), torch.Generator().manual_seed(seed)

    def some(self, *shape): return torch.randn(*shape, generator=self.g)

    def masked(self, *shape):
        "With an N:M pattern where one fits, unstructured, empty, or full."
        w, kind = self.some(*shape), self.pick.choice(["pattern", "some", "few", "none", "all"])
        fitting = [p for p in PATTERNS if shape[1] % parse_pattern(p)[1] == 0]
        if kind == "pattern" and fitting: return w * nm_mask(w, self.pick.choice(fitting))
        kept = {"none": 0., "few": .02, "all": 1.}.get(kind, self.pick.random())
        return w * (torch.rand(w.shape, generator=self.g) < kept)

    def bias(self, outs):
        "One, or none; laid out in one of several ways."
        some = self.some(2 * outs)
        return self.pick.choice([some[:outs], some[::2], some[:1].expand(outs), torch._neg_view(some[outs:]), None])

    def shuffled(self, x):
        "The same numbers, laid out in another way."
        kind = self.pick.choice(["plain", "turned", "cut"])
        if kind == "turned" and x.dim() > 1: return x.transpose(0, -1).contiguous().transpose(0, -1)
        if kind == "cut": return torch.cat([x, x], dim=-1)[..., :x.shape[-1]]
        return x

    def typed(self, x): return x.to(self.pick.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16]))


def wide(*tensors): return [None if x is None else x.double() for x in tensors]


def assert_near(y, exact, dtype, terms):
    "As near as the type of the output and the number of terms allow."
    assert y.shape == exact.shape and y.dtype == dtype
    if not exact.numel(): return
    step = {torch.float32: 1e-6 * math.sqrt(terms), torch.bfloat16: 1.1e-2, torch.float16: 1.4e-3}[dtype]
    assert (y.double() - exact).abs().max() <= step * (1 + exact.abs().max())


@pytest.mark.parametrize("seed", range(CASES))
def test_linear(seed):
    case = Case(seed)
    outs, ins = case.pick.randint(1, 150), case.pick.choice([1, 3, 32, 64, 96, 257, 300, 512])
    before = [case.pick.choice([0, 1, 2, 5, 17, 65]) for _ in range(case.pick.randint(0, 3))]
    x, w, bias = case.typed(case.shuffled(case.some(*before, ins))), case.masked(outs, ins), case.bias(outs)
    gelu = seed % 2 == 1
    exact = F.linear(*wide(x, w, bias))
    p = pack_rows(w, case.pick.choice([0, 1, 7, 64, 256]))
    assert torch.equal(p.dense(), w)
    y = sparse_linear(x, p, bias, gelu=gelu)
    assert_near(y, F.gelu(exact) if gelu else exact, x.dtype, ins)


@pytest.mark.parametrize("seed", range(CASES))
def test_convolution(seed):
    case = Case(1000 + seed)
    N, C = case.pick.choice([0, 1, 2, 3, 7, 8, 9, 17]), case.pick.choice([1, 3, 8, 32, 40])
    O = case.pick.randint(1, 40)
    kernel = case.pick.choice([(1, 1), (3, 3), (3, 3), (2, 2), (5, 5), (1, 3), (4, 2)])
    stride, padding = case.pick.choice([1, 1, 2, 3]), case.pick.choice([0, 1, 2])
    H, W = (case.pick.randint(max(1, k - 2 * padding), 20) for k in kernel)
    x, w, bias = case.some(N, C, H, W), case.masked(O, C, *kernel), case.bias(O)
    if seed % 3 == 0: x = x.contiguous(memory_format=torch.channels_last)
    x = case.typed(case.shuffled(x))
    exact = F.conv2d(*wide(x, w, bias), stride, padding)
    p = pack_conv(w, case.pick.choice([0, 0, 1, 5]))
    assert_near(sparse_conv2d(x, p, bias, stride, padding), exact, x.dtype, w[0].numel())


@pytest.mark.parametrize("seed", range(CASES))
def test_mlp(seed):
    case = Case(2000 + seed)
    ins, hidden, outs = (case.pick.choice([1, 8, 33, 64, 130, 256]) for _ in range(3))
    x = case.typed(case.some(case.pick.randint(0, 90), ins))
    first, second = case.masked(hidden, ins), case.masked(outs, hidden)
    bias, second_bias = case.bias(hidden), case.bias(outs)
    exact = F.linear(F.gelu(F.linear(*wide(x, first, bias))), *wide(second, second_bias))
    y = sparse_mlp(x, pack_rows(first), bias, pack_rows(second), second_bias)
    assert_near(y, exact, x.dtype, ins + hidden)


@pytest.mark.parametrize("seed", range(CASES))
def test_gradients(seed):
    case = Case(3000 + seed)
    linear, active, kept = case.pick.random() < .5, case.pick.random() < .5, case.pick.random() < .5
    if linear:
        x, w = case.some(case.pick.randint(1, 70), 64), case.masked(case.pick.randint(1, 50), 64)
        how = {}
        function, exactly, packs = trained_linear, F.linear, linear_packs(w)
    else:
        C, k, side = case.pick.choice([4, 8, 32]), case.pick.choice([1, 3]), case.pick.randint(4, 13)
        x = case.some(case.pick.choice([1, 3, 8, 11]), C, side, side)
        w = case.masked(case.pick.randint(1, 20), C, k, k)
        how = dict(stride=case.pick.choice([1, 2]), padding=case.pick.choice([0, k // 2]))
        function, exactly, packs = trained_conv2d, F.conv2d, conv_packs(w)
    bias = case.some(len(w))

    def gradients(f, *tensors, **more):
        leaves = [t.clone().requires_grad_() for t in tensors]
        y = f(*leaves, **more)
        up = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(y.dtype)
        return [y.detach(), *torch.autograd.grad(y, leaves, up)]

    exact = gradients(exactly, *wide(x, w, bias), **how)
    if active: exact[2] *= w != 0
    found = gradients(function, x, w, bias, active=active, packs=packs if kept else None, **how)
    for y, right in zip(found, exact): assert_near(y, right, torch.float32, 2000)


@pytest.mark.parametrize("seed", range(CASES))
def test_masks(seed):
    case = Case(4000 + seed)
    m = case.pick.choice([2, 3, 4, 6, 8, 16, 32])
    n = case.pick.randint(1, m - 1)
    w = case.some(case.pick.randint(1, 40), m * case.pick.randint(1, 9), *case.pick.choice([(), (3, 3), (2,)]))
    if seed % 2: w = (2 * w).round()   # ties
    groups = w.movedim(1, -1).double().abs().unflatten(-1, (-1, m))
    order = groups.argsort(dim=-1, stable=True)   # the lowest index first among equals
    mask = torch.ones_like(groups, dtype=torch.bool).scatter_(-1, order[..., :m - n], False).flatten(-2).movedim(-1, 1)
    kept, found = nm_apply(w, n, m, mask=True)
    assert torch.equal(found, mask) and torch.equal(kept, torch.where(mask, w, 0.))
    target = case.some(*w.shape)
    assert torch.equal(masked_decay_(target.clone(), w, n, m, .3), target.add(torch.where(mask, 0., w), alpha=.3))


# ---- several at once ----

def test_threads_share_a_weight():
    case = Case(0)
    w = case.masked(96, 128)
    p, xs = pack_rows(w), [case.some(200, 128) for _ in range(16)]
    with ThreadPoolExecutor(8) as pool: found = list(pool.map(lambda x: sparse_linear(x, p), xs))
    for x, y in zip(xs, found): assert torch.equal(y, sparse_linear(x, p))


def test_the_number_of_threads_changes_nothing():
    case, before = Case(1), torch.get_num_threads()
    p, x, images = pack_rows(case.masked(70, 96)), case.some(300, 96), case.some(11, 32, 9, 9)
    q = pack_conv(case.some(24, 32, 3, 3) * (case.some(24, 32, 3, 3) > 1))
    try:
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append((sparse_linear(x, p), sparse_conv2d(images, q, padding=1)))
    finally: torch.set_num_threads(before)
    for y, z in found[1:]: assert torch.equal(y, found[0][0]) and torch.equal(z, found[0][1])


USE = """
import torch
from sparsedm.cpu_linear import pack_rows, sparse_linear
from sparsedm.masking import nm_weight
w = nm_weight(torch.randn(32, 64), "2:4")
x = torch.randn(50, 64)
assert torch.allclose(sparse_linear(x, pack_rows(w)), x @ w.t(), atol=1e-4)
"""


def test_processes_share_an_empty_cache(tmp_path):
    env = dict(os.environ, XDG_CACHE_HOME=str(tmp_path), OMP_NUM_THREADS="1")
    processes = [subprocess.Popen([sys.executable, "-c", USE], env=env, stderr=subprocess.PIPE) for _ in range(2)]
    for process in processes:
        error = process.communicate()[1]
        assert process.returncode == 0, error.decode()[-1000:]
    left = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {".so", ".sha256"}   # nothing half-written stays


DENSE = """
import warnings
import torch
from sparsedm import accelerate_, bake_, build_model, explain, sparsify_
model = bake_(sparsify_(build_model("smoke"), "1:8")).eval()
x, t = torch.randn(2, *(model.config[k] for k in ("in_chans", "img_size", "img_size"))), torch.rand(2) * 999
with torch.no_grad(): exact = model(x, t)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    fast = accelerate_(model, (x, t), compile=False, progress=False)
assert sum("stays dense" in str(w.message) for w in said) == 1, [str(w.message) for w in said]
assert torch.equal(fast(x, t), exact) and fast.choice.chosen == "dense"
assert explain(fast).why.str.startswith("no kernels on this machine: no C compiler").all()
"""


def test_without_a_compiler_all_stays_dense_and_it_is_said_once(tmp_path):
    env = dict(os.environ, XDG_CACHE_HOME=str(tmp_path), CC="no-such-compiler", CUDA_VISIBLE_DEVICES="")
    done = subprocess.run([sys.executable, "-c", DENSE], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_fake_tensors_go_through_pytorch():
    p, q, case = pack_rows(torch.eye(8)), pack_conv(torch.ones(4, 2, 3, 3)), Case(2)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert sparse_linear(torch.ones(3, 8), p).shape == (3, 8)
        assert sparse_conv2d(torch.ones(5, 2, 7, 7), q, stride=2, padding=1).shape == (5, 4, 4, 4)
    x = case.some(3, 8)
    assert torch.equal(sparse_linear(x, p), x)


def test_another_cpu_compiles_for_itself(monkeypatch):
    here = cpu._library_path("source")
    monkeypatch.setattr(cpu, "_cpu_kind", lambda: "another CPU")
    assert cpu._library_path("source") != here
