"""Bases in diffusers' form, with random weights and so small that they train on a CPU in no time."""

import json

import pytest
import torch
from safetensors.torch import save_file

CONTEXT, POOLED, WORDS, SIDE = 24, 16, 5, 8


def small_unet(family):
    import diffusers

    more = {"attention_head_dim": (2, 4)}
    if family == "sdxl":
        more |= {
            "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + POOLED,
            "transformer_layers_per_block": (1, 2),
        }  # fmt: skip
    return diffusers.UNet2DConditionModel(
        sample_size=SIDE, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, cross_attention_dim=CONTEXT,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True, **more,
    )  # fmt: skip


def small_pixart(sized):
    import diffusers

    return diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=2, cross_attention_dim=24,
        caption_channels=CONTEXT, sample_size=SIDE, use_additional_conditions=sized, interpolation_scale=1,
    )  # fmt: skip


@pytest.fixture
def write_base():
    """write_base(folder, family, prediction) -> a pipeline's network and scheduler; "pixart_1024" is told the picture's size."""
    pytest.importorskip("diffusers", reason="the trainer's extra is not installed")
    import diffusers

    def write(folder, family, prediction="epsilon"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            network = small_pixart(family == "pixart_1024") if family.startswith("pixart") else small_unet(family)
            for parameter in network.parameters():
                if parameter.ndim > 1:  # far from the quiet start that libraries choose, so that every part of the input matters
                    torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        network.save_pretrained(folder / ("transformer" if family.startswith("pixart") else "unet"))
        betas = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
        if not family.startswith("pixart"):
            betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
        diffusers.DDPMScheduler(**betas, prediction_type=prediction).save_pretrained(folder / "scheduler")
        return folder

    return write


def in_half(tensor):
    return tensor.half() if tensor.is_floating_point() else tensor


@pytest.fixture
def write_latents():
    """write_latents(folder, family, rows) -> a dataset folder as `spatialweave intrinsics encode` makes it, of random numbers."""

    def write(folder, family, rows=6, **leave_out):
        generator = torch.Generator().manual_seed(1)
        folder.mkdir()
        tensors = {
            "latent": torch.randn(rows, 4, SIDE, SIDE, generator=generator),
            "intrinsic_latent": torch.randn(rows, 4, SIDE, SIDE, generator=generator),
            "context": torch.randn(rows, WORDS, CONTEXT, generator=generator),
        }
        if family == "sdxl":
            tensors["pooled"] = torch.randn(rows, POOLED, generator=generator)
        if family.startswith("pixart"):
            tensors["context_mask"] = (torch.arange(WORDS) < torch.arange(rows)[:, None] % WORDS + 1).to(torch.uint8)
        empty = {name: value[0] * 0 + 1 for name, value in tensors.items() if not name.endswith("latent")}
        kept = {name: in_half(value) for name, value in tensors.items() if leave_out.get(name, True)}
        save_file(kept, folder / "shard-00000.safetensors")
        save_file({name: in_half(value) for name, value in empty.items()}, folder / "empty_context.safetensors")
        lines = [json.dumps({"shard": "shard-00000.safetensors", "row": row, "caption": "x"}) for row in range(rows)]
        (folder / "manifest.jsonl").write_text("\n".join(lines))
        return folder

    return write
