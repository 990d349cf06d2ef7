"""The Triton kernels: interpreted on the CPU, compiled for a GPU that is not there, and on one that is.

Triton reads its switches when it is imported, so each of these is a process of its own. By hand:
`TRITON_INTERPRET=1 python tests/test_kernels.py cpu`, and `python tests/test_kernels.py cuda`, `compile` or `without`.
"""
import copy, importlib.util, os, subprocess, sys
from pathlib import Path
from unittest.mock import patch
import pytest
import torch
from torch import nn
from sparsedm import masking, ste

ROOT = Path(__file__).resolve().parent.parent
PAPER = [masking.parse_pattern(p) for p in masking.PATTERNS[1:]]
OTHERS = [(1, 2), (5, 8), (3, 16), (8, 16), (16, 32)]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
without_triton = importlib.util.find_spec("triton") is None
needs_triton = pytest.mark.skipif(without_triton, reason="Triton is not installed (it exists for Linux and Windows)")


# ---- what is checked: masks and masked weights ----

def weights(m, dtype, device):
    "Name → weight: values with and without ties, sizes that fill no block, every layout."
    g = torch.Generator().manual_seed(0)
    def rand(*shape): return torch.randn(*shape, generator=g).to(dtype)
    def ties(*shape): return torch.randint(-2, 3, shape, generator=g).to(dtype)
    extremes = rand(3, 2 * m)
    extremes[:, ::3] = torch.finfo(dtype).max
    extremes[:, 1::3] = torch.finfo(dtype).smallest_normal / 8
    made = {
        "random": rand(37, 3 * m),
        "ties": ties(41, 2 * m),
        "zeros": torch.zeros(3, m, dtype=dtype),
        "signed zeros": torch.tensor([0., -0.], dtype=dtype).repeat(3, m),
        "extremes": extremes,
        "one group": rand(1, m),
        "several blocks": ties(4096 // m + 1, m),
        "transposed": ties(2 * m, 2 * m).T,
        "conv2d": ties(7, m, 3, 3),
        "conv2d random": rand(5, 2 * m, 5, 3),
        "conv1d": ties(9, 2 * m, 3),
        "1x1": rand(6, m, 1, 1),
        "channels last": ties(5, m, 3, 3).to(memory_format=torch.channels_last)}
    return {name: w.to(device) for name, w in made.items()}


def cases(device):
    "(n, m, dtype, name, weight): every kind of weight for the paper's patterns in fp32 and bf16, else four kinds."
    for dtype in DTYPES:   # fp16 takes bf16's way through the kernels
        for n, m in PAPER if dtype == torch.float16 else PAPER + OTHERS:
            few = dtype == torch.float16 or (n, m) in OTHERS
            for name, w in weights(m, dtype, device).items():
                if not few or name in ("random", "ties", "zeros", "conv2d"): yield n, m, dtype, name, w


def definition(w, n, m):
    "The N largest of every M along dimension 1, by a stable sort."
    groups = w.movedim(1, -1).unflatten(-1, (-1, m))
    pruned = groups.abs().argsort(dim=-1, stable=True)[..., :m - n]
    mask = torch.ones_like(groups, dtype=torch.bool).scatter_(-1, pruned, False)
    return mask.flatten(-2).movedim(-1, 1)


def same(a, b):
    "To the bit, the sign of zeros included."
    if a.shape != b.shape or a.dtype != b.dtype or not torch.equal(a, b): return False
    return a.dtype == torch.bool or torch.equal(torch.signbit(a), torch.signbit(b))


def check_masks(device):
    from sparsedm.kernels import nm_apply
    for n, m, dtype, name, w in cases(device):
        where, mask = (name, dtype, n, m), definition(w, n, m)
        got, got_mask = nm_apply(w, n, m, mask=True)
        assert same(got_mask, mask) and same(got, torch.where(mask, w, 0.)), where
        if name != "transposed": assert got.stride() == got_mask.stride() == w.stride(), where
        if (n, m) != (2, 4): continue
        only_weight, none = nm_apply(w, n, m)
        assert none is None and same(only_weight, got), where
        none, only_mask = nm_apply(w, n, m, weight=False, mask=True)
        assert none is None and same(only_mask, mask), where


def check_refusals(device):
    from sparsedm.kernels import available
    w = torch.ones(4, 4, device=device)
    assert available(w, 4)
    assert not available(torch.ones(4, 6, device=device), 6)
    assert not available(w.double(), 4)
    assert not available(w.T, 4, target=w)


# ---- λ_W ----

def decayed(x, w, mask, total):
    "x + total · (W − W̃) in fp32, rounded once."
    changed = x.float() + total * w.float()
    if x.device.type == "cpu" and x.dtype == torch.bfloat16:   # Triton's interpreter cuts where a GPU rounds
        changed = (changed.view(torch.int32) & -2**16).view(torch.float32)
    return torch.where(mask, x, changed.to(x.dtype))


def check_gradient(w, n, m, scale, where):
    from sparsedm.kernels import masked_decay_
    mask, amount = definition(w, n, m), .37
    grad = torch.empty_like(w).copy_(torch.randn(w.shape, device=w.device))
    total = torch.tensor(amount, device=w.device) * (1 if scale is None else scale)
    want, x = decayed(grad, w, mask, total), grad.clone()
    version = x._version
    assert masked_decay_(x, w, n, m, amount, scale) is x and x._version > version
    assert same(x[mask], grad[mask]), where
    if w.device.type == "cpu": assert same(x, want), where
    else: torch.testing.assert_close(x, want, msg=lambda s: f"{where}: {s}")   # a GPU fuses multiply and add


def check_decay(device):
    "Of a gradient, with and without a loss scale, and of the weight itself."
    from sparsedm.kernels import masked_decay_
    for n, m, dtype, name, w in cases(device):
        where = name, dtype, n, m
        if (n, m) in OTHERS or name not in ("random", "signed zeros", "conv2d", "channels last"): continue
        check_gradient(w, n, m, None, where)
        if name == "random": check_gradient(w, n, m, torch.tensor(512., device=device), where)
        y = w.clone()
        masked_decay_(y, y, n, m, -.5)
        assert torch.equal(y, torch.where(definition(w, n, m), w, w / 2)), where


# ---- whole models ----

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 16, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x):
        return self.fc2(self.fc1(self.conv(x).tanh().mean((2, 3))).tanh())


def two_steps(start, x, at, fused):
    "The parameters after two steps of SGD, as under a loss scale of 8 if the optimizer is fused."
    net = ste.sparsify_(copy.deepcopy(start), lambda_w=.1)
    opt = torch.optim.SGD(net.parameters(), lr=.1, fused=fused)
    ste.add_masked_decay_(opt, net, at)
    for _ in range(2):
        opt.zero_grad()
        net(x).square().mean().backward()
        if fused:
            opt.grad_scale, opt.found_inf = torch.tensor(8., device=x.device), torch.tensor(0., device=x.device)
            for p in net.parameters(): p.grad.mul_(8)
        opt.step()
    return [p.detach() for p in net.parameters()]


def check_training(device):
    "A few steps with the kernels and without give the same weights: as gradient, as update, under a loss scale."
    from sparsedm import kernels
    torch.manual_seed(0)
    start, x = Net().to(device), torch.randn(4, 8, 5, 5, device=device)
    for at, fused in (("gradient", False), ("update", False), ("gradient", True)):
        with patch.object(kernels, "why_eager", wraps=kernels.why_eager) as asked:
            ours = two_steps(start, x, at, fused)
        assert asked.called
        with patch.object(kernels, "why_eager", return_value="switched off"): eager = two_steps(start, x, at, fused)
        for a, b in zip(ours, eager): torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def check_compile(device, backend):
    "No graph break; outputs, gradients and masks as without compiling."
    torch.manual_seed(0)
    net, x = ste.sparsify_(Net().to(device), "2:4", "ste"), torch.randn(4, 8, 5, 5, device=device)
    other = copy.deepcopy(net)
    compiled = torch.compile(other, backend=backend, fullgraph=True)
    for f in (net, compiled): f(x).square().mean().backward()
    torch.testing.assert_close(compiled(x), net(x), rtol=1e-4, atol=1e-5)
    for a, b in zip(net.parameters(), other.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)

    def both(w): return masking.nm_mask(w, "2:4"), masking.nm_weight(w, "2:4")
    w = torch.randn(8, 16, 3, 3, device=device)
    for layout in (w, w.to(memory_format=torch.channels_last)):
        mask, weight = torch.compile(both, backend=backend, fullgraph=True)(layout)
        assert same(mask, masking.nm_mask(w, "2:4")) and same(weight, masking.nm_weight(w, "2:4"))


def check_operators(device):
    "PyTorch's own checks: schema, fake outputs, mutation."
    from sparsedm import kernels   # registers them
    w = torch.randn(8, 16, device=device)
    ops, tests = torch.ops.sparsedm, ("test_schema", "test_faketensor")
    torch.library.opcheck(ops.nm_apply.default, (w, 2, 4, True, True), test_utils=tests)
    torch.library.opcheck(ops.nm_apply.default, (w.T, 2, 4, True, False), test_utils=tests)
    torch.library.opcheck(ops.masked_decay_.default, (torch.ones_like(w), w, 2, 4, .5, None), test_utils=tests)
    assert kernels.available(w, 4)


# ---- where it is checked ----

def run_on(device):
    check_masks(device)
    check_decay(device)
    check_refusals(device)
    check_training(device)
    check_operators(device)
    for backend in ("aot_eager",) if device == "cpu" else ("aot_eager", "inductor"): check_compile(device, backend)


def compiled(kernel, pointers, dtype, n, m, k):
    "A kernel as Triton compiles it for sm_90, whatever this machine has."
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    names = kernel.arg_names
    linear = dict(fp32=1024, bf16=2048)[dtype]
    constants = dict(N=n, M=m, K=k, SIZE=linear if k == 1 else 1024)
    signature = {name: kind.replace("DT", dtype) for name, kind in pointers.items()}
    aligned = [name for name in names if name.endswith("ptr") or name == "groups"]
    source = ASTSource(
        fn=kernel,
        signature=signature | {"groups": "i32"} | dict.fromkeys(constants, "constexpr"),
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned})
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(num_warps=8 if k == 1 else 4))


def compile_without_a_gpu():
    "Weights are read by 16 bytes, each once, and nothing goes through shared memory."
    from sparsedm import kernels
    apply_ = kernels.apply_kernel, dict(w_ptr="*DT", out_ptr="*DT", mask_ptr="*i8"), 1
    decay_ = kernels.decay_kernel, dict(x_ptr="*DT", w_ptr="*DT", scale_ptr="*fp32", amount="fp32"), 2
    for kernel, pointers, reads in (apply_, decay_):
        for dtype, n, m, k in (("fp32", 2, 4, 1), ("bf16", 2, 4, 1), ("bf16", 31, 32, 1), ("fp32", 1, 4, 9)):
            made = compiled(kernel, pointers, dtype, n, m, k)
            assert made.metadata.shared == 0, (kernel, dtype, n, m, k)   # a group never meets in shared memory
            loads = made.asm["ptx"].count("ld.global.v4.b32")            # 16 bytes per thread at a time
            if k == 1: assert loads == reads, made.asm["ptx"]


def mask_without_triton():
    "Masking asks for no Triton on a CPU; where it is missing the package imports and says why there are no kernels."
    w = torch.tensor([[1., 2., 3., 4.]])
    assert masking.nm_weight(w, "2:4").tolist() == [[0., 0., 3., 4.]]
    assert not {"triton", "sparsedm.kernels"} & set(sys.modules)
    sys.modules["triton"] = None
    from sparsedm import kernels
    assert kernels.why_eager(torch.ones(4, 4), 4) == "Triton is not installed"


def script(what, interpret):
    "Run this file as a program that does `what`."
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": interpret}
    done = subprocess.run([sys.executable, __file__, what], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and f"all right: {what}" in done.stdout, (done.stdout + done.stderr)[-4000:]


@needs_triton
def test_interpreted(): script("cpu", "1")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@needs_triton
def test_on_a_gpu(): script("cuda", "0")


@needs_triton
def test_compiles_for_a_gpu_that_is_not_there(): script("compile", "0")


def test_without_triton_nothing_changes(): script("without", "0")


if __name__ == "__main__":
    what = sys.argv[1]
    if what == "compile": compile_without_a_gpu()
    elif what == "without": mask_without_triton()
    else: run_on(what)
    print("all right:", what)
