"""Laid into the test server's custom_nodes: core's own FLUX.2 text encoder and VAE classes,
so small that a test can run them.

Qwen3-8B becomes 32 wide, and files of random weights take the names of the big ones.
Nothing else of ComfyUI is changed.
"""

from pathlib import Path

import comfy.ops
import comfy.sd
import comfy.text_encoders.llama as llama
import folder_paths
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from safetensors.torch import save_file

WIDTH = 32  # of the text encoder; the network reads three of its layers
FILES = {"text_encoders": "qwen_3_8b_fp8mixed.safetensors", "vae": "flux2-vae.safetensors"}
VAE = {
    "double_z": True, "z_channels": 32, "resolution": 256, "in_channels": 3, "out_ch": 3,
    "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2,
}
VAE |= {"attn_resolutions": [], "dropout": 0.0, "ch": 32, "batch_norm_latent": True}
NODE_CLASS_MAPPINGS = {}

detect = comfy.sd.detect_te_model
small = {
    "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 28, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def detect_small(state):
    norm = state.get("model.layers.0.post_attention_layernorm.weight")
    return comfy.sd.TEModel.QWEN3_8B if norm is not None and len(norm) == WIDTH else detect(state)


def random_weights(module):
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(value.shape, generator=generator) * max(value[0].numel(), 1) ** -0.5
        if value.ndim > 1
        else torch.ones_like(value)
        for name, value in module.state_dict().items()
    }


def write(folder, state):
    place = Path(folder_paths.get_folder_paths(folder)[0])
    place.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in state.items()}, place / FILES[folder])


fields = llama.Qwen3_8BConfig.__dataclass_fields__
llama.Qwen3_8BConfig.__init__.__defaults__ = tuple(
    small.get(name, field.default) for name, field in fields.items()
)
comfy.sd.detect_te_model = detect_small
encoder = llama.Qwen3_8B({}, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init)
write("text_encoders", random_weights(encoder))
decoder = random_weights(AutoencoderKL(ddconfig=VAE, embed_dim=32))
write("vae", {name: value for name, value in decoder.items() if not name.startswith("encoder.")})
