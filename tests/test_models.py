"""Other people's models: made sparse, trained a step, baked, saved, loaded without sparsedm, accelerated."""
import copy
import pytest
import torch
from torch import nn
import diffusers
from sparsedm.accelerate import accelerate_
from sparsedm.like import sparsify_zeros_
from sparsedm.ste import bake_, sparse_layers, sparsify_, sparsity_report

SMALL = dict(sample_size=8, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8)
CONDITIONED = dict(**SMALL, cross_attention_dim=16, attention_head_dim=4)
TOKENS = dict(num_attention_heads=2, attention_head_dim=16, in_channels=4, num_layers=2, sample_size=8, patch_size=2)
LATENTS, TIMES, TEXT = (2, 4, 8, 8), torch.tensor([5, 6]), (2, 3, 16)
ROWS = {   # class: its arguments, shapes of inputs, the layers outside blocks, which stay dense
    "UNet2DModel": (dict(**SMALL, in_channels=4, out_channels=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                         up_block_types=("AttnUpBlock2D", "UpBlock2D")),
                    dict(sample=LATENTS, timestep=TIMES), "conv_in time_embedding conv_out"),
    "UNet2DConditionModel": (dict(**CONDITIONED, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                                  up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")),
                             dict(sample=LATENTS, timestep=TIMES, encoder_hidden_states=TEXT), "conv_in time_embedding conv_out"),
    "UNet3DConditionModel": (dict(**CONDITIONED, down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
                                  up_block_types=("UpBlock3D", "CrossAttnUpBlock3D")),
                             dict(sample=(2, 4, 3, 8, 8), timestep=TIMES, encoder_hidden_states=TEXT),
                             "conv_in time_embedding conv_out"),
    "DiTTransformer2DModel": (dict(**TOKENS, out_channels=8, num_embeds_ada_norm=10),
                              dict(hidden_states=LATENTS, timestep=TIMES, class_labels=torch.tensor([1, 2])),
                              "pos_embed proj_out_1 proj_out_2"),
    "PixArtTransformer2DModel": (dict(**TOKENS, out_channels=8, cross_attention_dim=32, caption_channels=16),
                                 dict(hidden_states=LATENTS, timestep=TIMES, encoder_hidden_states=TEXT,
                                      added_cond_kwargs=dict(resolution=None, aspect_ratio=None)),
                                 "pos_embed proj_out adaln_single caption_projection"),
    "SD3Transformer2DModel": (dict(**TOKENS, out_channels=4, joint_attention_dim=16, caption_projection_dim=32,
                                   pooled_projection_dim=32),
                              dict(hidden_states=LATENTS, timestep=TIMES, encoder_hidden_states=TEXT,
                                   pooled_projections=(2, 32)),
                              "pos_embed time_text_embed context_embedder norm_out proj_out"),
    "FluxTransformer2DModel": (dict(patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
                                    num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=32,
                                    axes_dims_rope=[4, 4, 8]),
                               dict(hidden_states=(2, 16, 4), timestep=TIMES / 10, encoder_hidden_states=TEXT,
                                    pooled_projections=(2, 32), img_ids=torch.zeros(16, 3), txt_ids=torch.zeros(3, 3)),
                               "time_text_embed context_embedder x_embedder norm_out proj_out"),
    "AutoencoderKL": (dict(block_out_channels=(32, 64), latent_channels=4, norm_num_groups=8,
                           down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2),
                      dict(sample=(2, 3, 16, 16)),
                      "encoder.conv_in encoder.conv_out decoder.conv_in decoder.conv_out quant_conv post_quant_conv"),
}


def made(name):
    torch.manual_seed(0)
    arguments, shapes, _ = ROWS[name]
    inputs = {key: torch.randn(shape) if type(shape) is tuple else shape for key, shape in shapes.items()}
    return getattr(diffusers, name)(**arguments).eval(), inputs


@pytest.mark.parametrize("name", ROWS)
def test_a_model_of_diffusers(name, tmp_path):
    model, inputs = made(name)
    sparsify_(model, "2:4", "ste")
    report = sparsity_report(model)
    assert report.loc["total", "params"] == sum(p.numel() for p in model.parameters())
    for end in ROWS[name][2].split():
        rows = [row for row in report.index if f"{row}.".startswith(f"{end}.")]
        assert rows and (report.pattern[rows] == "").all(), end
    model(**inputs, return_dict=False)[0].square().mean().backward()
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    before, sparse = model(**inputs, return_dict=False)[0], list(sparse_layers(model))
    bake_(model).save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()   # which knows nothing of masks
    assert torch.equal(loaded(**inputs, return_dict=False)[0], before)
    assert list(sparse_layers(sparsify_zeros_(copy.deepcopy(loaded)))) == sparse
    fast = accelerate_(loaded, (), kwargs=inputs, compile=False, progress=False)
    torch.testing.assert_close(fast(**inputs, return_dict=False)[0], before, atol=1e-4, rtol=1e-3)


def test_a_pipeline_draws_with_an_accelerated_part(tmp_path):
    arguments = dict(CONDITIONED, block_out_channels=(64, 128), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                     up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
    unet = bake_(sparsify_(diffusers.UNet2DConditionModel(**arguments), "1:8"))
    vae, _ = made("AutoencoderKL")
    nothing = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    pipe = diffusers.StableDiffusionPipeline(vae, unet=unet, scheduler=diffusers.DDIMScheduler(), **nothing,
                                             requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    texts = dict(prompt_embeds=torch.randn(2, 3, 16), negative_prompt_embeds=torch.randn(2, 3, 16))
    settings = dict(num_inference_steps=3, guidance_scale=4., output_type="np")
    def draw(): return torch.from_numpy(pipe(**texts, **settings, generator=torch.Generator().manual_seed(0)).images)
    before = draw()
    inputs = dict(sample=torch.randn(4, 4, 8, 8), timestep=torch.tensor(3), encoder_hidden_states=torch.randn(4, 3, 16))
    pipe.unet = accelerate_(copy.deepcopy(unet), (), kwargs=inputs, compile=False, progress=False)
    torch.testing.assert_close(draw(), before, atol=1e-3, rtol=1e-3)
    if "sparse" in pipe.unet.choice.chosen:
        with pytest.raises(RuntimeError, match="packed for this machine"): pipe.unet.save_pretrained(tmp_path)


class Mixed(nn.Module):
    "All that cannot be sparse, and two layers that can."
    def __init__(self):
        super().__init__()
        self.table, self.attention = nn.Embedding(8, 16), nn.MultiheadAttention(16, 2)
        self.up, self.norm = nn.ConvTranspose2d(16, 16, 2), nn.LayerNorm(16)
        self.gru, self.volume = nn.GRU(16, 16), nn.Conv3d(16, 16, 1)


def test_what_cannot_be_sparse_is_listed_with_its_reason():
    report = sparsity_report(sparsify_(Mixed()))
    assert list(report.index[report.pattern == "2:4"]) == ["attention.out_proj", "volume"]
    never = report.dense_because[["table", "attention", "up", "gru"]]
    assert never.str.contains("a table|holds three matrices|inputs first|recurrent").all()
    assert report.loc["total", "params"] == sum(p.numel() for p in Mixed().parameters())


def test_several_calls_and_a_pattern_for_each():
    model = sparsify_(sparsify_(Mixed(), targets="volume"), "1:4", targets="out_proj")
    assert sparsity_report(model).pattern[["volume", "attention.out_proj"]].tolist() == ["2:4", "1:4"]
    both = sparsify_(Mixed(), {"out_proj": "1:4", "*": "2:4"})
    assert sparsity_report(both).equals(sparsity_report(model))
    with pytest.raises(ValueError, match="attention.out_proj is sparse already.*exclude it"): sparsify_(model, "1:8")

