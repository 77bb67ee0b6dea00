"""Called by test_against_comfyui.py in ComfyUI: core's FLUX.2 on our weights, its detection
of our shapes, its noise.
"""

import json
from pathlib import Path

import comfy.ldm.flux.model
import comfy.model_detection
import comfy.nested_tensor
import comfy.ops
import comfy.sample
import comfy.text_encoders.llama
import torch
from safetensors.torch import load_file, save_file


def run_network(folder):
    state, given = load_file(folder / "weights.safetensors"), load_file(folder / "inputs.safetensors")
    config = comfy.model_detection.detect_unet_config(state, "")
    model = comfy.model_detection.model_config_from_unet_config(config, state)
    network = comfy.ldm.flux.model.Flux(
        **config, dtype=torch.float32, device="cpu", operations=comfy.ops.manual_cast
    )
    missing, unused = network.load_state_dict(model.process_unet_state_dict(state), strict=False)
    assert not missing, missing
    with torch.no_grad():
        velocity = network(given["img"], given["t"], given["context"], y=None, guidance=None)
    return {"image_model": config["image_model"], "unused": list(unused)}, velocity


def detect(shapes):
    state = {name: torch.empty(shape, device="meta", dtype=torch.bfloat16) for name, shape in shapes.items()}
    config = comfy.model_detection.detect_unet_config(state, "")
    return config | {
        "class": type(comfy.model_detection.model_config_from_unet_config(config, state)).__name__
    }


def run(folder, presets, noise):
    """Weights and inputs lie in the folder; answer.json and core's outputs are written beside them."""
    folder = Path(folder)
    network, velocity = run_network(folder)
    latent = comfy.nested_tensor.NestedTensor([torch.zeros(shape) for shape in noise["shapes"]])
    drawn = comfy.sample.prepare_noise(latent, noise["seed"]).unbind()
    save_file(
        {"velocity": velocity.contiguous()} | {f"noise_{i}": part for i, part in enumerate(drawn)},
        folder / "output.safetensors",
    )

    llama = comfy.text_encoders.llama
    answer = {
        "network": network,
        "presets": {name: detect(shapes) for name, shapes in presets.items()},
        "text_widths": {
            "klein_4b": llama.Qwen3_4BConfig().hidden_size, "klein_9b": llama.Qwen3_8BConfig().hidden_size,
        },
    }
    (folder / "answer.json").write_text(json.dumps(answer, default=str))
