"""2:4 sampling: what surrounds the raw operators, on the CPU with the operators acted; and all of it on a GPU where there is one."""
import copy, json, subprocess, sys
from pathlib import Path
from unittest.mock import patch
import pytest, torch
import torch.nn.functional as F
from sparsedm import sampling
from sparsedm.diffusion import sample
from sparsedm.models import build_model
from sparsedm.ste import bake_, sparsify_

ROOT = Path(__file__).resolve().parent.parent
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def baked(name="smoke", seed=0, pattern="2:4", **overrides):
    torch.manual_seed(seed); return bake_(sparsify_(build_model(name, **overrides), pattern)).eval().requires_grad_(False)


def acted_mm(seen):
    "`torch._cslt_sparse_mm` on dense weights: asserts what cuSPARSELt demands, answers as it does."
    def mm(packed, b, bias=None, alpha=None, out_dtype=None, transpose_result=False, alg_id=0, split_k=1, split_k_mode=-1):
        assert b.dim() == 2 and b.shape[1] % 8 == 0 and b.t().is_contiguous() and transpose_result and b.dtype == packed.dtype
        seen.append((b.shape[1], alg_id, split_k, split_k_mode))
        return F.linear(b.t(), packed, bias)
    return mm


@pytest.fixture
def cslt():
    "The cuSPARSELt back end with its operators acted on the CPU."
    seen = []
    with patch("torch._cslt_sparse_mm", acted_mm(seen)), patch("torch.backends.cusparselt.is_available", lambda: True), patch("torch.backends.cusparselt.version", lambda: 801), \
         patch("torch._cslt_compress", lambda w: w.clone()), patch("torch._C._cusparselt.mm_search", lambda *a: (7, 2, 1, 30), create=True), patch("torch.cuda.get_device_capability", lambda d=None: (9, 0)):
        yield sampling._gpu_backends("cpu", False)[0], seen


@pytest.mark.parametrize("rows, padded", [(1, 8), (257, 264), (2056, 2056)])
def test_rows_are_padded_and_the_result_is_row_major(cslt, rows, padded):
    backend, seen = cslt
    w, x, b = torch.randn(32, 64).bfloat16(), torch.randn(rows, 64).bfloat16(), torch.randn(32).bfloat16()
    y = backend.linear(x, backend.compress(w), b, (7, 2, 1))
    assert y.shape == (rows, 32) and y.is_contiguous() and torch.allclose(y, F.linear(x, w, b)) and seen == [(padded, 7, 2, 1)]


def test_the_plan_of_the_search_is_timed_and_used(cslt):
    backend, seen = cslt
    inputs = (torch.randn(2, 1, 8, 8), torch.tensor([1., 500.]))
    asked = []
    def timer(calls): asked.append(set(calls)); return {k: [{"dense": 3., (0, 1, -1): 2., (7, 1, -1): 2.5, (7, 2, 1): 1., "sparse": 1.}.get(k, 9.)] for k in calls}
    fast = sampling.accelerate_(baked(), inputs, backend=backend, timer=timer, compile=False, progress=False)
    used = [m for m in fast.modules() if isinstance(m, sampling.SparseLinear)]
    assert {"dense", (0, 1, -1), (7, 1, -1), (7, 2, 1)} in asked and used and all(m.plan == (7, 2, 1) for m in used)
    del seen[:]; fast(*inputs)
    assert len(seen) == len(used) and {s[1:] for s in seen} == {(7, 2, 1)}


def test_a_plan_with_a_wrong_product_is_not_used(cslt):
    backend, _ = cslt
    right = torch._cslt_sparse_mm
    def wrong_for_7(packed, b, bias=None, alg_id=0, **k): y = right(packed, b, bias, alg_id=alg_id, **k); return y * 1.5 if alg_id == 7 else y
    inputs = (torch.randn(2, 1, 8, 8).bfloat16(), torch.tensor([1., 500.]))
    with patch("torch._cslt_sparse_mm", wrong_for_7):
        table = sampling.choose_layers(baked().bfloat16(), inputs, backend, lambda calls: {k: [3. if k == "dense" else 1.] for k in calls})
    assert set(table.plan[table.use_sparse]) == {(0, 1, -1)}


def test_compiles_without_a_graph_break(cslt):
    backend, _ = cslt
    layer = torch.nn.Linear(64, 32).bfloat16().requires_grad_(False); layer.weight.mul_(torch.arange(64) % 4 < 2)
    sparse, x = sampling.SparseLinear(layer, backend), torch.randn(3, 5, 64).bfloat16()
    assert torch.allclose(torch.compile(sparse, fullgraph=True, backend="aot_eager")(x), layer(x), atol=1e-2)


def test_unet_has_1x1_products_and_keeps_its_3x3(cslt):
    backend, _ = cslt
    model = baked("digits-unet"); plain = copy.deepcopy(model)
    inputs = (torch.randn(2, 1, 8, 8), torch.tensor([1., 500.]))
    fast = sampling.accelerate_(model, inputs, backend=backend, timer=lambda calls: {k: [3. if "dense" in str(k) else 1.] for k in calls}, compile=False, progress=False)
    table = fast.choice.layers
    assert any(m.conv for m in fast.modules() if isinstance(m, sampling.SparseLinear))
    assert table.why[[k for k in table.index if k.endswith("conv1")]].eq("3×3 convolution: no 2:4 kernel in PyTorch or cuDNN").all()
    a, b = (sample(m, range(2), (1, 8, 8), steps=4) for m in (fast, plain.bfloat16()))
    assert (a - b).norm() < .01 * b.norm()


@pytest.mark.parametrize("pattern", ["1:4", "1:8"])
def test_sparser_patterns_are_24(pattern):
    model = baked(pattern=pattern)
    table = sampling.choose_layers(model, (torch.randn(1, 1, 8, 8), torch.tensor([3.])), sampling.reference_backend(), lambda calls: {k: [3. if k == "dense" else 1.] for k in calls})
    assert table.use_sparse.any()


def test_speed_notebook_from_cell_to_record(tmp_path):
    "Toy sizes, the reference back end, real timings: the record can be read, and a second start measures nothing twice."
    for d in ("nbs/runs", "data"): (tmp_path/d).mkdir(parents=True)
    for f in ("Snakefile", "settings.ini", "nbs/runs/speed.ipynb"): (tmp_path/f).write_text((ROOT/f).read_text())
    done = subprocess.run([sys.executable, "-m", "papermill", "--no-progress-bar", "nbs/runs/speed.ipynb", "out.ipynb", "-p", "tiny", "True"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((tmp_path/"runs/speed/cpu-toy.json").read_text())
    assert [c["kind"] for c in record["cells"]] == ["grid", "model", "conv"] and not (tmp_path/"data/records/speed").exists()
    from sparsedm.experiments import speed_records
    with patch.dict("os.environ", SPARSEDM_ROOT=str(tmp_path)): assert len(speed_records("runs/speed")) == 1
    model = record["cells"][1]
    assert model["chosen_s"] <= model["dense_s"] and model["parity"] is not None and model["sampling"] and len(model["kernels"]) == 10

    # the same record, under the names that Table 3 and the model table look for
    record["cells"][0] |= dict(patch_size=1, mlp_ratio=8); model |= dict(name="uvit-s-cifar10", batch=64)
    (tmp_path/"data/records/speed").mkdir(parents=True); (tmp_path/"data/records/speed/toy.json").write_text(json.dumps(record))
    for name, says in (("table3", "1 GPUs timed; 1 of 12 cells measured"), ("x_speed", "Amdahl bound")):
        (tmp_path/f"{name}.ipynb").write_text((ROOT/"nbs"/"paper"/f"{name}.ipynb").read_text())
        done = subprocess.run([sys.executable, "-m", "papermill", "--no-progress-bar", f"{name}.ipynb", "out.ipynb", "-p", "scale", "smoke"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        assert says in (tmp_path/"out.ipynb").read_text() and "cpu (toy)" in (tmp_path/f"figures/smoke/{name}.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_speed_notebook_without_a_gpu_says_so(tmp_path):
    done = subprocess.run([sys.executable, "-m", "papermill", "--no-progress-bar", "nbs/runs/speed.ipynb", str(tmp_path/"out.ipynb")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and "no CUDA GPU is available; 2:4 kernels need one of capability" in done.stderr and not list((ROOT/"data"/"records").glob("speed/cpu*"))


@on_gpu
@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
def test_gpu_parity_and_never_slower(compile):
    model = baked("uvit-s-cifar10"); plain = copy.deepcopy(model).cuda().bfloat16()
    inputs = (torch.randn(16, 3, 32, 32), torch.rand(16) * 999)
    fast = sampling.accelerate_(model, inputs, compile=compile, progress=False)
    assert fast.choice.speedup >= 1
    sparse = fast.choice.layers.assign(use_sparse=fast.choice.layers.dense_s.notna())   # all that fit, whether they gain or not
    every = sampling.Replay(sampling._swap(copy.deepcopy(plain), sparse, sampling.probe()), 16)
    put = lambda m: tuple(a.cuda().to(torch.bfloat16) if i == 0 else a.cuda() for i, a in enumerate(inputs))
    errors = sampling.parity(plain, every, put(inputs))
    assert (errors.sparse_error < 2 * errors.dense_error + 1e-3).all(), errors
    a, b = (sample(m, range(20), (3, 32, 32), steps=10, batch_size=16) for m in (every, plain))
    assert ((a - b).norm() / b.norm()) < .05   # the captured graph replays right, also for the short last batch


@on_gpu
def test_gpu_packed_round_trip(tmp_path):
    model = baked("uvit-s-cifar10").cuda()
    assert sampling.save_packed(model, tmp_path/"m.safetensors") <= .57
    dense, fast = sampling.load_packed(tmp_path/"m.safetensors").cuda(), sampling.load_packed(tmp_path/"m.safetensors", sampling.probe())
    assert all(a.to(torch.bfloat16).equal(b) for a, b in zip(model.state_dict().values(), dense.state_dict().values()))
    x, t = torch.randn(4, 3, 32, 32, device="cuda").bfloat16(), torch.rand(4, device="cuda") * 999
    a, b = fast(x, t).float(), dense(x, t).float()
    assert ((a - b).norm() / b.norm()) < .02
