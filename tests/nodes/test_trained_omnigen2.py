"""A depth adapter that was trained on OmniGen2, in a real ComfyUI: core samples as training saw it."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from spatialweave.models.core.training.loop import run_recipe
from spatialweave.models.core.training.recipe import Recipe
from spatialweave.models.spatial_diff.lora import merge_lora
from spatialweave.models.spatial_fusion.depth_code import code_depth
from spatialweave.models.spatial_fusion.training import ADAPTER_FILE
from spatialweave.models.spatial_fusion.weights import load_adapter
from spatialweave.models.trainers.adapter_lora import LORA_FILE
from spatialweave.models.trainers.builders import BUILDERS
from spatialweave.models.trainers.omnigen2_base import load_omnigen2_base

pytestmark = pytest.mark.comfyui
FILE = "inside_depth_adapter.py"
SCALE, SHIFT = 0.3611, 0.1159  # of FLUX.1's latents


def write_encoded(folder, draw):
    """Four random samples of 64 x 96 pixels with a reference each, as encoding would leave them."""
    folder.mkdir()
    tensors = {
        "latent": torch.randn(4, 16, 8, 12, generator=draw),
        "depth": torch.rand(4, 64, 96, generator=draw) + 0.5,
        "context": torch.randn(4, 1, 9, 48, generator=draw),
        "reference_0": torch.randn(4, 16, 8, 12, generator=draw),
    }
    mask = (torch.arange(9) < 7).to(torch.uint8).expand(4, 1, 9).contiguous()
    shard = {name: value.half() for name, value in tensors.items()} | {"context_mask": mask}
    save_file(shard, folder / "shard-00000.safetensors")
    empty = {"context": torch.zeros(9, 48).half(), "context_mask": mask[0, 0]}
    save_file(empty, folder / "empty_context.safetensors")
    lines = [json.dumps({"shard": "shard-00000.safetensors", "row": i}) for i in range(4)]
    (folder / "manifest.jsonl").write_text("\n".join(lines))


@pytest.mark.parametrize("rank", [0, 3])
def test_an_adapter_trained_on_omnigen2_adds_the_same_f_in_core(inside, tmp_path, rank):
    """Three Euler steps of core's class with our nodes equal those of the trainer's base with z_t + F."""
    inside(FILE, "write_small_omnigen2", folder=str(tmp_path / "base"))
    draw = torch.Generator().manual_seed(4)
    write_encoded(tmp_path / "encoded", draw)
    values = {
        "system": "depth_adapter", "preset": "omnigen2", "steps": 6, "batch_size": 2, "lr": 1e-2, "ema": 0.0,
        "data": {"folder": str(tmp_path / "encoded"), "references": 1},
        "model": {"base": str(tmp_path / "base"), "ship": "float32", "lora_rank": rank},
        "output": str(tmp_path / "run"),
    }  # fmt: skip
    assert run_recipe(Recipe.from_json(values), BUILDERS).ending == "finished"
    name = f"trained_{rank}.safetensors"  # one ComfyUI runs both cases, and lists both folders
    adapter = load_adapter((tmp_path / "run" / ADAPTER_FILE).rename(tmp_path / "run" / name))

    noise = torch.randn(2, 16, 8, 12, generator=torch.Generator().manual_seed(5))  # as core draws it
    depth = torch.rand(2, 64, 96, generator=draw) + 0.5
    depth[:, :20, :20] = float("inf")
    context = torch.randn(1, 7, 48, generator=draw)
    raw = torch.randn(1, 16, 6, 10, generator=draw)
    given = {"noise": noise, "depth": depth, "context": context, "reference": raw}
    save_file(given, tmp_path / "given.safetensors")
    lora = str(tmp_path / "run" / LORA_FILE) if rank else ""
    seen = inside(
        FILE, "sample_trained", name=name, folder=str(tmp_path / "run"),
        given=str(tmp_path / "given.safetensors"), lora=lora,
    )  # fmt: skip
    sampled = load_file(tmp_path / "sampled.safetensors")

    base = load_omnigen2_base(tmp_path / "base", torch.float32, 1)
    plain = {name: value.clone() for name, value in base.network.state_dict().items()}
    if rank:
        merge_lora(base.network, lora)
    merged = base.network.state_dict()
    changed = [name for name in plain if not torch.equal(plain[name], merged[name])]
    assert len(changed) == (4 * 5 if rank else 0)  # the attention of two blocks and of three refiners of one
    prompt = {
        "context": context.expand(2, -1, -1), "context_mask": torch.ones(2, 7),
        "reference_0": ((raw - SHIFT) * SCALE).expand(2, -1, -1, -1),
    }  # fmt: skip
    config, known = adapter.config, depth.isfinite()
    code = {name: getattr(config, name) for name in ("code", "bound", "least_iqr")}
    with torch.no_grad():
        addend = adapter(code_depth(torch.where(known, depth, 0.0), known, **code), known)
        expected = {}
        for key, more in (("with", addend), ("without", 0)):
            x = noise
            for now, then in zip(seen["sigmas"], seen["sigmas"][1:]):
                x = x + (then - now) * base.predict(x + more, torch.full((2,), now), prompt)
            expected[key] = x
    assert addend.std() > 0.01
    assert (sampled["with"] - sampled["without"]).abs().max() > 1e-2
    for key in expected:
        size = max(1.0, float(expected[key].abs().max()), float(addend.abs().max()))
        assert (sampled[key] - expected[key]).abs().max() < 1e-5 * size, key
