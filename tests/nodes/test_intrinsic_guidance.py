"""Core's nodes of guidance, caching and attention beside intrinsic co-generation: exact at weight 0,
or refused by name.
"""

import pytest

pytestmark = pytest.mark.comfyui
FILE = "inside_intrinsic_guidance.py"

HOLDING = [
    "RescaleCFG", "APG", "CFGNorm", "CFGZeroStar", "TCFG", "Epsilon Scaling", "FreSca", "TomePatchModel",
    "FreeU_V2",
]
HOLDING += ["DualCFGGuider"]
REFUSED = {
    "PerpNegGuider": "Perp-Neg Guider, which computes statistics",
    "PerpNeg": "Perp-Neg, which computes statistics",
    "Mahiro": "Positive-Biased Guidance (Mahiro), which computes statistics",
    "EasyCache": "EasyCache, which computes statistics",
    "LazyCache": "LazyCache, which computes statistics",
    "TemporalScoreRescaling": "TSR - Temporal Score Rescaling, which takes a single noise level",
    "HyperTile": "HyperTile, which splits the queries",
    "PerturbedAttentionGuidance": "Perturbed-Attention Guidance (PAG), which samples again",
    "SelfAttentionGuidance": "Self-Attention Guidance (SAG), which samples again",
}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", HOLDING)
def test_a_node_does_to_the_image_what_it_does_to_the_base_models(inside, name, after):
    """Two pictures of one seed; ToMe draws random numbers on the way,
    and APG keeps an average over the steps.
    """
    result = inside(FILE, "through", name=name, after=after, side=16 if name == "FreeU_V2" else 8)
    assert result["finite"] and result["gap"] == 0
    assert result["moved"] > 1e-6, "the node must do something"


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_node_that_mixes_latents_is_refused_before_anything_is_sampled(inside, name, after):
    result = inside(FILE, "through", name=name, after=after)
    assert f", got {REFUSED[name]}" in result["refused"] and result["refused"].endswith(
        "Remove it from the model's chain."
    )
    assert result["refused"].startswith("Expected nodes that ") and result["calls"] == 0
