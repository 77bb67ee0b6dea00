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
        ({"hidden_size": 0}, "hidden_size is 0, but it must be a whole number of at least 1"),
        ({"num_single_blocks": -1}, "num_single_blocks is -1, but it must be a whole number of at least 0"),
        ({"in_channels": 12.5}, "in_channels is 12.5"),
        ({"num_heads": 3}, "hidden_size 4096 cannot be shared by 3 heads"),
        ({"axes_dim": (32, 32, 32)}, r"axes_dim is \(32, 32, 32\), but it must be four even numbers that add up to the head width 128"),
        ({"axes_dim": (31, 33, 32, 32)}, "four even numbers"),
        ({"axes_dim": (32, 32, 32, 16)}, "add up to the head width 128"),
        ({"depth_patch": 8}, "depth_channels is 256, but patches of 8 x 8 pixels need 64"),
        ({"time_embed_dim": 255}, "time_embed_dim is 255"),
        ({"mlp_ratio": 0}, "mlp_ratio 0 times hidden_size 4096 must be at least 1"),
        ({"theta": 0}, "theta is 0, but it must be positive"),
        ({"shift_sigma": -1.0}, "shift_sigma is -1.0"),
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
    with pytest.raises(ValueError, match="unknown keys colour; known are axes_dim, "):
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
    with pytest.raises(ValueError, match="no preset named 'kleine'; known presets are klein_9b, klein_4b, tiny"):
        find_preset("kleine")
    with pytest.raises(ValueError, match="no mode named 'depth'; known modes are joint, image_to_depth, depth_to_image"):
        check_mode("depth")
    assert [check_mode(mode) for mode in MODES] == list(MODES)


def test_released_defaults_are_those_of_the_published_scripts():
    defaults = DEFAULTS["klein_9b"]
    assert (defaults.size, defaults.joint) == (512, SamplingDefaults(50, 4.0, 5.0))
    assert defaults.image_to_depth == SamplingDefaults(50, 1.0) and defaults.depth_to_image == SamplingDefaults(50, 4.0)
