"""Geometry tokens in diffusers' Flux by hooks against ComfyUI's Flux with the node, on the same weights."""

import pytest

pytestmark = pytest.mark.comfyui


def test_tokens_in_diffusers_are_those_in_comfyui(inside):
    pytest.importorskip("diffusers")
    seen = inside("inside_spatial_diff_diffusers.py", "both_hosts")
    for strength in ("None", "1.0", "0.4"):
        assert seen[strength]["gap"] < 1e-4 and seen[strength]["size"] > 0.5, seen
    for strength in ("1.0", "0.4"):
        # the tokens after the last block, of which training decodes the depth latent
        assert seen[strength]["rows"] < 1e-4 and seen[strength]["change"] > 0.1, seen
    assert seen["1.0"]["change"] != seen["0.4"]["change"]
