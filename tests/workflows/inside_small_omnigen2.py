"""Laid into the test server's custom_nodes: OmniGen2 and its text encoder of core's own classes, small.

Core's loaders take neither at another size than the released one, so two nodes give what Load Diffusion Model
and Load CLIP would. Its VAE is FLUX.1's, which inside_small_kontext.py writes.
"""

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.supported_models_base
import comfy.text_encoders.omnigen2 as omnigen2
import torch

MLLM = {
    "hidden_size": 256, "intermediate_size": 128, "num_hidden_layers": 6, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
NETWORK = {
    "image_model": "omnigen2", "patch_size": 2, "in_channels": 16, "hidden_size": 96, "num_layers": 2,
    "num_refiner_layers": 1, "num_attention_heads": 4, "num_kv_heads": 2, "multiple_of": 32,
    "axes_dim_rope": (8, 8, 8), "text_feat_dim": MLLM["hidden_size"], "timestep_scale": 1000.0,
}


def fill(module):
    """Core's layers are uninitialized memory: give every parameter a size."""
    generator = torch.Generator().manual_seed(0)
    for name, value in module.named_parameters():
        drawn = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            drawn = drawn / max(1, value[0].numel()) ** (0.0 if "embed_tokens" in name else 0.5)
        else:
            drawn = 0.1 * drawn + float(name.endswith("weight"))
        value.data.copy_(drawn)


class SmallOmniGen2:
    """What Load Diffusion Model would give."""

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "load", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 - core's name
        return {"required": {}}

    def load(self):
        config = comfy.supported_models.Omnigen2(dict(NETWORK))
        config.set_inference_dtype(torch.float32, None)
        base = config.get_model({}, "")
        fill(base.diffusion_model)
        cpu = torch.device("cpu")
        return (comfy.model_patcher.ModelPatcher(base, load_device=cpu, offload_device=cpu),)


class SmallQwen:
    """What Load CLIP would give, type omnigen2."""

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "load", ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 - core's name
        return {"required": {}}

    def load(self):
        target = comfy.supported_models_base.ClipTarget(
            omnigen2.Omnigen2Tokenizer, omnigen2.te(dtype_llama=torch.float32)
        )
        options = {"qwen25_3b_model_config": MLLM, "dtype": torch.float32}
        clip = comfy.sd.CLIP(target, model_options=options)
        fill(clip.cond_stage_model)
        return (clip,)


NODE_CLASS_MAPPINGS = {"SmallOmniGen2": SmallOmniGen2, "SmallQwen": SmallQwen}
