"""Bases in diffusers' form, with random weights and so small that they train on a CPU in no time."""

import json

import pytest
import torch
from safetensors.torch import save_file

CONTEXT, POOLED, WORDS, SIDE = 24, 16, 5, 8
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def small_unet(family):
    import diffusers

    more = {"attention_head_dim": (2, 4)}
    if family == "sdxl":
        more |= {
            "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + POOLED,
            "transformer_layers_per_block": (1, 2),
        }  # fmt: skip
    return diffusers.UNet2DConditionModel(
        sample_size=SIDE, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
        cross_attention_dim=CONTEXT,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True, **more,
    )  # fmt: skip


def small_pixart(sized):
    import diffusers

    return diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=2,
        cross_attention_dim=24,
        caption_channels=CONTEXT, sample_size=SIDE, use_additional_conditions=sized, interpolation_scale=1,
    )  # fmt: skip


@pytest.fixture
def write_base():
    """write_base(folder, family, prediction) -> a pipeline's network and scheduler;
    "pixart_1024" is told the picture's size.
    """
    pytest.importorskip("diffusers", reason="the trainer's extra is not installed")
    import diffusers

    def write(folder, family, prediction="epsilon"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            network = (
                small_pixart(family == "pixart_1024") if family.startswith("pixart") else small_unet(family)
            )
            for parameter in network.parameters():
                # far from the quiet start that libraries choose, so that every part of the input matters
                if parameter.ndim > 1:
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
    """write_latents(folder, family, rows) -> a dataset folder as `spatialweave intrinsics encode` makes it,
    of random numbers.
    """

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
            tensors["context_mask"] = (torch.arange(WORDS) < torch.arange(rows)[:, None] % WORDS + 1).to(
                torch.uint8
            )
        empty = {name: value[0] * 0 + 1 for name, value in tensors.items() if not name.endswith("latent")}
        kept = {name: in_half(value) for name, value in tensors.items() if leave_out.get(name, True)}
        save_file(kept, folder / "shard-00000.safetensors")
        save_file(
            {name: in_half(value) for name, value in empty.items()}, folder / "empty_context.safetensors"
        )
        lines = [
            json.dumps({"shard": "shard-00000.safetensors", "row": row, "caption": "x"})
            for row in range(rows)
        ]
        (folder / "manifest.jsonl").write_text("\n".join(lines))
        return folder

    return write


def small_clip(width, projected=False):
    import transformers

    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    config = transformers.CLIPTextConfig(
        hidden_size=width, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, vocab_size=60,
        max_position_embeddings=77,
        projection_dim=16, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return kind(config)


def clip_words():
    import transformers

    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    return transformers.CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=77
    )


def small_t5(width):
    import transformers

    config = transformers.T5Config(vocab_size=40, d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    words = [
        ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0),
        *((letter, -3.0) for letter in LETTERS),
    ]
    return transformers.T5EncoderModel(config), transformers.T5Tokenizer(vocab=words, extra_ids=0)


@pytest.fixture
def write_pipeline(write_base, tmp_path):
    """write_pipeline(family) -> a folder as published, with everything in it random and small."""
    pytest.importorskip("transformers", reason="ComfyUI's text encoders are not installed")
    import diffusers

    from spatialweave.models.intrinsic_ldm.config import VaeConfig

    small_vae = VaeConfig(width=32, multiples=(1, 1, 1, 2), blocks=1)

    def write(family):
        folder = write_base(tmp_path / family, family)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(8)
            vae = diffusers.AutoencoderKL(**small_vae.for_diffusers(3), scaling_factor=0.5)
            if family == "pixart":
                encoder, tokenizer = small_t5(24)
                parts = {"text_encoder": encoder, "tokenizer": tokenizer}
            elif family == "sdxl":
                parts = {
                    "text_encoder": small_clip(8), "tokenizer": clip_words(),
                    "text_encoder_2": small_clip(16, projected=True),
                    "tokenizer_2": clip_words(),
                }  # fmt: skip
            else:
                parts = {"text_encoder": small_clip(24), "tokenizer": clip_words()}
        for name, part in {**parts, "vae": vae}.items():
            part.save_pretrained(folder / name)
        index = {
            name: (type(part).__module__.split(".")[0], type(part).__name__)
            for name, part in {**parts, "vae": vae}.items()
        }
        network = (
            ("transformer", "PixArtTransformer2DModel")
            if family == "pixart"
            else ("unet", "UNet2DConditionModel")
        )
        kind = {
            "sd21": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline",
            "pixart": "PixArtAlphaPipeline",
        }[family]
        index |= {
            "_class_name": kind, network[0]: ("diffusers", network[1]),
            "scheduler": ("diffusers", "DDPMScheduler"),
        }
        if family == "sd21":
            index |= {
                "safety_checker": [None, None], "feature_extractor": [None, None],
                "requires_safety_checker": False,
            }
        (folder / "model_index.json").write_text(json.dumps(index))
        return folder

    return write
