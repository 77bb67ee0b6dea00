"""Configurations: checked at birth, plain JSON, presets that nobody can change."""

import json
from dataclasses import FrozenInstanceError, replace

import pytest

from spatialweave.models.modality_forcing.config import (
    DEFAULTS,
    MODES,
    PRESETS,
    ModalityForcingConfig,
    SamplingDefaults,
    check_mode,
    find_preset,
)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"hidden_size": 0},
            "Expected a whole number from 1 to 1048576 for hidden_size in the network config, got 0",
        ),
        (
            {"num_single_blocks": -1},
            "Expected a whole number from 0 to 1048576 for num_single_blocks in the network config, got -1",
        ),
        (
            {"in_channels": 12.5},
            "Expected a whole number from 1 to 1048576 for in_channels in the network config, got 12.5",
        ),
        ({"num_heads": 3}, r"Expected hidden_size as a multiple of num_heads \(3\), got 4096"),
        (
            {"axes_dim": (32, 32, 32)},
            "Expected axes_dim as four even numbers whose sum is the head width 128 "
            r"\(hidden_size / num_heads\), got \(32, 32, 32\)",
        ),
        ({"axes_dim": (31, 33, 32, 32)}, "four even numbers"),
        (
            {"axes_dim": (32, 32, 32, 16)},
            "Expected axes_dim as four even numbers whose sum is the head width 128 "
            r"\(hidden_size / num_heads\), got \(32, 32, 32, 16\)",
        ),
        ({"depth_patch": 8}, "Expected depth_channels 64 for patches of 8 x 8 pixels, got 256"),
        ({"time_embed_dim": 255}, r"Expected an even time_embed_dim \(half cosines, half sines\), got 255"),
        ({"mlp_ratio": 0}, "Expected mlp_ratio times hidden_size of at least 1, got 0 x 4096"),
        ({"theta": 0}, "Expected a positive theta in the network config, got 0"),
        ({"shift_sigma": -1.0}, "Expected a positive shift_sigma in the network config, got -1.0"),
    ],
)
def test_impossible_sizes_are_refused_in_a_sentence(change, said):
    with pytest.raises(ValueError, match=said):
        ModalityForcingConfig(**change)


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name):
    text = json.dumps(PRESETS[name].to_json())
    assert ModalityForcingConfig.from_json(json.loads(text)) == PRESETS[name]


def test_unknown_keys_are_refused_by_name_or_left_alone():
    values = {"hidden_size": 4096, "num_triple_blocks": 6, "colour": "red"}
    with pytest.raises(
        ValueError,
        match="Expected the keys axes_dim, context_in_dim, .*, x0_t_min in the network config, got "
        "colour as well",
    ):
        ModalityForcingConfig.from_json(values)
    assert ModalityForcingConfig.from_metadata(values) == replace(PRESETS["klein_9b"], num_double_blocks=6)


def test_presets_cannot_be_changed():
    with pytest.raises(TypeError):
        PRESETS["mine"] = PRESETS["tiny"]
    with pytest.raises(FrozenInstanceError):
        PRESETS["tiny"].theta = 1
    assert set(DEFAULTS) == set(PRESETS)


def test_unknown_preset_and_mode_name_the_known_ones():
    assert find_preset("tiny") is PRESETS["tiny"]
    with pytest.raises(
        ValueError, match="Expected one of the presets klein_9b, klein_4b, tiny, got 'kleine'"
    ):
        find_preset("kleine")
    with pytest.raises(
        ValueError, match="Expected one of the modes joint, image_to_depth, depth_to_image, got 'depth'"
    ):
        check_mode("depth")
    assert [check_mode(mode) for mode in MODES] == list(MODES)


def test_released_defaults_are_those_of_the_published_scripts():
    defaults = DEFAULTS["klein_9b"]
    assert (defaults.size, defaults.joint) == (512, SamplingDefaults(50, 4.0, 5.0))
    assert defaults.image_to_depth == SamplingDefaults(
        50, 1.0
    ) and defaults.depth_to_image == SamplingDefaults(50, 4.0)
