"""Laid into the test server's custom_nodes: JoyImage-Edit of core's own classes,
so small that a test can run it.

Qwen3-VL-8B becomes 128 wide, core reads the width of the prompts off the network's file, and files of random
weights take the names that the Joy graphs ask for. Loaders, encoder, network, VAE and samplers are core's.
Nothing else of ComfyUI is changed.
"""

from pathlib import Path

import comfy.model_detection
import comfy.ops
import comfy.text_encoders.llama as llama
import comfy.text_encoders.qwen3vl as qwen3vl
import folder_paths
import torch
from comfy.ldm.joyimage.model import JoyImageTransformer3DModel
from comfy.ldm.wan.vae import WanVAE
from safetensors.torch import save_file

NODE_CLASS_MAPPINGS = {}
WIDTH = 128  # of the prompts, and of the network, whose one head core's rotary sizes fix at 128
FILES = {
    "diffusion_models": "joyai_image_edit_int8_convrot.safetensors",
    "text_encoders": "qwen3vl_8b_joyimage_edit_int8_convrot.safetensors",
    "vae": "wan_2.1_vae.safetensors",
}
small = {
    "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1,
    "num_key_value_heads": 1,
}
VAE = {
    "dim": 4, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": [],
    "temperal_downsample": [False, True, True],
}
VAE |= {"image_channels": 3, "conv_out_channels": 3, "dropout": 0.0}  # Wan 2.1's, a twenty-fourth as wide
# one head instead of 16: images are as large as the real model's, and time goes with heads x patches ** 2
tower = {
    "hidden_size": 64, "intermediate_size": 64, "num_heads": 1, "depth": 3,
    "deepstack_visual_indexes": [0, 1, 2],
}

detect = comfy.model_detection.detect_unet_config


def detect_small(state, prefix, **more):
    config = detect(state, prefix, **more)
    width = state.get(f"{prefix}condition_embedder.text_embedder.linear_1.weight")
    if config is not None and config.get("image_model") == "joyimage" and width is not None:
        config["text_dim"] = width.shape[1]
    return config


def random_weights(module, gain=1.0):
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, value in module.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        fan = max(1, value.numel() // max(1, len(value)))
        scale = name.endswith((".gamma", "norm.weight", "norm1.weight", "norm2.weight"))
        state[name] = scale + 0.02 * noise if scale or value.ndim < 2 else noise * gain * fan**-0.5
    return state


def write(folder, state):
    place = Path(folder_paths.get_folder_paths(folder)[0])
    place.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.to(torch.float16).contiguous() for name, value in state.items()}, place / FILES[folder]
    )


def released_names(name):
    """As the published text encoder has them."""
    if name.startswith("model.lm_head."):
        return name.removeprefix("model.")
    return (
        name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else f"model.{name}"
    )


fields = llama.Qwen3VL_8BConfig.__dataclass_fields__
llama.Qwen3VL_8BConfig.__init__.__defaults__ = tuple(
    small.get(name, field.default) for name, field in fields.items()
)
qwen3vl.QWEN3VL_VISION["qwen3vl_8b"] = tower
comfy.model_detection.detect_unet_config = detect_small

plain = {"dtype": torch.float32, "device": "cpu", "operations": comfy.ops.disable_weight_init}
network = JoyImageTransformer3DModel(
    hidden_size=WIDTH, num_attention_heads=1, text_dim=WIDTH, num_layers=1, theta=10000, **plain
)
write("diffusion_models", random_weights(network, 0.3))
write(
    "text_encoders",
    {released_names(name): value for name, value in random_weights(qwen3vl.Qwen3VL({}, **plain)).items()},
)
write("vae", random_weights(WanVAE(**VAE)))
