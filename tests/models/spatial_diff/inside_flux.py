"""Run by test_flux.py in a process of its own: core's Flux class on our weights, with reference latents.

inside_flux.py COMFYUI FOLDER. Each case is a folder in FOLDER with params.json, the class's arguments,
weights and inputs; the output is written beside them. A case with a LoRA goes through the stock loaders, and
the patched weights are written.
"""

import json
import sys
from pathlib import Path

comfyui, folder = sys.argv[1], Path(sys.argv[2])
sys.path.insert(0, comfyui)
sys.argv[1:] = ["--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.ldm.flux.model  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.supported_models  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402


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


for case in sorted(folder.iterdir()):
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
            given["x"], given["t"], given["context"], y=given.get("pooled"), guidance=given.get("guidance"),
            ref_latents=references or None,
        )  # fmt: skip
    save_file({"velocity": velocity.contiguous()}, case / "output.safetensors")
