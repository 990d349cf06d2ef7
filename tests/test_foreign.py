"""Sparse models in the hands of other libraries: trained, saved, resumed, adapted, quantized, sharded."""
import copy, os, subprocess, sys
from pathlib import Path
import pytest
import torch
from torch import nn
from sparsedm.like import keep_zeros, sparsify_like_
from sparsedm.share import load_shared, save_shared
from sparsedm.ste import add_masked_decay_, bake_, dense_weight, sparse_layers, sparsify_

lightning, peft, transformers = (pytest.importorskip(name) for name in ("lightning", "peft", "transformers"))
ROOT = Path(__file__).resolve().parent.parent


class Net(nn.Module):
    "Returns what transformers' Trainer wants."
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x, labels):
        y = self.second(self.first(x).relu())
        return dict(loss=(y - labels).square().mean(), logits=y)


def net(estimator="improved", seed=0):
    torch.manual_seed(seed)
    return sparsify_(Net(), "2:4", estimator)


def weights(model): return torch.cat([w.flatten() for w in model.state_dict().values()])


class Lit(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = net()

    def training_step(self, batch, i): return self.net(*batch)["loss"]

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        add_masked_decay_(optimizer, self)
        return optimizer


@pytest.fixture
def pairs():
    x = torch.randn(32, 2, 16, generator=torch.Generator().manual_seed(0))
    return [tuple(pair) for pair in x]


def test_lightning_resumes_to_the_bit(tmp_path, pairs):
    def fitted(epochs, **options):
        quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
        trainer = lightning.Trainer(max_epochs=epochs, accelerator="cpu", default_root_dir=tmp_path, **quiet)
        model = Lit()
        trainer.fit(model, torch.utils.data.DataLoader(pairs, 8), **options)
        trainer.save_checkpoint(tmp_path/"it.ckpt")
        return model
    whole = fitted(4)
    fitted(2)
    state = torch.load(tmp_path/"it.ckpt", weights_only=True)["state_dict"]
    assert list(state) == [f"net.{name}" for name in Net().state_dict()]
    assert torch.equal(weights(fitted(4, ckpt_path=tmp_path/"it.ckpt")), weights(whole))


def test_trainer_of_transformers_resumes_to_the_bit(tmp_path, pairs):
    data = [dict(x=x, labels=y) for x, y in pairs]
    def trained(folder, **options):
        arguments = transformers.TrainingArguments(folder, num_train_epochs=1, per_device_train_batch_size=8, save_steps=2,
                                                   report_to=[], use_cpu=True, disable_tqdm=True)
        trainer = transformers.Trainer(net("ste"), arguments, train_dataset=data)
        trainer.train(**options)
        return trainer.model
    whole = trained(tmp_path/"whole")
    again = trained(tmp_path/"again", resume_from_checkpoint=tmp_path/"whole"/"checkpoint-2")
    assert torch.equal(weights(again), weights(whole))


ADAPTER = dict(target_modules=["first", "second"], r=4, init_lora_weights=False)

@pytest.mark.parametrize("how", [dict(), dict(safe_merge=True)], ids=["plain", "safe"])
def test_an_adapter_is_not_merged_into_a_sparse_layer(how):
    adapted = peft.get_peft_model(net("fixed"), peft.LoraConfig(**ADAPTER))
    before = weights(adapted)
    with pytest.raises(RuntimeError, match="would be lost. Write to dense_weight"): adapted.merge_adapter(**how)
    assert torch.equal(weights(adapted), before)


def test_an_adapter_is_merged_into_a_baked_model_within_keep_zeros():
    baked = bake_(net())
    there = baked.first.weight != 0
    adapted = peft.get_peft_model(baked, peft.LoraConfig(**ADAPTER))
    with keep_zeros(adapted): merged = adapted.merge_and_unload(safe_merge=True)
    assert torch.equal(merged.first.weight != 0, there)


def test_adapters_that_were_there_before_stay_dense():
    adapted = sparsify_(peft.get_peft_model(Net(), peft.LoraConfig(**ADAPTER)))
    assert [name.rpartition(".")[2] for name in sparse_layers(adapted)] == ["base_layer"] * 2


def test_an_adapter_trains_beside_sparse_layers(pairs):
    adapted = peft.get_peft_model(net("fixed"), peft.LoraConfig(**ADAPTER))
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    x, y = (torch.stack(part) for part in zip(*pairs))
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        losses.append(adapted(x, y)["loss"])
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < .9 * losses[0]
    assert all((layer.weight == 0).float().mean() == .5 for layer in sparse_layers(adapted).values())


def test_quantized_layers_are_refused_before_and_after():
    torchao = pytest.importorskip("torchao.quantization")
    quantize = lambda model: torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    with pytest.raises(ValueError, match="quantize after bake_"): quantize(net())
    dense = Net()
    quantize(dense)
    with pytest.raises(ValueError, match="first.weight must be a plain parameter.*quantize after bake_"): sparsify_(dense)
    quantize(bake_(net()))


@pytest.mark.parametrize("estimator", ["ste", "improved", "fixed"])
def test_an_offloaded_model_says_the_same(estimator):
    from accelerate import cpu_offload
    model, x = net(estimator).eval(), torch.randn(4, 16)
    before = model(x, x)["logits"]
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert torch.equal(model(x, x)["logits"], before)
    with pytest.raises(ValueError, match="first.weight must be .* on meta; bring it there first"): bake_(model)


def test_pickled_and_copied_models_are_their_own(tmp_path):
    model = net("fixed")
    torch.save(model, tmp_path/"it.pt")
    loaded = torch.load(tmp_path/"it.pt", weights_only=False)   # written by this test
    for other in (loaded, copy.deepcopy(model)):
        with torch.no_grad(): dense_weight(other.first).mul_(2.)
        assert torch.equal(other.first.weight, 2 * model.first.weight)


SHARDED = """
import sys, torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
sys.path.insert(0, "tests")
from test_foreign import net
from sparsedm.like import keep_zeros, sparsify_like_
from sparsedm.share import load_shared, save_shared
from sparsedm.ste import add_masked_decay_
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
model = net()
for layer in (model.first, model.second): fully_shard(layer)
fully_shard(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
add_masked_decay_(optimizer, model)
torch.manual_seed(0)
for _ in range(5):
    optimizer.zero_grad()
    model(torch.randn(8, 16), torch.randn(8, 16))["loss"].backward()   # the same on both
    optimizer.step()
state = {name: w.full_tensor() for name, w in model.state_dict().items()}
if rank == 0: torch.save(state, f"{folder}/state.pt")
dist.destroy_process_group()
"""

def test_two_processes_that_shard_a_model_learn_what_one_learns(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SHARDED]
    both = [subprocess.Popen([*command, str(rank), str(tmp_path)], cwd=ROOT, env=environment) for rank in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    alone = net()
    optimizer = torch.optim.AdamW(alone.parameters(), lr=1e-2)
    add_masked_decay_(optimizer, alone)
    torch.manual_seed(0)
    for _ in range(5):
        optimizer.zero_grad()
        alone(torch.randn(8, 16), torch.randn(8, 16))["loss"].backward()
        optimizer.step()
    for name, w in torch.load(tmp_path/"state.pt", weights_only=True).items():
        torch.testing.assert_close(w, alone.state_dict()[name], atol=1e-6, rtol=1e-5)


def bert(seed=0):
    torch.manual_seed(seed)
    small = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    return transformers.BertForMaskedLM(transformers.BertConfig(**small))


def test_transformers_know_again_how_they_were_sparse(tmp_path):
    model = sparsify_(bert(), "2:4", "improved", exclude="*decoder")
    model.save_pretrained(tmp_path/"training")
    again = sparsify_like_(transformers.BertForMaskedLM.from_pretrained(tmp_path/"training"), tmp_path/"training")
    assert list(sparse_layers(again)) == list(sparse_layers(model))
    assert list(sparse_layers(load_shared(tmp_path/"training"))) == list(sparse_layers(model))
    back = load_shared(save_shared(bake_(model), tmp_path/"baked", "mit"))
    assert type(back) is type(model)   # and not the network without its head
    for name, w in model.state_dict().items(): assert torch.equal(back.state_dict()[name], w), name


def test_transformers_without_their_head_are_refused(tmp_path):
    bert().bert.save_pretrained(tmp_path)
    config = (tmp_path/"config.json").read_text().replace("BertModel", "BertForMaskedLM")
    (tmp_path/"config.json").write_text(config)
    with pytest.raises(ValueError, match="lacks weights: cls.predictions"): load_shared(tmp_path)


def test_adapters_beside_a_sparse_convolution():
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1))
    sparsify_(model, targets=["0", "2"], estimator="ste")
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["0", "2"], r=2))
    assert [type(m).__name__ for m in sparse_layers(adapted).values()] == ["SparseConv2d"] * 2
    x = torch.randn(2, 8, 4, 4)
    adapted(x).square().mean().backward()
    trained = {name for name, p in adapted.named_parameters() if p.grad is not None}
    assert trained and all("lora_" in name for name in trained)
