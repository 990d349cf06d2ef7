"""2:4 on a GPU: what surrounds the raw operators, on the CPU with operators and CUDA acted; all of it on a GPU.

Tests that need a GPU have names that begin with `test_gpu_`."""
import copy, json
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch
import pytest, torch
import torch.nn.functional as F
from execnb.nbio import read_nb
from execnb.shell import CaptureShell
from sparsedm import accelerate, gpu
from sparsedm.checkpoints import load_tensors, save_tensors
from sparsedm.diffusion import sample
from sparsedm.models import build_model
from sparsedm.packing import load_packed, save_packed
from sparsedm.records import speed_records
from sparsedm.ste import bake_, sparsify_

ROOT = Path(__file__).resolve().parent.parent
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
SMALL = (torch.randn(2, 1, 8, 8), torch.tensor([1., 500.]))   # inputs of the digits models


def baked(name="smoke", seed=0, pattern="2:4", **overrides):
    torch.manual_seed(seed)
    return bake_(sparsify_(build_model(name, **overrides), pattern)).eval().requires_grad_(False)


def sparse_wins(calls): return {name: [3. if "dense" in str(name) else 1.] for name in calls}


def relative(a, b): return ((a - b).norm() / b.norm()).item()


def acting(answers):
    "Functions replaced by others, by name."
    stack = ExitStack()
    for name, answer in answers.items(): stack.enter_context(patch(name, answer, create=True))
    return stack


# ---- cuSPARSELt, acted ----

@pytest.fixture
def cslt():
    "The back end with its operators acted on the CPU, and a list of what they were asked."
    seen = []
    def mm(packed, b, bias=None, transpose_result=False, alg_id=0, split_k=1, split_k_mode=-1):
        "`torch._cslt_sparse_mm` on dense weights: asserts what cuSPARSELt demands, answers as it does."
        assert b.dim() == 2 and b.shape[1] % 8 == 0 and b.t().is_contiguous()
        assert transpose_result and b.dtype == packed.dtype
        seen.append((b.shape[1], alg_id, split_k, split_k_mode))
        return F.linear(b.t(), packed, bias)
    def search(packed, b, bias, alpha, out_dtype, transpose_result):
        "`mm_search` takes tensors only."
        assert isinstance(packed, torch.Tensor) and b.shape[1] % 8 == 0 and transpose_result
        return 7, 2, 1, 30
    acted = {"torch._cslt_sparse_mm": mm, "torch._C._cusparselt.mm_search": search,
             "torch._cslt_compress": torch.clone, "torch.cuda.get_device_capability": lambda d=None: (9, 0),
             "torch.backends.cusparselt.is_available": lambda: True, "torch.backends.cusparselt.version": lambda: 801}
    with acting(acted): yield gpu.gpu_backends("cpu")[0], seen


@pytest.mark.parametrize("rows, padded", [(1, 8), (257, 264), (2056, 2056)])
def test_rows_are_padded_and_the_result_is_row_major(cslt, rows, padded):
    backend, seen = cslt
    w, x, b = torch.randn(32, 64).bfloat16(), torch.randn(rows, 64).bfloat16(), torch.randn(32).bfloat16()
    y = backend.linear(x, backend.compress(w), b, (7, 2, 1))
    assert y.shape == (rows, 32) and y.is_contiguous() and torch.allclose(y, F.linear(x, w, b))
    assert seen == [(padded, 7, 2, 1)]


def test_the_plan_of_the_search_is_timed_and_used(cslt):
    backend, seen = cslt
    seconds = {"dense": 3., (0, 1, -1): 2., (7, 1, -1): 2.5, (7, 2, 1): 1., "sparse": 1.}
    asked = []
    def timer(calls):
        asked.append(set(calls))
        return {name: [seconds.get(name, 9.)] for name in calls}
    fast = accelerate.accelerate_(baked(), SMALL, backend=backend, timer=timer, compile=False, progress=False)
    used = [m for m in fast.modules() if isinstance(m, gpu.SparseLinear)]
    assert {"dense", (0, 1, -1), (7, 1, -1), (7, 2, 1)} in asked
    assert used and all(m.plan == (7, 2, 1) for m in used)
    seen.clear()
    fast(*SMALL)
    assert len(seen) == len(used) and {s[1:] for s in seen} == {(7, 2, 1)}


def test_a_plan_with_a_wrong_product_is_not_used(cslt):
    backend, _ = cslt
    right = torch._cslt_sparse_mm
    def wrong_for_7(packed, b, bias=None, alg_id=0, **others):
        return right(packed, b, bias, alg_id=alg_id, **others) * (1.5 if alg_id == 7 else 1)
    inputs = accelerate.cast_inputs(SMALL, torch.bfloat16)
    with patch("torch._cslt_sparse_mm", wrong_for_7):
        table = accelerate.choose_layers(baked().bfloat16(), inputs, backend, sparse_wins)
    assert set(table.plan[table.use_sparse]) == {(0, 1, -1)}


def test_a_search_that_fails_leaves_the_librarys_own_plan(cslt):
    backend, _ = cslt
    def fails(*args): raise RuntimeError("no algorithm")
    inputs = accelerate.cast_inputs(SMALL, torch.bfloat16)
    with patch("torch._C._cusparselt.mm_search", fails):
        table = accelerate.choose_layers(baked().bfloat16(), inputs, backend, sparse_wins)
    assert table.use_sparse.any() and set(table.plan[table.use_sparse]) == {(0, 1, -1)}


def test_compiles_without_a_graph_break(cslt):
    backend, _ = cslt
    layer = torch.nn.Linear(64, 32).bfloat16().requires_grad_(False)
    layer.weight.mul_(torch.arange(64) % 4 < 2)
    sparse, x = gpu.SparseLinear(layer, backend), torch.randn(3, 5, 64).bfloat16()
    assert torch.allclose(torch.compile(sparse, fullgraph=True, backend="aot_eager")(x), layer(x), atol=1e-2)


def test_unet_has_1x1_products_and_keeps_its_3x3(cslt):
    backend, _ = cslt
    model = baked("digits-unet")
    plain = copy.deepcopy(model).bfloat16()
    fast = accelerate.accelerate_(model, SMALL, backend=backend, timer=sparse_wins, compile=False, progress=False)
    why = fast.choice.layers.why
    assert any(m.conv for m in fast.modules() if isinstance(m, gpu.SparseLinear))
    assert why[why.index.str.endswith("conv1")].eq("3×3 convolution: no 2:4 kernel in PyTorch or cuDNN").all()
    a, b = (sample(m, range(2), (1, 8, 8), "euler-maruyama", steps=4) for m in (fast, plain))
    assert relative(a, b) < .01


@pytest.mark.parametrize("pattern", ["1:4", "1:8"])
def test_sparser_patterns_are_24(pattern):
    table = accelerate.choose_layers(baked(pattern=pattern), SMALL, gpu.reference_backend(), sparse_wins)
    assert table.use_sparse.any()


# ---- CUDA graphs, acted ----

class ActedCUDA:
    "Calls happen at once and take a second; a graph repeats what was called while it was captured."
    def __init__(self): self.now, self.recording = 0., None

    def call(self, f):
        "What a kernel is: work that takes a second, and is repeated by a graph."
        def work():
            self.now += 1e3
            f()
        work()
        if self.recording is not None: self.recording.work.append(work)

    def Event(self, enable_timing):
        event = SimpleNamespace(synchronize=lambda: None)
        event.record = lambda: setattr(event, "at", self.now)
        event.elapsed_time = lambda other: other.at - event.at
        return event

    def CUDAGraph(self):
        graph = SimpleNamespace(work=[])
        graph.replay = lambda: [work() for work in graph.work]
        return graph

    @contextmanager
    def graph(self, graph):
        self.recording = graph
        yield
        self.recording = None


@pytest.fixture
def cuda():
    acted = ActedCUDA()
    stream = SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: None)
    names = dict(Event=acted.Event, CUDAGraph=acted.CUDAGraph, graph=acted.graph, Stream=lambda: stream,
                 current_stream=lambda: stream, stream=nullcontext, synchronize=lambda: None)
    with acting({f"torch.cuda.{name}": answer for name, answer in names.items()}): yield acted


def test_forms_are_timed_in_turns(cuda):
    order = []
    def form(name, kernels):
        def call():
            for _ in range(kernels): cuda.call(lambda: order.append(name))
        return call
    times = gpu.cuda_times({"a": form("a", 1), "b": form("b", 2)}, budget=1e-3)
    assert times == {"a": [1.] * 5, "b": [2.] * 5}                       # at least five rounds, seconds per call
    assert order[-15:] == ["a", "b", "b"] * 5


def test_timing_stops_when_its_time_is_spent(cuda):
    def call(): cuda.call(lambda: None)
    assert len(gpu.cuda_times({"a": call}, budget=8)["a"]) == 8
    assert len(gpu.cuda_times({"a": call}, budget=1e3)["a"]) == 30


def test_a_replayed_step_reads_the_new_inputs(cuda):
    class Doubles(torch.nn.Module):
        def forward(self, x, timesteps, y=None, context=None):
            out = torch.empty_like(x)
            cuda.call(lambda: torch.mul(x, 2, out=out))
            return out
    fast = accelerate.Replay(Doubles(), batch=2)
    for value in (1., 5.): assert accelerate._replayed(fast, (torch.full((2, 3), value), torch.zeros(2)), {}).eq(2 * value).all()
    accelerate._replayed(fast, (torch.ones(2, 3), torch.zeros(2)), dict(y=torch.zeros(2, dtype=torch.long)))
    assert len(fast.graphs) == 2                                        # another kind of input is another graph


# ---- files ----

def test_a_packed_model_of_an_unknown_kind_is_named(tmp_path):
    path = tmp_path/"m.safetensors"
    save_packed(baked(), path)
    tensors, meta = load_tensors(path)
    save_tensors(path, tensors, meta | {"model": {"kind": "vit"}})
    says = "m.safetensors does not say how .* unknown kind of model 'vit'"
    with pytest.raises(ValueError, match=says): load_packed(path)


# ---- the notebook that times a GPU ----

def run_here(notebook, **parameters):
    "Execute a notebook in this process, with parameters as papermill gives them; what it has shown, as text."
    nb = read_nb(notebook)
    given = next(cell for cell in nb.cells if "parameters" in cell.metadata.get("tags", []))
    given.source += "".join(f"\n{name} = {value!r}" for name, value in parameters.items())
    CaptureShell(mpl_format=None).run_all(nb, exc_stop=True)
    return json.dumps([cell.outputs for cell in nb.cells if cell.cell_type == "code"], ensure_ascii=False)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    "An empty checkout, which is the root."
    for name in ("Snakefile", "settings.ini"): (tmp_path/name).write_text((ROOT/name).read_text())
    monkeypatch.setenv("SPARSEDM_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def drawing(name): return max((ROOT/"nbs"/"paper").rglob(f"{name}.ipynb"), key=lambda path: len(path.parts))


def test_speed_notebook_from_cell_to_record(checkout):
    "Toy sizes, the reference back end, real timings: the record can be read, and the tables are drawn from it."
    run_here(ROOT/"nbs"/"runs"/"speed.ipynb", tiny=True)
    record = json.loads((checkout/"runs"/"speed"/"cpu-toy.json").read_text())
    assert [c["kind"] for c in record["cells"]] == ["grid", "model", "conv"] and not record["failed"]
    assert not (checkout/"data"/"records"/"speed").exists()
    assert len(speed_records("runs/speed")) == 1
    grid, model, _ = record["cells"]
    assert model["chosen_s"] <= model["dense_s"] and model["parity"] is not None
    assert model["sampling"] and len(model["kernels"]) == 10

    # the same record, under the names that Table 3 and the model table look for
    grid |= dict(patch_size=1, mlp_ratio=8)
    model |= dict(name="uvit-s-cifar10", batch=64)
    (checkout/"data"/"records"/"speed").mkdir(parents=True)
    (checkout/"data"/"records"/"speed"/"toy.json").write_text(json.dumps(record))
    for name, says in (("table3", "1 GPUs timed; 1 of 12 cells measured"), ("x_speed", "Amdahl bound")):
        assert says in run_here(drawing(name), scale="smoke")
        assert "cpu (toy)" in (checkout/"figures"/"smoke"/f"{name}.md").read_text()


def test_speed_notebook_stops_when_its_time_is_up(checkout):
    said = run_here(ROOT/"nbs"/"runs"/"speed.ipynb", tiny=True, minutes=0.)
    assert "time is up: 2 cells wait for the next start" in said
    assert len(speed_records("runs/speed")[0]["cells"]) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_speed_notebook_without_a_gpu_says_so(checkout):
    needs = "no CUDA GPU is available; 2:4 kernels need one of capability"
    with pytest.raises(RuntimeError, match=needs): run_here(ROOT/"nbs"/"runs"/"speed.ipynb")
    assert not list(checkout.rglob("*.json"))


# ---- on a GPU ----

@on_gpu
@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
def test_gpu_parity_and_never_slower(compile):
    model = baked("uvit-s-cifar10")
    plain = copy.deepcopy(model).cuda().bfloat16()
    inputs = (torch.randn(16, 3, 32, 32), torch.rand(16) * 999)
    fast = accelerate.accelerate_(model, inputs, compile=compile, progress=False)
    assert fast.choice.speedup >= 1
    layers = fast.choice.layers
    fitting = layers.assign(use_sparse=layers.dense_s.notna())   # all that fit, whether they gain or not
    every = accelerate.Replay(accelerate.swap_layers(copy.deepcopy(plain), fitting, gpu.probe()), 16)
    errors = accelerate.parity(plain, every, accelerate.cast_inputs(inputs, torch.bfloat16, "cuda"))
    assert (errors.sparse_error < 2 * errors.dense_error + 1e-3).all(), errors
    a, b = (sample(m, range(20), (3, 32, 32), steps=10, batch_size=16) for m in (every, plain))
    assert relative(a, b) < .05   # the captured graph replays right, also for the short last batch


@on_gpu
def test_gpu_packed_round_trip(tmp_path):
    model = baked("uvit-s-cifar10").cuda()
    assert save_packed(model, tmp_path/"m.safetensors") <= .57
    dense = load_packed(tmp_path/"m.safetensors").cuda()
    fast = load_packed(tmp_path/"m.safetensors", gpu.probe())
    for a, b in zip(model.state_dict().values(), dense.state_dict().values()): assert a.to(torch.bfloat16).equal(b)
    x, t = torch.randn(4, 3, 32, 32, device="cuda").bfloat16(), torch.rand(4, device="cuda") * 999
    assert relative(fast(x, t).float(), dense(x, t).float()) < .02
