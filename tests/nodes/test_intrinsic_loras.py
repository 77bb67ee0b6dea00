"""The image's LoRAs leave the intrinsic maps alone, whatever their form, and the intrinsic LoRA is read
in every naming.
"""

import pytest

pytestmark = pytest.mark.comfyui
FILE = "inside_intrinsic_loras.py"

LAST = "output_blocks.11.1.transformer_blocks.0"
TARGETS = {
    "feed-forward": {"target": f"{LAST}.ff.net.2"},
    "prompt attention": {"target": f"{LAST}.attn2.to_v"},
    "convolution": {"target": "out.2"},
    "queries of self-attention": {"target": f"{LAST}.attn1.to_q"},
    "output of self-attention": {"target": f"{LAST}.attn1.to_out.0"},
    "PixArt's prompt attention": {"target": "blocks.5.cross_attn.kv_linear", "kind": "pixart"},
    "PixArt's queries, a third of qkv": {"target": "blocks.5.attn.qkv", "kind": "pixart", "third": 0},
    "LoHa": {"target": f"{LAST}.ff.net.2", "form": "loha"},
    "LoKr": {"target": f"{LAST}.ff.net.2", "form": "lokr"},
    "diff": {"target": f"{LAST}.ff.net.2", "form": "diff"},
    "bias": {"target": f"{LAST}.ff.net.2", "form": "diff", "part": "bias"},
    "a LoRA, then a merge": {"target": f"{LAST}.ff.net.2", "merge": "after", "whole": True},
    "a LoHa, then a merge": {"target": f"{LAST}.ff.net.2", "merge": "after", "form": "loha"},
    "a merge, then a LoRA": {"target": f"{LAST}.ff.net.2", "merge": "before"},
}


@pytest.mark.parametrize("target", TARGETS)
def test_image_loras_stay_on_the_image_unless_asked(inside, target):
    result = inside(FILE, "leak", **TARGETS[target])
    assert result["image"] > 1e-3 and result["asked"] > 1e-3
    assert result["maps"] < 2e-4 * result["asked"] + 1e-5
    assert result["off"] == 0, "the image is what the base model with its LoRA makes"


@pytest.mark.parametrize(
    "target", ["feed-forward", "convolution", "PixArt's prompt attention", "PixArt's queries, a third of qkv"]
)
def test_maps_beside_an_untouched_image_see_no_image_lora(inside, target):
    """Where w is 0 image and maps go through the network one after the other."""
    result = inside(FILE, "leak", schedule="off", **TARGETS[target])
    assert result["image"] > 1e-3 and result["asked"] > 1e-3
    assert result["maps"] < 2e-4 * result["asked"] + 1e-5


def test_a_strided_convolutions_lora_is_taken_off(inside):
    """By itself: it is in front of layers where the maps look at the image, which the LoRA may change."""
    assert inside(FILE, "strided") < 1e-5


@pytest.mark.parametrize("form", ["hooks", "dora", "bypass"])
def test_loras_that_are_no_sum_act_on_both_when_shared(inside, form):
    result = inside(FILE, "shared", form=form)
    assert result["image"] > 1e-3 and result["maps"] > 1e-3 and result["off"] == 0


@pytest.mark.parametrize("form, words", [
    (
        "set",
        ["got one that replaces diffusion_model.output_blocks.11.1", "Remove that LoRA", "share_image_loras"],
    ),
    (
        "weight wrapper",
        ["inside_intrinsic_loras.refused.<locals>.<lambda> on diffusion_model", "share_image_loras"],
    ),
])  # fmt: skip
def test_a_weight_that_is_replaced_is_refused_unless_shared(inside, form, words):
    result = inside(FILE, "refused", form=form)
    assert not [word for word in words if word not in result["sentence"]], result["sentence"]
    assert result["maps"] > 1e-3 and result["off"] == 0


@pytest.mark.parametrize("kind", ["sd21", "sdxl", "pixart"])
def test_the_intrinsic_lora_is_read_alike_in_every_naming(inside, kind):
    """PEFT without alpha, then kohya and diffusers with alpha the rank: one computation;
    then both with half of it: another.
    """
    gaps, halves = inside(FILE, "namings", kind=kind)
    assert max(*gaps[:3], halves) < 1e-6 and gaps[3] > 1e-4
