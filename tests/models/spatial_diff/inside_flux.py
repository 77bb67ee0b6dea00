"""Called by test_flux.py in ComfyUI: core's Flux class on our weights, with reference latents."""

import json
from pathlib import Path

import comfy.ldm.flux.model
import comfy.ops
import comfy.sd
import comfy.supported_models
import torch
from safetensors.torch import load_file, save_file


def patch_weights(state, lora):
    """The weights of core's model with a LoRA, by the functions behind Load Diffusion Model and Load LoRA."""
    model = comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": torch.float32})
    patched, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    patched.patch_model()
    prefix = "diffusion_model."
    return {
        name.removeprefix(prefix): value.contiguous()
        for name, value in patched.model.state_dict().items()
        if name.startswith(prefix)
    }


def run(folder):
    """Each case is a folder in `folder` with params.json, the class's arguments, weights and inputs; the
    output is written beside them. A case with a LoRA goes through the stock loaders, and the patched weights
    are written.
    """
    for case in sorted(Path(folder).iterdir()):
        state = load_file(case / "weights.safetensors")
        if (case / "lora.safetensors").is_file():
            save_file(patch_weights(state, load_file(case / "lora.safetensors")), case / "output.safetensors")
            continue
        given = load_file(case / "inputs.safetensors")
        params = json.loads((case / "params.json").read_text())
        network = comfy.ldm.flux.model.Flux(
            **params, dtype=torch.float32, device="cpu", operations=comfy.ops.manual_cast
        )
        network.load_state_dict(comfy.supported_models.Flux.process_unet_state_dict(None, state))
        references = [given[name] for name in sorted(given) if name.startswith("reference")]
        with torch.no_grad():
            velocity = network(
                given["x"], given["t"], given["context"], y=given.get("pooled"),
                guidance=given.get("guidance"), ref_latents=references or None,
            )  # fmt: skip
        save_file({"velocity": velocity.contiguous()}, case / "output.safetensors")
