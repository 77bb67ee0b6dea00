"""Files of spatial transformers, and parts taken from files of VGGT and DINOv2."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from spatialweave.models.core.weights.files import WeightsError
from spatialweave.models.spatial_fusion.weights import (
    fill_from_vggt,
    load_adapter,
    load_spatial_transformer,
    save_spatial_transformer,
)


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_a_saved_transformer_is_the_same(tmp_path, build, draw, dtype):
    network = build(pairing="deep")
    path = save_spatial_transformer(tmp_path / "s.safetensors", network, {"licence": "ours"}, dtype=dtype)
    with safe_open(path, "pt") as file:
        assert file.metadata()["licence"] == "ours"
        assert json.loads(file.metadata()["config"])["pairing"] == "deep"
    loaded = load_spatial_transformer(path)
    assert loaded.config == network.config and not loaded.training
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.to(dtype or value.dtype).float())
    assert not any(value.requires_grad for value in loaded.parameters())
    if dtype is None:
        given = draw(network.config, (5,)), (3, 3), (42, 42)
        assert torch.equal(loaded(*given).depth, network(*given).depth)


def test_a_transformer_in_bfloat16_keeps_its_depth_head_in_float32(tmp_path, build, draw):
    network = build()
    path = save_spatial_transformer(tmp_path / "s.safetensors", network)
    loaded = load_spatial_transformer(path, dtype=torch.bfloat16)
    assert {value.dtype for value in loaded.depth_head.parameters()} == {torch.float32}
    assert {value.dtype for value in loaded.layers.parameters()} == {torch.bfloat16}
    given = draw(network.config, (5,)), (3, 3), (42, 42)
    got, want = loaded(*given).depth, network(*given).depth
    assert got.dtype == torch.float32 and 0 < (got / want).log().abs().mean() < 0.2


def test_another_file_is_refused_by_what_it_is(tmp_path, build):
    network = build()
    path = save_spatial_transformer(tmp_path / "s.safetensors", network)
    state, key = load_file(path), "layers.0.self_attn.q_proj.weight"
    config = network.config.to_json()
    facts = {"spatialweave": "spatial transformer", "config": json.dumps(config)}
    larger = facts | {"config": json.dumps(config | {"layers": 5})}
    odd = facts | {"config": json.dumps({k: v for k, v in config.items() if k != "heads"})}
    for name, tensors, metadata, words in (
        ("clip", {"text_model.encoder.layers.0.x": torch.ones(1)}, {}, "got a CLIP model"),
        ("adapter", state, {"spatialweave": "depth adapter"}, "got SpatialWeave's depth adapter"),
        ("no config", state, {"spatialweave": "spatial transformer"}, "Expected the config of a spatial"),
        ("odd config", state, odd, r"got others: \['heads'\]"),
        ("text config", state, facts | {"config": "{"}, "Expected the config of a spatial transformer"),
        ("one layer more", state, larger, "tensors missing .first: layers.4"),
        ("less", {k: v for k, v in state.items() if k != key}, facts, "1 tensors missing"),
        ("more", state | {"extra": torch.ones(1)}, facts, "1 tensors unknown .first: extra"),
        ("other shape", state | {key: torch.ones(2, 2)}, facts, "1 tensors of another shape"),
        ("integers", {k: v.to(torch.int32) for k, v in state.items()}, facts, "in one of F32"),
        ("nan", {**state, key: state[key] / 0}, facts, f"Expected finite numbers in {key}"),
    ):
        save_file(tensors, tmp_path / f"{name}.safetensors", metadata=metadata)
        with pytest.raises(WeightsError, match=words):
            load_spatial_transformer(tmp_path / f"{name}.safetensors")
    with pytest.raises(WeightsError, match="Expected a depth adapter of SpatialWeave"):
        load_adapter(path)


def test_encoder_and_head_come_from_vggts_file_and_the_encoder_from_dinov2s(tmp_path, build):
    network, other = build(), build(seed=5)
    parts = {"aggregator.patch_embed.": other.image_encoder, "depth_head.": other.depth_head}
    vggt = {
        prefix + name: value for prefix, part in parts.items() for name, value in part.state_dict().items()
    }
    save_file(vggt | {"aggregator.camera_token": torch.ones(1)}, tmp_path / "vggt.safetensors")
    save_file(other.image_encoder.state_dict(), tmp_path / "dinov2.safetensors")
    head = {name: value.clone() for name, value in network.depth_head.state_dict().items()}
    fill_from_vggt(network, tmp_path / "dinov2.safetensors", head=False)
    for name, value in other.image_encoder.state_dict().items():
        assert torch.equal(network.image_encoder.state_dict()[name], value)
    assert all(torch.equal(network.depth_head.state_dict()[name], value) for name, value in head.items())
    network = build()
    fill_from_vggt(network, tmp_path / "vggt.safetensors")
    assert torch.equal(network.depth_head.norm.weight, other.depth_head.norm.weight)
    assert torch.equal(network.image_encoder.pos_embed, other.image_encoder.pos_embed)
    assert torch.equal(network.queries, build().queries)
    with pytest.raises(WeightsError, match="tensors of another shape"):
        fill_from_vggt(build(width=32), tmp_path / "vggt.safetensors")
    with pytest.raises(WeightsError, match="the image encoder of"):
        save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
        fill_from_vggt(build(), tmp_path / "other.safetensors", head=False)
