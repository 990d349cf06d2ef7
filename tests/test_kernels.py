"""The Triton kernels: interpreted on the CPU, compiled for a GPU that is not there, and on one that is.

As a script it checks everything on the device it is given: `TRITON_INTERPRET=1 python tests/test_kernels.py cpu`, or `python tests/test_kernels.py cuda`."""
import copy, importlib.util, os, subprocess, sys
from pathlib import Path
import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
PAPER = [(31, 32), (15, 16), (7, 8), (3, 4), (2, 4), (1, 4), (1, 8), (1, 16), (1, 32)]
OTHERS = [(1, 2), (5, 8), (3, 16), (8, 16), (16, 32)]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed (it exists for Linux and Windows)")


# ---- what is checked ----

def weights(m, dtype, device):
    "Name → weight: values with and without ties, sizes that fill no block, every layout."
    g = torch.Generator().manual_seed(0)
    def rand(*shape): return torch.randn(*shape, generator=g).to(dtype)
    def ties(*shape): return torch.randint(-2, 3, shape, generator=g).to(dtype)
    signs = torch.tensor([0., -0.], dtype=dtype).repeat(3, m)
    extremes = rand(3, 2 * m); extremes[:, ::3] = torch.finfo(dtype).max; extremes[:, 1::3] = torch.finfo(dtype).smallest_normal / 8
    out = {"random": rand(37, 3 * m), "ties": ties(41, 2 * m), "zeros": torch.zeros(3, m, dtype=dtype), "signed zeros": signs, "extremes": extremes,
           "one group": rand(1, m), "several blocks": ties(4096 // m + 1, m), "transposed": ties(2 * m, 2 * m).T,
           "conv2d": ties(7, m, 3, 3), "conv2d random": rand(5, 2 * m, 5, 3), "conv1d": ties(9, 2 * m, 3), "1x1": rand(6, m, 1, 1),
           "channels last": ties(5, m, 3, 3).to(memory_format=torch.channels_last)}
    return {k: w.to(device) for k, w in out.items()}


def truth(w, n, m):
    from sparsedm.masking import _mask_by_sorting
    rows = w.movedim(1, -1)
    return _mask_by_sorting(rows.reshape(-1, m), n).view(rows.shape).movedim(-1, 1)


def same(a, b): return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b) and (a.dtype == torch.bool or torch.equal(torch.signbit(a), torch.signbit(b)))


def check_against_the_definition(device):
    from sparsedm.kernels import available, masked_decay_, nm_apply
    for dtype in DTYPES:
        for n, m in PAPER + OTHERS:
            for name, w in weights(m, dtype, device).items():
                if (n, m) in OTHERS and name not in ("random", "ties", "zeros", "conv2d"): continue
                where, mask = (name, dtype, n, m), truth(w, n, m)
                got, got_mask = nm_apply(w, n, m, mask=True)
                assert same(got_mask, mask) and same(got, torch.where(mask, w, 0.)), where
                if name != "transposed": assert got.stride() == got_mask.stride() == w.stride(), where
                if (n, m) in OTHERS: continue
                if (n, m) == (2, 4):
                    only, none = nm_apply(w, n, m); assert none is None and same(only, got), where
                    none, only = nm_apply(w, n, m, weight=False, mask=True); assert none is None and same(only, mask), where
                if name not in ("random", "signed zeros", "conv2d", "channels last"): continue
                grad, amount = torch.randn(w.shape, device=device).to(dtype), .37
                grad = torch.empty_like(w).copy_(grad)
                for scale in (None, torch.tensor(512., device=device)) if name == "random" else (None,):
                    total = torch.tensor(amount, device=device) * (1 if scale is None else scale)
                    changed = grad.float() + total * w.float()
                    if device == "cpu" and dtype == torch.bfloat16: changed = (changed.view(torch.int32) & -2**16).view(torch.float32)   # Triton's interpreter cuts where a GPU rounds
                    want = torch.where(mask, grad, changed.to(dtype))
                    x = grad.clone(); version = x._version
                    assert masked_decay_(x, w, n, m, amount, scale) is x and x._version > version
                    if device == "cpu": assert same(x, want), where
                    else: torch.testing.assert_close(x, want, msg=lambda s: f"{where}: {s}")   # a GPU fuses multiply and add
                    assert same(x[mask], grad[mask]), where
                y = w.clone(); masked_decay_(y, y, n, m, -.5)
                assert torch.equal(y, torch.where(mask, w, w / 2)), where
    assert not available(torch.ones(4, 6, device=device), 6) and not available(torch.ones(4, 4, device=device).double(), 4)
    assert not available(torch.ones(4, 4, device=device).T, 4, torch.ones(4, 4, device=device))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(8, 16, 3, padding=1), nn.Linear(16, 32), nn.Linear(32, 4)
    def forward(self, x): return self.fc2(self.fc1(self.conv(x).tanh().mean((2, 3))).tanh())


def check_training(device):
    "A few steps with the kernels and without: the same weights; once as gradient, once as update, once with the scale of a fused optimizer."
    from sparsedm import kernels, ste
    torch.manual_seed(0)
    start, x = Net().to(device), torch.randn(4, 8, 5, 5, device=device)
    for at, fused in (("gradient", False), ("update", False), ("gradient", True)):
        results, calls = [], []
        for on in (True, False):
            kept = kernels.why_eager
            kernels.why_eager = (lambda *a: calls.append(a) or kept(*a)) if on else (lambda *a: "switched off")
            try:
                net = ste.sparsify_(copy.deepcopy(start), lambda_w=.1)
                opt = torch.optim.SGD(net.parameters(), lr=.1, fused=fused); ste.add_masked_decay_(opt, net, at)
                for _ in range(2):
                    opt.zero_grad(); net(x).square().mean().backward()
                    if fused: opt.grad_scale, opt.found_inf = torch.tensor(8., device=device), torch.tensor(0., device=device); [p.grad.mul_(8) for p in net.parameters()]
                    opt.step()
                results.append([p.detach() for p in net.parameters()])
            finally: kernels.why_eager = kept
        assert calls
        for a, b in zip(*results): torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def check_compile(device, backend):
    "No graph break; outputs, gradients and masks as without compiling."
    from sparsedm import masking, ste
    torch.manual_seed(0)
    net, x = ste.sparsify_(Net().to(device), "2:4", "ste"), torch.randn(4, 8, 5, 5, device=device)
    other = copy.deepcopy(net); compiled = torch.compile(other, backend=backend, fullgraph=True)
    for f in (net, compiled): f(x).square().mean().backward()
    torch.testing.assert_close(compiled(x), net(x), rtol=1e-4, atol=1e-5)
    for a, b in zip(net.parameters(), other.parameters()): torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
    w = torch.randn(8, 16, 3, 3, device=device)
    for layout in (w, w.to(memory_format=torch.channels_last)):
        mask, weight = torch.compile(lambda w: (masking.nm_mask(w, "2:4"), masking.nm_weight(w, "2:4")), backend=backend, fullgraph=True)(layout)
        assert same(mask, masking.nm_mask(w, "2:4")) and same(weight, masking.nm_weight(w, "2:4"))


def check_operators(device):
    "PyTorch's own checks: schema, fake outputs, mutation."
    from sparsedm import kernels
    w = torch.randn(8, 16, device=device)
    torch.library.opcheck(kernels._apply_op, (w, 2, 4, True, True), test_utils=("test_schema", "test_faketensor"))
    torch.library.opcheck(kernels._apply_op, (w.T, 2, 4, True, False), test_utils=("test_schema", "test_faketensor"))
    torch.library.opcheck(kernels._decay_op, (torch.ones_like(w), w, 2, 4, .5, None), test_utils=("test_schema", "test_faketensor"))


# ---- where it is checked ----

def script(device, **env):
    done = subprocess.run([sys.executable, __file__, device], env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env}, capture_output=True, text=True)
    assert done.returncode == 0 and f"all right on {device}" in done.stdout, (done.stdout + done.stderr)[-4000:]


@needs_triton
def test_interpreted(): script("cpu", TRITON_INTERPRET="1")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@needs_triton
def test_on_a_gpu(): script("cuda", TRITON_INTERPRET="0")


COMPILE = """
import sys; from sparsedm import kernels
import triton; from triton.compiler import ASTSource; from triton.backends.compiler import GPUTarget
for kernel, args in ((kernels._apply_kernel, {"w_ptr": "*DT", "out_ptr": "*DT", "mask_ptr": "*i8"}), (kernels._decay_kernel, {"x_ptr": "*DT", "w_ptr": "*DT", "scale_ptr": "*fp32", "amount": "fp32"})):
    for dtype, size in (("fp32", 1024), ("bf16", 2048)):
        for n, m, k in ((2, 4, 1), (31, 32, 1), (1, 4, 9)):
            signature = {a: t.replace("DT", dtype) for a, t in args.items()} | {"groups": "i32"}
            constants = dict(N=n, M=m, K=k, SIZE=size if k == 1 else 1024)
            names = kernel.arg_names
            source = ASTSource(fn=kernel, signature=signature | dict.fromkeys(constants, "constexpr"), constexprs={(names.index(a),): v for a, v in constants.items()},
                               attrs={(i,): [["tt.divisibility", 16]] for i, a in enumerate(names) if a.endswith("ptr") or a == "groups"})
            made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(num_warps=8 if k == 1 else 4))
            ptx = made.asm["ptx"]
            assert made.metadata.shared == 0, (kernel, dtype, n, m, k)                     # a group's members never meet in shared memory
            if k == 1: assert ptx.count("ld.global.v4.b32") == (1 if kernel is kernels._apply_kernel else 2), ptx   # 16 bytes per thread at a time
print("compiled")
"""

@needs_triton
def test_compiles_for_a_gpu_that_is_not_there():
    "For sm_90, with Triton's own assembler: weights are read by 16 bytes, each once, and nothing goes through shared memory."
    done = subprocess.run([sys.executable, "-c", COMPILE], env={**os.environ, "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "0"}, capture_output=True, text=True)
    assert "compiled" in done.stdout, done.stderr[-4000:]


def test_without_triton_nothing_changes():
    "Masking asks for no Triton on a CPU; on a machine without it the package imports and says why there are no kernels."
    code = """
import sys, torch; from sparsedm import masking, ste
assert masking.nm_weight(torch.tensor([[1., 2., 3., 4.]]), "2:4").tolist() == [[0., 0., 3., 4.]]
assert not {"triton", "sparsedm.kernels"} & set(sys.modules)
sys.modules["triton"] = None
from sparsedm import kernels
assert kernels.why_eager(torch.ones(4, 4), 4) == "Triton is not installed"
"""
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "0"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    device = sys.argv[1]
    check_against_the_definition(device)
    check_training(device)
    check_operators(device)
    for backend in ("aot_eager",) if device == "cpu" else ("aot_eager", "inductor"): check_compile(device, backend)
    print("all right on", device)
