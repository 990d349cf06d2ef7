"""The road of the paper's own data sets, on made ones in their layouts: files → shards → a published network → records."""
import json
from dataclasses import replace
import numpy as np, pytest, torch
from diffusers import AutoencoderKL
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from sparsedm import prepare
from sparsedm.conditions import told_samples
from sparsedm.data import load_images, pictures
from sparsedm.declare import CODECS, DATASETS, PRESETS, SCALES, Measure, Net, Recipe, Scale
from sparsedm.execute import do_run, load_start
from sparsedm.models import build_model
from sparsedm.overview import lacking
from sparsedm.prepare import PREPARED, TEXT_WIDTH, Prepared, add_codec, latents, with_text
from sparsedm.run import make_run
from sparsedm.sources import SOURCES, Source, coco

RECIPE = Recipe(6, 8, lr=1e-3, warmup=2, ema=.5, betas=(.9, .9))
TOLD = dict(cond="texts", drop=.1, guidance=1., process="uvit-discrete")
NETWORK = dict(kind="uvit", img_size=8, patch_size=2, in_chans=4, embed_dim=32, depth=2, num_heads=4, clip_dim=TEXT_WIDTH,
               num_clip_token=20)


def lay(folder):
    "48 pictures with one or two captions each, half of them for validation, as MS-COCO has them."
    for part, first in (("train2014", 0), ("val2014", 24)):
        (folder/part).mkdir(parents=True)
        shades = np.random.RandomState(first).randint(0, 255, (24, 20, 24, 3), dtype=np.uint8)
        for i, pixels in enumerate(shades): Image.fromarray(pixels).save(folder/part/f"{first + i}.png")
        images = [dict(id=first + i, file_name=f"{first + i}.png") for i in range(24)]
        said = [dict(id=10 * i + k, image_id=first + i, caption=f"picture {i} {'again' * k}")
                for i in range(24) for k in range(1 + i % 2)]
        (folder/"annotations").mkdir(exist_ok=True)
        (folder/"annotations"/f"captions_{part}.json").write_text(json.dumps(dict(images=images, annotations=said)))


def networks(folder):
    "An autoencoder and a text encoder of the true classes, with random weights."
    blocks = dict(down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2)
    torch.manual_seed(0)
    AutoencoderKL(**blocks, block_out_channels=[8, 8], norm_num_groups=4, latent_channels=4).save_pretrained(folder/"kl")
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789"]
    words = {w: i for i, w in enumerate([*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"])}
    (folder/"clip").mkdir()
    (folder/"clip"/"vocab.json").write_text(json.dumps(words))
    (folder/"clip"/"merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder/"clip"/"vocab.json"), str(folder/"clip"/"merges.txt")).save_pretrained(folder/"clip")
    shape = dict(hidden_size=TEXT_WIDTH, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    ends = dict(bos_token_id=72, eos_token_id=73, pad_token_id=73)
    CLIPTextModel(CLIPTextConfig(vocab_size=74, max_position_embeddings=20, **shape, **ends)).save_pretrained(folder/"clip")


@pytest.fixture
def home(tmp_path, monkeypatch):
    "A root with nothing but the layout, and a scale for it; what is declared goes when it is over."
    root = tmp_path/"root"
    (root/"data").mkdir(parents=True)
    for file in ("Snakefile", "settings.ini"): (root/file).touch()
    (root/"data"/"extractors").symlink_to(prepare.__file__.rsplit("/", 2)[0] + "/data/extractors")
    monkeypatch.setenv("SPARSEDM_ROOT", str(root))
    monkeypatch.setenv("SPARSEDM_DATA", str(root/"data"))
    SCALES.named("smoke")   # the papers are loaded
    for registry in (SOURCES, CODECS, PREPARED, DATASETS, PRESETS, SCALES):
        for name in ("toy-coco", "toy-texts"): monkeypatch.delitem(registry, name, raising=False)
    lay(root/"data"/"toy_coco")
    networks(root/"data")
    SOURCES.add(Source("toy-coco", coco, "toy_coco", dict(train=24, val=24), "It is made in this test."))
    add_codec("toy-coco", root/"data"/"kl", factor=.5)
    make = with_text(latents(root/"data"/"kl", factor=.5), root/"data"/"clip", 2)
    prepare.declare(Prepared("toy-coco", "toy-coco", 16, dict(train="train", test="val"), make, "toy-coco", batch=8,
                             text=root/"data"/"clip", reference="test", fid_samples=100))
    PRESETS.add(NETWORK, "toy-texts")
    net = Net("toy-texts", RECIPE, RECIPE, layers="code", options=TOLD, published=str(root/"data"/"published.pth"))
    measure = Measure("efficientnet-lite0", 12, "dpm-solver", 4)
    SCALES.add(Scale("toy-coco", data="toy-coco", nets=dict(uvit=net), measure=measure, tables=("table2",)))
    yield root
    for registry in (SOURCES, CODECS, PREPARED, DATASETS, PRESETS, SCALES):
        for name in ("toy-coco", "toy-texts"): registry.pop(name, None)


@pytest.mark.filterwarnings("ignore")
def test_from_files_and_captions_to_a_sparse_network_that_is_told_them(home):
    lacks = lacking("toy-coco")
    assert [f"data set toy-coco, {part}" in words for part, words in zip(("test", "train"), lacks)] == [True, True]
    assert "no checkpoint at" in lacks[2]
    for split in ("train", "test"): prepare.prepare("toy-coco", split, per_shard=10, progress=False)
    torch.manual_seed(1)
    published = build_model("toy-texts")
    torch.save(published.state_dict(), home/"data"/"published.pth")
    assert lacking("toy-coco") == []

    dense, ours, one_shot = (make_run("toy-coco", m) for m in ("dense", "ours", "sparsegpt"))
    assert (dense.steps, ours.betas) == (0, [.9, .9])
    record = do_run(dense)
    assert torch.equal(load_start(ours).state_dict()["context_embed.weight"], published.state_dict()["context_embed.weight"])
    found = do_run(ours)
    for r in (found, do_run(one_shot)): assert r["kept"] < r["params"] and r["metrics"]["dense_mse"] > 0
    reference = pictures(load_images("toy-coco", "test"))
    for r in (record, found): assert r["metrics"]["reference_sha"] == reference.sha and r["metrics"]["n_reference"] == 24
    shards = load_images("toy-coco", "test")   # samples are told what the images they are compared with are told
    said = told_samples(ours, 4)["context"]
    assert said.shape == (4, 20, TEXT_WIDTH) and all((shards.read("context", slice(None)).float()[:, 0] == row).all((1, 2)).any()
                                                     for row in said)


@pytest.mark.filterwarnings("ignore")
def test_a_published_network_of_another_shape_is_refused_before_anything_is_done(home):
    torch.save(build_model("smoke").state_dict(), home/"data"/"published.pth")
    for split in ("train", "test"): prepare.prepare("toy-coco", split, per_shard=10, progress=False)
    with pytest.raises(ValueError, match="toy-texts"): do_run(make_run("toy-coco", "dense"))


@pytest.mark.filterwarnings("ignore")
def test_latents_of_another_factor_are_others(home):
    prepare.prepare("toy-coco", "train", per_shard=10, progress=False)
    shards = load_images("toy-coco")
    codec = prepare.load_autoencoder(home/"data"/"kl")
    pixels = prepare.open_source("toy-coco", "train", 16)[[3]]
    torch.testing.assert_close(shards[[3]], codec.encode(pixels) * codec.spread * .5, rtol=1e-4, atol=1e-5)
    PREPARED["toy-coco"] = replace(PREPARED["toy-coco"], make=with_text(latents(home/"data"/"kl"), home/"data"/"clip", 2))
    with pytest.raises(ValueError, match="holds other shards"): prepare.prepare("toy-coco", "train", per_shard=10)
