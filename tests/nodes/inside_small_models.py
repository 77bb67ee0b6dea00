"""Loaded inside ComfyUI by tests: small random models of core's own classes, on the CPU."""

import comfy.latent_formats
import comfy.model_patcher
import comfy.supported_models as supported
import torch

CPU = torch.device("cpu")
CONTEXT = 48  # channels of every family's prompt
AXES = {"axes_dim": [8, 12, 12], "theta": 10000}
UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1],
    "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1], "channel_mult": [1, 2],
    "num_heads": 2, "num_head_channels": -1, "use_spatial_transformer": True, "context_dim": CONTEXT,
    "use_linear_in_transformer": False, "legacy": False, "adm_in_channels": None,
    "use_temporal_attention": False, "transformer_depth_middle": 1,
}  # fmt: skip
WIDE = {**UNET, "model_channels": 64}  # of the kinds whose config forces heads of 64 channels
FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "hidden_size": 64,
    "num_heads": 2, "mlp_ratio": 4.0, "depth": 1, "depth_single_blocks": 1, **AXES, "vec_in_dim": 24,
    "context_in_dim": CONTEXT, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
FLUX2 = {
    **FLUX, "image_model": "flux2", "in_channels": 128, "out_channels": 128, "patch_size": 1,
    "mlp_ratio": 3.0, "axes_dim": [8, 8, 8, 8], "theta": 2000, "vec_in_dim": None, "qkv_bias": False,
    "txt_ids_dims": [3], "global_modulation": True, "mlp_silu_act": True, "ops_bias": False,
    "default_ref_method": "index", "ref_index_scale": 10.0,
}  # fmt: skip
OMNIGEN2 = {
    "image_model": "omnigen2", "patch_size": 2, "in_channels": 16, "hidden_size": 96, "num_layers": 2,
    "num_refiner_layers": 1, "num_attention_heads": 4, "num_kv_heads": 2, "multiple_of": 32,
    "axes_dim_rope": (8, 8, 8), "text_feat_dim": CONTEXT, "timestep_scale": 1000.0,
}  # fmt: skip
QWEN = {
    "image_model": "qwen_image", "patch_size": 2, "in_channels": 64, "out_channels": 16, "num_layers": 2,
    "attention_head_dim": 32, "num_attention_heads": 2, "joint_attention_dim": CONTEXT,
    "axes_dims_rope": (8, 12, 12),
}  # fmt: skip
JOY = {
    "image_model": "joyimage", "patch_size": [1, 2, 2], "in_channels": 16, "hidden_size": 64,
    "num_attention_heads": 2, "text_dim": CONTEXT, "num_layers": 2, "rope_dim_list": [8, 12, 12],
    "theta": 10000,
}  # fmt: skip


class SmallJoy(supported.JoyImage):
    """Core's own config forces the released rope sizes over the given ones."""

    unet_extra_config = {}


class Audio(supported.SD15):
    """A model whose latent is no image."""

    latent_format = comfy.latent_formats.StableAudio1


KINDS = {
    "sd15": (supported.SD15, UNET, (4, 8, 12)),
    "sd21_v": (supported.SD20, WIDE, (4, 8, 12)),
    "sdxl": (
        supported.SDXL,
        {**WIDE, "adm_in_channels": 24 + 6 * 256, "num_classes": "sequential"},
        (4, 8, 12),
    ),
    "flux": (supported.Flux, FLUX, (16, 8, 12)),
    "flux_inpaint": (supported.Flux, {**FLUX, "in_channels": 32}, (16, 8, 12)),
    "flux2": (supported.Flux2, FLUX2, (128, 4, 6)),
    "omnigen2": (supported.Omnigen2, OMNIGEN2, (16, 8, 12)),
    "qwen": (supported.QwenImage, QWEN, (16, 1, 8, 12)),
    "joy": (SmallJoy, JOY, (16, 1, 8, 12)),
    "audio": (Audio, UNET, (4, 8, 12)),
}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fill(module, seed=0):
    """Core's layers are uninitialized memory: give every parameter a size."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.named_parameters():
        drawn = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            drawn = drawn / max(1, value.numel() // value.shape[0]) ** 0.5
        else:
            drawn = drawn * 0.1 + float(name.endswith("weight"))
        value.data.copy_(drawn)
    return module


def make(kind, seed=0):
    """(MODEL, the shape of its latent without the batch) of a kind."""
    config_class, sizes, shape = KINDS[kind]
    config = config_class(dict(sizes))
    config.set_inference_dtype(torch.float32, None)
    if kind == "sd21_v":
        config.model_type = lambda *_, **__: comfy.model_base.ModelType.V_PREDICTION
    base = config.get_model({}, "")
    fill(base.diffusion_model, seed)
    return comfy.model_patcher.ModelPatcher(base, load_device=CPU, offload_device=CPU), shape


def prompt(kind, seed=1, **more):
    """A conditioning with what the kind's network takes; references for those that edit."""
    entry = {"pooled_output": draw(1, 24, seed=3)} if kind in ("flux", "flux_inpaint", "sdxl") else {}
    if kind == "omnigen2":
        entry |= {"attention_mask": torch.ones(1, 7, dtype=torch.long)}
    if kind in ("omnigen2", "flux"):
        entry |= {"reference_latents": [draw(1, 16, 8, 12, seed=10)]}
    if kind == "joy":
        entry |= {"reference_latents": [draw(1, 16, 1, 8, 12, seed=10)]}
    if kind == "flux_inpaint":
        entry |= {"concat_latent_image": draw(1, 16, 8, 12, seed=4)}
    return [[draw(1, 7, CONTEXT, seed=seed), {**entry, **more}]]
