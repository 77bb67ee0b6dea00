"""Laid into the test server's custom_nodes: Flux-Kontext of core's own class, so small that a test runs it.

A network of width 128 with one head, and a 16-channel TAESD as its VAE, under the names that the graph asks
for. Loaders, network, VAE and sampler are core's. The text encoders alone have a stand-in, the node
SmallPrompt: T5-XXL's width is fixed in core.
"""

from pathlib import Path

import comfy.ops
import folder_paths
import torch
from comfy.ldm.flux.model import Flux
from comfy.taesd.taesd import TAESD
from safetensors.torch import save_file

FILES = {"diffusion_models": "flux1-dev-kontext_fp8_scaled.safetensors", "vae": "ae.safetensors"}
FLUX = {
    "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 768, "context_in_dim": 4096,
    "hidden_size": 128, "mlp_ratio": 4.0, "num_heads": 1, "depth": 1, "depth_single_blocks": 1,
    "axes_dim": [16, 56, 56], "theta": 10000, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip


def random_weights(module):
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, value in module.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        norm = name.endswith(("norm.scale", "norm.weight"))
        state[name] = norm + 0.02 * noise if value.ndim < 2 else noise * value[0].numel() ** -0.5
    return state


def write(folder, state):
    place = Path(folder_paths.get_folder_paths(folder)[0])
    place.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in state.items()}, place / FILES[folder])


class SmallPrompt:
    """A prompt's embedding from its letters: one row for each, and their mean as the pooled one."""

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "encode", ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 - core's name
        return {"required": {"text": ("STRING", {"forceInput": True})}}

    def encode(self, text):
        seeds = torch.tensor([[float(ord(letter))] for letter in text])
        rows = torch.sin(seeds * torch.arange(1, 4097)[None])
        return ([[rows[None], {"pooled_output": rows.mean(0, keepdim=True)[:, :768]}]],)


NODE_CLASS_MAPPINGS = {"SmallPrompt": SmallPrompt}
plain = {"dtype": torch.float32, "device": "cpu", "operations": comfy.ops.disable_weight_init}
write("diffusion_models", random_weights(Flux(image_model="flux", **FLUX, **plain)))
codec = TAESD(latent_channels=16)
state = {
    f"{part}.{name}": value
    for part in ("taesd_encoder", "taesd_decoder")
    for name, value in random_weights(getattr(codec, part)).items()
}
write("vae", state | {"vae_scale": torch.tensor(0.3611), "vae_shift": torch.tensor(0.1159)})
