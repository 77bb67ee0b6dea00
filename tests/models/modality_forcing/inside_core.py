"""Run by test_against_comfyui.py in a process of its own: core's FLUX.2 on our weights, its detection
of our shapes, its noise.

inside_core.py COMFYUI FOLDER. The request comes as JSON on standard input;
weights, inputs and answers lie in the folder.
"""

import json
import sys
from pathlib import Path

comfyui, folder = sys.argv[1], Path(sys.argv[2])
request = json.load(sys.stdin)
sys.path.insert(0, comfyui)
sys.argv[1:] = ["--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.ldm.flux.model  # noqa: E402
import comfy.model_detection  # noqa: E402
import comfy.nested_tensor  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.text_encoders.llama  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402


def run_network():
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


network, velocity = run_network()
latent = comfy.nested_tensor.NestedTensor([torch.zeros(shape) for shape in request["noise"]["shapes"]])
noise = comfy.sample.prepare_noise(latent, request["noise"]["seed"]).unbind()
save_file(
    {"velocity": velocity.contiguous()} | {f"noise_{i}": part for i, part in enumerate(noise)},
    folder / "output.safetensors",
)

llama = comfy.text_encoders.llama
answer = {
    "network": network,
    "presets": {name: detect(shapes) for name, shapes in request["presets"].items()},
    "text_widths": {
        "klein_4b": llama.Qwen3_4BConfig().hidden_size, "klein_9b": llama.Qwen3_8BConfig().hidden_size,
    },
}
(folder / "answer.json").write_text(json.dumps(answer, default=str))
