"""Run by test_network.py in a process of its own: core's FLUX.2 on our weights, and core's detection of our shapes.

inside_flux.py COMFYUI [WEIGHTS INPUTS OUTPUT]; shapes by preset as JSON on standard input; the last line printed is JSON.
"""

import json
import sys

comfyui, files = sys.argv[1], sys.argv[2:]
shapes = json.load(sys.stdin)
sys.path.insert(0, comfyui)
sys.argv[1:] = ["--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.ldm.flux.model  # noqa: E402
import comfy.model_detection  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.text_encoders.llama  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402


def run(weights, inputs, output):
    state, given = load_file(weights), load_file(inputs)
    config = comfy.model_detection.detect_unet_config(state, "")
    network = comfy.ldm.flux.model.Flux(**config, dtype=torch.float32, device="cpu", operations=comfy.ops.manual_cast)
    model = comfy.model_detection.model_config_from_unet_config(config, state)
    missing, unused = network.load_state_dict(model.process_unet_state_dict(state), strict=False)
    assert not missing, missing
    with torch.no_grad():
        velocity = network(given["img"], given["t"], given["context"], y=None, guidance=None)
    save_file({"velocity": velocity.contiguous()}, output)
    return {"image_model": config["image_model"], "unused": list(unused)}


def detect(preset):
    state = {name: torch.empty(shape, device="meta", dtype=torch.bfloat16) for name, shape in preset.items()}
    config = comfy.model_detection.detect_unet_config(state, "")
    return config | {"class": type(comfy.model_detection.model_config_from_unet_config(config, state)).__name__}


if files:
    answer = run(*files)
else:
    llama = comfy.text_encoders.llama
    answer = {name: detect(preset) for name, preset in shapes.items()}
    answer["text_widths"] = {"klein_4b": llama.Qwen3_4BConfig().hidden_size, "klein_9b": llama.Qwen3_8BConfig().hidden_size}
sys.stdout.write(json.dumps(answer, default=str) + "\n")
