"""VGGT files: the full-size key list on `meta`, strict loading, tracking left out by name,
and what a wrong file is.
"""

import json

import pytest
import torch
from safetensors.torch import save_file

from spatialweave.models.core.weights.files import WeightsError
from spatialweave.models.vggt.config import PRESETS
from spatialweave.models.vggt.weights import load_network, network_shapes, save_network


def linear(name, out, into):
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def conv(name, out, into, side, bias=True):
    return {f"{name}.weight": (out, into, side, side)} | ({f"{name}.bias": (out,)} if bias else {})


def block(name, width, qk=0):
    found = norm(f"{name}.norm1", width) | norm(f"{name}.norm2", width)
    found |= linear(f"{name}.attn.qkv", 3 * width, width) | linear(f"{name}.attn.proj", width, width)
    found |= linear(f"{name}.mlp.fc1", 4 * width, width) | linear(f"{name}.mlp.fc2", width, 4 * width)
    found |= {f"{name}.ls1.gamma": (width,), f"{name}.ls2.gamma": (width,)}
    return found | (norm(f"{name}.attn.q_norm", qk) | norm(f"{name}.attn.k_norm", qk) if qk else {})


def dense(name, outputs):
    found, widths = norm(f"{name}.norm", 2048), (256, 512, 1024, 1024)
    for i, width in enumerate(widths):
        found |= conv(f"{name}.projects.{i}", width, 2048, 1) | conv(
            f"{name}.scratch.layer{i + 1}_rn", 256, width, 3, False
        )
        units = (2,) if i == 3 else (1, 2)  # the coarsest block merges nothing
        for unit in units:
            for k in (1, 2):
                found |= conv(f"{name}.scratch.refinenet{i + 1}.resConfUnit{unit}.conv{k}", 256, 256, 3)
        found |= conv(f"{name}.scratch.refinenet{i + 1}.out_conv", 256, 256, 1)
    found |= conv(f"{name}.resize_layers.0", 256, 256, 4) | conv(f"{name}.resize_layers.1", 512, 512, 2)
    found |= conv(f"{name}.resize_layers.3", 1024, 1024, 3) | conv(
        f"{name}.scratch.output_conv1", 128, 256, 3
    )
    return (
        found
        | conv(f"{name}.scratch.output_conv2.0", 32, 128, 3)
        | conv(f"{name}.scratch.output_conv2.2", outputs, 32, 1)
    )


def published_names():
    """The names of VGGT-1B's tensors with their shapes,
    written down from the published structure, not from our classes.
    """
    a, e = "aggregator", "aggregator.patch_embed"
    found = {f"{a}.camera_token": (1, 2, 1, 1024), f"{a}.register_token": (1, 2, 4, 1024)}
    found |= {
        f"{e}.cls_token": (1, 1, 1024),
        f"{e}.pos_embed": (1, 1370, 1024),
        f"{e}.register_tokens": (1, 4, 1024),
    }
    found |= (
        {f"{e}.mask_token": (1, 1024)} | conv(f"{e}.patch_embed.proj", 1024, 3, 14) | norm(f"{e}.norm", 1024)
    )
    for i in range(24):
        found |= (
            block(f"{e}.blocks.{i}", 1024)
            | block(f"{a}.frame_blocks.{i}", 1024, 64)
            | block(f"{a}.global_blocks.{i}", 1024, 64)
        )
    for i in range(4):
        found |= block(f"camera_head.trunk.{i}", 2048)
    found |= norm("camera_head.token_norm", 2048) | norm("camera_head.trunk_norm", 2048)
    found |= {"camera_head.empty_pose_tokens": (1, 1, 9)} | linear("camera_head.embed_pose", 2048, 9)
    found |= linear("camera_head.poseLN_modulation.1", 6144, 2048)
    found |= linear("camera_head.pose_branch.fc1", 1024, 2048) | linear(
        "camera_head.pose_branch.fc2", 9, 1024
    )
    return found | dense("depth_head", 2) | dense("point_head", 4)


def test_vggt_1b_has_the_published_names_and_count():
    shapes = network_shapes(PRESETS["vggt_1b"])
    assert shapes == published_names()
    assert (
        len(shapes) == 1403
        and sum(torch.Size(shape).numel() for shape in shapes.values()) == 1_190_596_120
    )


def test_vggt_1b_is_recognized_by_its_names_alone():
    """As the published file is: no metadata, tracking in it; on `meta`, so that it costs no memory."""
    state = {name: torch.empty(shape, device="meta") for name, shape in published_names().items()}
    state |= {"track_head.tracker.corr_mlp.fc1.weight": torch.empty(3, 3, device="meta")}
    from spatialweave.models.core.weights.files import describe_state
    from spatialweave.models.vggt.weights import find_config, own_names

    header = describe_state(state)
    names = own_names(header, "the file")
    assert set(names.values()) == set(published_names())
    assert (
        find_config(header, {ours: header.shapes[name] for name, ours in names.items()}, "the file")
        == PRESETS["vggt_1b"]
    )


@pytest.mark.parametrize("prefix", ["", "model.", "module."])
def test_network_loads_strictly_whatever_stands_before_its_names(small, tmp_path, prefix):
    state = {prefix + name: value for name, value in small.state_dict().items()}
    state[f"{prefix}track_head.norm.weight"] = torch.ones(3)
    save_file(state, tmp_path / "vggt.safetensors")
    network, config = load_network(tmp_path / "vggt.safetensors", config=small.config)
    assert config == small.config
    assert all(torch.equal(value, small.state_dict()[name]) for name, value in network.state_dict().items())


def test_saved_network_states_its_config_and_keeps_its_numbers(small, tmp_path):
    from safetensors import safe_open

    path = save_network(tmp_path / "vggt.safetensors", small, small.config)
    assert json.loads(safe_open(path, "pt").metadata()["config"])["dpt_layers"] == [0, 1, 2, 3]
    network, config = load_network(path)
    assert config == small.config
    assert all(torch.equal(value, small.state_dict()[name]) for name, value in network.state_dict().items())


def test_float16_file_runs_in_float32_and_bfloat16_keeps_float32_heads(small, tmp_path):
    state = small.state_dict()
    for stored, body in ((torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16)):
        network, _ = load_network(
            {name: value.to(stored) for name, value in state.items()}, config=small.config
        )
        assert network.aggregator.camera_token.dtype == body
        assert (
            network.depth_head.norm.weight.dtype
            == network.camera_head.token_norm.weight.dtype
            == torch.float32
        )


@pytest.mark.parametrize(
    "lost",
    [
        "depth_head.norm.weight",
        "aggregator.global_blocks.3.mlp.fc2.bias",
        "aggregator.patch_embed.pos_embed",
    ],
)
def test_missing_tensor_is_named(small, lost):
    state = {name: value for name, value in small.state_dict().items() if name != lost}
    with pytest.raises(
        WeightsError, match=lost.split(".")[-1] if lost.endswith("pos_embed") else lost.replace(".", r"\.")
    ):
        load_network(state)


def test_foreign_and_damaged_files_are_refused_by_what_they_are(small, tmp_path):
    moge = {"encoder.backbone.cls_token": torch.zeros(1), "points_head.output.weight": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"Expected a VGGT network .*MoGe"):
        load_network(moge)
    with pytest.raises(WeightsError, match=r"Expected a VGGT network .*Modality Forcing"):
        load_network(
            {"depth_in.weight": torch.zeros(1), "double_stream_modulation_depth.lin.weight": torch.zeros(1)}
        )
    state = {**small.state_dict(), "unheard.of.weight": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"1 tensors unknown \(first: unheard\.of\.weight"):
        load_network(state)
    quantized = {
        name: value.to(torch.int8) if "qkv.weight" in name else value
        for name, value in small.state_dict().items()
    }
    with pytest.raises(WeightsError, match="qkv.weight .*int8"):
        load_network(quantized)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vggt_1b.safetensors", ["CC BY-NC 4.0", "by its name"]),
        ("vggt_1b_commercial.safetensors", ["commercial use allowed, military use excluded"]),
        ("scan.safetensors", ["license unknown", "CC BY-NC 4.0", "commercial use allowed"]),
    ],
)
def test_license_is_told_by_the_name_alone(name, words):
    from spatialweave.models.vggt.released import describe_license

    assert all(word in describe_license(f"models/{name}") for word in words)
