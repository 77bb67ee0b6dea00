"""LoRA files of every common naming read alike; the other stream's rows untouched;
wrong files refused by name.
"""

import json
import math

import pytest
import torch

from spatialweave.models.intrinsic_ldm.lora import LowRank, Projection, add_to_stream, read_lora
from spatialweave.models.intrinsic_ldm.rows import Rows

LAYER = "down_blocks.0.attentions.1.transformer_blocks.0.attn1"
KNOWN = {
    f"{LAYER}.to_q": Projection(6, 8, ("input_blocks.2.1.transformer_blocks.0.attn1.to_q",)),
    f"{LAYER}.to_out.0": Projection(8, 6),
}
DOWN, UP = (
    torch.randn(3, 6, generator=torch.Generator().manual_seed(0)),
    torch.randn(8, 3, generator=torch.Generator().manual_seed(1)),
)


def read(tensors, metadata=None):
    return read_lora(tensors, KNOWN, base="SD21", name="file.safetensors", metadata=metadata)


def kohya(path, **more):
    key = f"lora_unet_{path.replace('.', '_')}"
    return {f"{key}.lora_down.weight": DOWN, f"{key}.lora_up.weight": UP} | {
        f"{key}.{name}": value for name, value in more.items()
    }


NAMINGS = {
    "PEFT": {
        f"base_model.model.{LAYER}.to_q.lora_A.weight": DOWN,
        f"base_model.model.{LAYER}.to_q.lora_B.weight": UP,
    },
    "PEFT with an adapter's name": {
        f"{LAYER}.to_q.lora_A.default.weight": DOWN, f"{LAYER}.to_q.lora_B.default.weight": UP,
    },
    "diffusers": {f"unet.{LAYER}.to_q.lora_A.weight": DOWN, f"unet.{LAYER}.to_q.lora_B.weight": UP},
    "PEFT with an adapter's other name": {
        f"{LAYER}.to_q.lora_A.maps.weight": DOWN, f"{LAYER}.to_q.lora_B.maps.weight": UP,
    },
    "saved from DDP and torch.compile": {
        f"module._orig_mod.{LAYER}.to_q.lora_A.weight": DOWN,
        f"module._orig_mod.{LAYER}.to_q.lora_B.weight": UP,
    },
    "diffusers, older": {
        f"unet.{LAYER}.to_q.lora.down.weight": DOWN, f"unet.{LAYER}.to_q.lora.up.weight": UP,
    },
    "kohya": kohya(f"{LAYER}.to_q"),
    "kohya with core's names": kohya(KNOWN[f"{LAYER}.to_q"].aliases[0]),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming_is_read_alike(naming):
    found = read(NAMINGS[naming])
    assert list(found) == [f"{LAYER}.to_q"] and found[f"{LAYER}.to_q"].scale == 1
    x = torch.randn(2, 6)
    torch.testing.assert_close(found[f"{LAYER}.to_q"](x), x @ DOWN.T @ UP.T)


def test_rank_and_alpha_are_the_files():
    assert read(kohya(f"{LAYER}.to_q", alpha=torch.tensor(1.5)))[f"{LAYER}.to_q"].scale == 0.5
    settings = {
        "unet.lora_alpha": 6, "unet.r": 3, "unet.alpha_pattern": {f"{LAYER}.to_out.0": 1},
        "unet.rank_pattern": {"to_out.0": 4},
    }
    metadata = {"lora_adapter_metadata": json.dumps(settings)}
    assert read(NAMINGS["diffusers"], metadata)[f"{LAYER}.to_q"].scale == 2
    out = {
        f"unet.{LAYER}.to_out.0.lora_A.weight": torch.zeros(4, 8),
        f"unet.{LAYER}.to_out.0.lora_B.weight": torch.zeros(6, 4),
    }
    assert read(out, metadata)[f"{LAYER}.to_out.0"].scale == 0.25


@pytest.mark.parametrize("settings, scale", [
    ({"unet.lora_alpha": 4, "unet.use_rslora": True}, 4 / math.sqrt(3)),
    ({"unet.lora_alpha": 4, "unet.use_rslora": False}, 4 / 3),
    (
        {"unet.lora_alpha": 4, "unet.use_rslora": True, "unet.alpha_pattern": {f"{LAYER}.to_q": 6}},
        6 / math.sqrt(3),
    ),
])  # fmt: skip
def test_rank_stabilised_scales_are_pefts(settings, scale):
    metadata = {"lora_adapter_metadata": json.dumps(settings)}
    assert read(NAMINGS["diffusers"], metadata)[f"{LAYER}.to_q"].scale == pytest.approx(scale)


REFUSED = {
    "another base's width": (
        {f"unet.{LAYER}.to_q.lora_A.weight": DOWN[:, :4], f"unet.{LAYER}.to_q.lora_B.weight": UP},
        "Load the base that it was trained on",
    ),
    "another base's layer": (
        kohya("down_blocks.7.attentions.0.transformer_blocks.0.attn1.to_q"),
        "Expected self-attention projections of SD21",
    ),
    "an ordinary LoRA": (kohya(f"{LAYER.replace('attn1', 'attn2')}.to_q"), "Load LoRA instead"),
    "half a LoRA": ({f"unet.{LAYER}.to_q.lora_A.weight": DOWN}, "got none for up"),
    "no LoRA": ({"model.weight": DOWN}, "'model.weight'"),
    "nothing": ({}, "got no tensors"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_files_are_refused_in_one_sentence(case):
    tensors, words = REFUSED[case]
    with pytest.raises(ValueError, match=r"\.$|Load LoRA instead\)\.$") as error:
        read(tensors)
    assert words in str(error.value) and "file.safetensors" in str(error.value)


@pytest.mark.parametrize("streams", [("image", "intrinsic"), ("image",), ("intrinsic",)])
def test_only_the_rows_of_the_stream_change(streams):
    rows = Rows(("cond", "uncond"), 2, streams)
    x, out = torch.randn(rows.count, 5, 6), torch.randn(rows.count, 5, 24)
    before, delta = out.clone(), LowRank(DOWN, UP, 0.7)
    add_to_stream(out, x, delta, rows, "intrinsic", columns=slice(8, 16))
    if "image" in streams:
        assert torch.equal(rows.select(out, "image"), rows.select(before, "image"))
    if "intrinsic" in streams:
        got, was = rows.select(out, "intrinsic"), rows.select(before, "intrinsic")
        torch.testing.assert_close(
            got[..., 8:16], was[..., 8:16] + 0.7 * (rows.select(x, "intrinsic") @ DOWN.T @ UP.T)
        )
        assert torch.equal(got[..., :8], was[..., :8]) and torch.equal(got[..., 16:], was[..., 16:])
