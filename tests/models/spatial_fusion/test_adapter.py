"""The adapter's network, its config and its files."""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from spatialweave.models.core.weights.files import WeightsError
from spatialweave.models.spatial_fusion.config import PRESETS, DepthAdapterConfig, find_preset
from spatialweave.models.spatial_fusion.network import AdapterNetwork
from spatialweave.models.spatial_fusion.weights import TINY_ADAPTER, load_adapter, save_adapter


def random_adapter(**changes):
    adapter = AdapterNetwork(dataclasses.replace(find_preset("sd21"), **changes))
    with torch.no_grad():
        for value in adapter.parameters():
            value.normal_(0, 0.2, generator=torch.Generator().manual_seed(value.numel()))
    return adapter.requires_grad_(False)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_start_at_zero_with_the_latents_size(name):
    config = PRESETS[name]
    side = 4 * config.stride
    out = AdapterNetwork(config)(
        torch.randn(2, side, side + config.stride), torch.ones(2, side, side + config.stride) > 0
    )
    assert out.shape == (2, config.latent_channels, 4, 5) and not out.any()


def test_the_network_is_three_strided_convolutions_and_one_to_the_latent():
    adapter = random_adapter()
    x = coded = torch.randn(1, 32, 40)
    x = x[:, None]
    for i in range(3):
        x = F.silu(F.conv2d(x, adapter.down[i].weight, adapter.down[i].bias, stride=2, padding=1))
    want = F.conv2d(x, adapter.out.weight, adapter.out.bias, padding=1)
    assert torch.equal(adapter(coded, torch.ones(1, 32, 40) > 0), want)
    assert [w.weight.shape[1] for w in adapter.down] == [1, 32, 64]


def test_invalid_zero_adds_nothing_where_a_whole_cell_is_invalid():
    adapter, mask = random_adapter(), torch.ones(1, 32, 32, dtype=torch.bool)
    mask[:, :8], mask[0, 3, 17] = False, True
    out = adapter(torch.randn(1, 32, 32), mask)
    dark = out[0, :, 0].abs().amax(0)
    assert (dark > 0).tolist() == [False, False, True, False] and (out[0, :, 1:] != 0).all()


def test_invalid_channel_shows_the_adapter_what_is_missing():
    adapter, code = random_adapter(invalid="channel"), torch.zeros(1, 32, 32)
    mask = torch.ones(1, 32, 32, dtype=torch.bool)
    assert adapter.down[0].weight.shape[1] == 2
    assert (adapter(code, mask) - adapter(code, ~mask)).abs().min() > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stride": 16}, "stride 2 to the power"),
        ({"widths": (8, 0, 8)}, "widths as whole numbers"),
        ({"widths": (8, True, 8)}, "widths as whole numbers"),
        ({"latent_channels": 10**9}, "latent_channels as whole numbers"),
        ({"code": "inverse"}, "code as one of log_iqr, unit_mean"),
        ({"invalid": "skip"}, "invalid as one of zero, channel"),
        ({"bound": float("nan")}, "bound as a finite number"),
        ({"least_iqr": 0}, "least_iqr as a finite number"),
        ({"latent_format": ""}, "latent_format as a name"),
    ],
)
def test_a_config_is_checked_when_it_is_built(changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(DepthAdapterConfig(), **changes)


def test_a_config_survives_json_and_takes_no_other_keys():
    for config in PRESETS.values():
        assert DepthAdapterConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    with pytest.raises(ValueError, match="Expected the adapter's config with"):
        DepthAdapterConfig.from_json({**DepthAdapterConfig().to_json(), "depth": 3})
    with pytest.raises(ValueError, match="Expected a preset from"):
        find_preset("sd9")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_saved_adapter_is_the_same(tmp_path, dtype):
    adapter = random_adapter(code="unit_mean", invalid="channel", widths=(4, 8, 8))
    path = save_adapter(tmp_path / "a.safetensors", adapter, dtype=dtype)
    loaded = load_adapter(path)
    assert loaded.config == adapter.config and not loaded.training
    for name, value in adapter.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.to(dtype).float())
    assert not any(value.requires_grad for value in loaded.parameters())


def test_another_file_is_refused_by_what_it_is(tmp_path):
    adapter = random_adapter()
    path = save_adapter(tmp_path / "a.safetensors", adapter)
    state = load_file(path)
    facts = {"spatialweave": "depth adapter", "config": json.dumps(adapter.config.to_json())}
    for name, tensors, metadata, words in (
        ("clip", {"text_model.encoder.layers.0.x": torch.ones(1)}, {}, "a CLIP model"),
        ("bare", state, {}, "Expected a depth adapter"),
        ("old", state, {"spatialweave": "depth adapter"}, "Expected the config of a depth adapter"),
        ("less", {k: v for k, v in state.items() if k != "out.weight"}, facts, "1 tensors missing"),
        ("whole", {k: v.to(torch.int32) for k, v in state.items()}, facts, "in one of F32"),
        ("nan", {**state, "out.bias": state["out.bias"] / 0}, facts, "Expected finite numbers in out.bias"),
    ):
        save_file(tensors, tmp_path / f"{name}.safetensors", metadata=metadata)
        with pytest.raises(WeightsError, match=words):
            load_adapter(tmp_path / f"{name}.safetensors")


def test_the_shipped_adapter_is_for_the_tiny_base_and_adds_something():
    adapter = load_adapter(TINY_ADAPTER)
    assert adapter.config == find_preset("tiny") and adapter.out.weight.abs().max() > 0
    assert TINY_ADAPTER.stat().st_size < 300_000
