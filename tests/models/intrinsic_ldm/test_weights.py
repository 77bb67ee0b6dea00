"""Files of intrinsic VAEs: names of either kind, layouts read off shapes, the latents' scale,
and what else a file may be.
"""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from spatialweave.models.core.weights.files import WeightsError
from spatialweave.models.intrinsic_ldm.config import VaeConfig
from spatialweave.models.intrinsic_ldm.weights import (
    core_name,
    diffusers_name,
    fold_scale,
    load_intrinsic_vae,
    save_intrinsic_vae,
    to_core_names,
    to_diffusers_names,
)

SMALL = VaeConfig(width=32, multiples=(1, 2, 2), blocks=1, latent_channels=4, base_scale=0.13025)


def skeleton(config=SMALL, channels=8):
    """The tensors that tell a file's layout, under core's names, and one of each kind besides."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    width, top, codes = config.width, config.width * config.multiples[-1], config.latent_channels
    state = {
        "encoder.conv_in.weight": random(width, channels, 3, 3),
        "decoder.conv_out.weight": random(channels, width, 3, 3),
    }
    state["decoder.conv_in.weight"] = random(top, codes, 3, 3)
    for level, multiple in enumerate(config.multiples):
        for block in range(config.blocks):
            state[f"encoder.down.{level}.block.{block}.conv1.weight"] = random(width * multiple, 1, 3, 3)
        for block in range(config.blocks + 1):
            state[f"decoder.up.{level}.block.{block}.conv1.weight"] = random(width * multiple, 1, 3, 3)
    state |= {
        "encoder.down.0.downsample.conv.bias": random(width), "decoder.up.2.upsample.conv.bias": random(top),
    }
    state |= {
        "encoder.down.1.block.0.nin_shortcut.weight": random(2 * width, width, 1, 1),
        "encoder.norm_out.bias": random(top),
    }
    for side in ("encoder", "decoder"):
        state |= {
            f"{side}.mid.attn_1.{part}.weight": random(top, top, 1, 1) for part in ("q", "k", "v", "proj_out")
        }
        state |= {
            f"{side}.mid.attn_1.norm.weight": random(top), f"{side}.mid.block_1.conv1.bias": random(top),
        }
    state |= {"quant_conv.weight": random(2 * codes, 2 * codes, 1, 1), "quant_conv.bias": random(2 * codes)}
    return state | {
        "post_quant_conv.weight": random(codes, codes, 1, 1), "post_quant_conv.bias": random(codes),
    }


NAMES = {
    "encoder.down.1.block.0.nin_shortcut.weight": "encoder.down_blocks.1.resnets.0.conv_shortcut.weight",
    "encoder.down.0.downsample.conv.bias": "encoder.down_blocks.0.downsamplers.0.conv.bias",
    "decoder.up.3.block.2.norm1.weight": "decoder.up_blocks.0.resnets.2.norm1.weight",
    "decoder.up.1.upsample.conv.weight": "decoder.up_blocks.2.upsamplers.0.conv.weight",
    "decoder.mid.block_2.conv1.weight": "decoder.mid_block.resnets.1.conv1.weight",
    "encoder.mid.attn_1.norm.weight": "encoder.mid_block.attentions.0.group_norm.weight",
    "encoder.mid.attn_1.proj_out.bias": "encoder.mid_block.attentions.0.to_out.0.bias",
    "decoder.norm_out.weight": "decoder.conv_norm_out.weight",
    "encoder.conv_in.weight": "encoder.conv_in.weight",
}


@pytest.mark.parametrize("ours", NAMES)
def test_names_are_those_of_published_files(ours):
    assert diffusers_name(ours, 4) == NAMES[ours]
    assert core_name(NAMES[ours], 4) == core_name(ours, 4) == ours


def test_diffusers_old_names_are_read():
    assert core_name("decoder.mid_block.attentions.0.query.weight", 4) == "decoder.mid.attn_1.q.weight"
    assert core_name("decoder.mid_block.attentions.0.proj_attn.bias", 4) == "decoder.mid.attn_1.proj_out.bias"


@pytest.mark.parametrize("rename", [dict, to_diffusers_names])
def test_a_saved_file_comes_back_under_cores_names(tmp_path, rename):
    state = skeleton()
    save_intrinsic_vae(tmp_path / "vae.safetensors", rename(state), SMALL, latent_scale=0.4)
    file = load_intrinsic_vae(tmp_path / "vae.safetensors")
    assert file.config == SMALL and file.latent_scale == 0.4 and file.ratio == pytest.approx(0.4 / 0.13025)
    assert set(file.state) == set(state) and all(torch.equal(file.state[name], state[name]) for name in state)


def test_without_metadata_the_layout_is_read_off_the_shapes_and_the_scale_is_the_bases(tmp_path):
    for config in (
        SMALL, VaeConfig(), VaeConfig(width=64, multiples=(1, 1, 2, 4, 4), blocks=3, latent_channels=16),
    ):
        save_file(to_diffusers_names(skeleton(config)), tmp_path / "vae.safetensors")
        file = load_intrinsic_vae(tmp_path / "vae.safetensors")
        assert file.config == VaeConfig(config.width, config.multiples, config.blocks, config.latent_channels)
        assert file.ratio == 1


def test_folding_the_scale_multiplies_the_latents_and_keeps_the_maps():
    state, ratio = skeleton(), 3.7
    folded = fold_scale(state, ratio)
    features = torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(1))

    def encode(weights):
        return F.conv2d(features, weights["quant_conv.weight"], weights["quant_conv.bias"]).chunk(2, dim=1)

    (mean, log_variance), (scaled, scaled_log_variance) = encode(state), encode(folded)
    torch.testing.assert_close(scaled, mean * ratio)
    torch.testing.assert_close(scaled_log_variance.exp(), log_variance.exp() * ratio**2)
    decoded = [
        F.conv2d(z, w["post_quant_conv.weight"], w["post_quant_conv.bias"])
        for z, w in ((mean, state), (scaled, folded))
    ]
    torch.testing.assert_close(*decoded)


WRONG = {
    "picture VAE": (
        skeleton(channels=3), None, ["an image autoencoder (VAE) with 3 in and 3 out", "8 channels"],
    ),
    "LoRA": ({"lora_down.weight": torch.zeros(2)}, None, ["Expected an intrinsic VAE", "got a LoRA"]),
    "unknown": ({"a": torch.zeros(2)}, None, ["unknown kind", "Expected an intrinsic VAE"]),
    "scale": (skeleton(), {"latent_scale": "-1"}, ["latent_scale", "'-1'", "above 0"]),
    "scale in words": (skeleton(), {"latent_scale": "big"}, ["'big'"]),
    "settings": (skeleton(), {"config": json.dumps({"depth": 3})}, ["another layout", "depth"]),
    "settings in words": (skeleton(), {"config": "{"}, ["another layout"]),
    "no blocks": ({k: v for k, v in skeleton().items() if ".down." not in k}, None, ["another layout"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_called_what_it_is(tmp_path, case):
    state, metadata, words = WRONG[case]
    save_file(state, tmp_path / "given.safetensors", metadata=metadata)
    with pytest.raises(WeightsError, match=r"given\.safetensors, .*\.$") as error:
        load_intrinsic_vae(tmp_path / "given.safetensors")
    assert all(word in str(error.value) for word in words), str(error.value)


STATED = {
    "another width": {"width": 64},
    "more blocks": {"blocks": 1_000_000_000},
    "a fraction": {"width": 32.0},
    "text": {"latent_channels": "4"},
    "one number for many": {"multiples": 5},
    "null": {"multiples": None},
    "a scale in words": {"base_scale": "big"},
    "an infinite scale": {"base_scale": float("inf")},
}


@pytest.mark.parametrize("case", STATED)
def test_settings_that_are_not_the_tensors_are_refused_by_file(tmp_path, case):
    path = tmp_path / "given.safetensors"
    save_file(skeleton(), path, metadata={"config": json.dumps(json.loads(SMALL.to_json()) | STATED[case])})
    with pytest.raises(WeightsError, match=r"given\.safetensors"):
        load_intrinsic_vae(path)


def test_diffusers_description_of_a_class_is_left_alone(tmp_path):
    described = {"_class_name": "AutoencoderKL", "block_out_channels": [32, 64, 64], "width": 7}
    save_file(skeleton(), tmp_path / "vae.safetensors", metadata={"config": json.dumps(described)})
    assert load_intrinsic_vae(tmp_path / "vae.safetensors").config == VaeConfig(32, (1, 2, 2), 1, 4)


def test_nan_wrappers_and_two_namings_are_refused_by_name(tmp_path):
    path, state = tmp_path / "vae.safetensors", skeleton()
    save_file(state | {"quant_conv.bias": torch.full((8,), float("nan"))}, path)
    with pytest.raises(
        WeightsError,
        match=r"Expected finite numbers in quant_conv\.bias of .*vae\.safetensors, got 8 NaN of 8",
    ):
        load_intrinsic_vae(path)
    save_file({f"module.{name}": value for name, value in state.items()}, path)
    with pytest.raises(
        WeightsError,
        match=r'vae\.safetensors, got an image autoencoder \(VAE\) saved from Data.* with "module\." before',
    ):
        load_intrinsic_vae(path)
    save_file(state | {name: value.clone() for name, value in to_diffusers_names(state).items()}, path)
    with pytest.raises(WeightsError, match=r"Expected each tensor of .*vae\.safetensors once"):
        load_intrinsic_vae(path)


@pytest.mark.parametrize("change", [{"width": 20}, {"blocks": 0}, {"base_scale": 0.0}, {"multiples": ()}])
def test_settings_are_checked_at_birth(change):
    with pytest.raises(ValueError, match=r"\.$"):
        VaeConfig(**change)


def test_diffusers_builds_what_the_settings_say():
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.AutoencoderKL(**SMALL.for_diffusers())
    state = network.state_dict()
    back = to_diffusers_names(to_core_names(state))
    assert set(back) == set(state) and all(back[name].shape == state[name].shape for name in state)
    assert not [name for name in to_core_names(state) if "block." in name and "_block" in name]
