"""Called by test_omnigen2.py in ComfyUI: core's OmniGen2 class on our weights."""

import json
from pathlib import Path

import comfy.ldm.omnigen.omnigen2
import comfy.ops
import torch
from safetensors.torch import load_file, save_file


def run_rows(network, given):
    """Core takes one length of text for all rows, so rows with a mask run one by one, without padding."""
    references = [given[name] for name in sorted(given) if name.startswith("reference")]
    lengths = given["mask"].sum(1).tolist() if "mask" in given else None
    if lengths is None:
        tokens = given["context"].shape[1]
        return network(given["x"], given["t"], given["context"], tokens, ref_latents=references or None)
    rows = [
        network(
            given["x"][i : i + 1], given["t"][i : i + 1], given["context"][i : i + 1, :length], length,
            ref_latents=[each[i : i + 1] for each in references] or None,
        )
        for i, length in enumerate(lengths)
    ]  # fmt: skip
    return torch.cat(rows)


def run(folder):
    """Each config is a folder in `folder` with params.json, the class's arguments, weights and the inputs of
    cases; core's outputs are written beside them.
    """
    for config in sorted(Path(folder).iterdir()):
        params = json.loads((config / "params.json").read_text())
        network = comfy.ldm.omnigen.omnigen2.OmniGen2Transformer2DModel(
            **params, dtype=torch.float32, device="cpu", operations=comfy.ops.manual_cast
        )
        network.load_state_dict(load_file(config / "weights.safetensors"))
        for case in sorted(config.glob("*.inputs.safetensors")):
            with torch.no_grad():
                velocity = run_rows(network, load_file(case))
            save_file(
                {"velocity": velocity.contiguous()}, case.with_name(case.name.replace("inputs", "output"))
            )
