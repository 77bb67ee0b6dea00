"""Parity with the published VGGT, on every VGGT file of the folder SPATIALWEAVE_GOLDEN.

Nothing here knows a width, a grid, a case or a file by name: what a file is and what it holds is read from
its own metadata, so another set of files of the same format runs unchanged. Tolerances are those of the
format's README.
"""

import importlib.util
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from spatialweave.models.core.geometry.camera import invert_pose, pad_pose, transform_points, unproject
from spatialweave.models.core.layers.dpt import add_positions, aspect_axes
from spatialweave.models.core.layers.positions import apply_grid_rotary, positions_rotary_table
from spatialweave.models.core.layers.vit import interpolate_positions
from spatialweave.models.vggt.config import HEADS, VggtConfig
from spatialweave.models.vggt.network import Vggt, activate_points
from spatialweave.models.vggt.pose_code import decode_poses
from spatialweave.models.vggt.weights import load_network


def load(name):
    """The module in a file of this folder, which no import finds."""
    spec = importlib.util.spec_from_file_location(name.removesuffix(".py"), Path(__file__).with_name(name))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


golden_files = load("golden_files.py")
assert_relative, assert_within = golden_files.assert_relative, golden_files.assert_within


def is_of_the_family(description):
    """By the repository it was made from, or by a size that only this network has."""
    repository = description.get("source", {}).get("repo", "")
    return (
        repository.endswith("facebookresearch/vggt")
        or "camera_trunk_depth" in description.get("config", {})
    )


def find_kind(description):
    names = description["tensors"]
    if any(name.startswith("aggregator.") for name in names):
        return "weights"
    if "images" in names:
        return "run"
    if any("_cases" in key for key in description):
        return "pieces"
    return f"unknown ({description.get('purpose', 'no purpose given')})"


GOLDEN = golden_files.GoldenFiles("VGGT", is_of_the_family, find_kind)


def find_config(description, state):
    """The stated sizes, with the heads that the weights have."""
    heads = tuple(head for head in HEADS if any(name.startswith(f"{head}_head.") for name in state))
    return replace(VggtConfig.from_metadata(description["config"]), heads=heads)


def run_network(path, description):
    """All entries of the aggregator and all outputs of the heads, without gradients."""
    state = load_file(GOLDEN.find_weights(path, description))
    network = Vggt(find_config(description, state))
    network.load_state_dict(state)
    images = load_file(path)["images"]
    with torch.no_grad():
        encoded = network.aggregator(images, range(network.config.depth))
        return network, encoded, network.predict(encoded, images.shape[-2:])


@GOLDEN.needed
def test_golden_vggt_files_are_all_of_a_known_kind():
    GOLDEN.check_kinds()


@GOLDEN.by_file("weights")
def test_golden_vggt_weights_load_strictly(path, description):
    state = load_file(path)
    config = find_config(description, state)
    network, found = load_network(path, config=config)
    assert found == config
    loaded = network.state_dict()
    assert (
        {name: tuple(v.shape) for name, v in loaded.items()}
        == {name: tuple(v.shape) for name, v in state.items()}
    )
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


@GOLDEN.by_file("weights")
def test_golden_vggt_sizes_are_read_off_the_shapes(path, description):
    """Without a stated configuration; the numbers of heads of the backbone and the camera head do not
    show in shapes.
    """
    stated = find_config(description, load_file(path))
    found = load_network(path)[1]
    hidden = {"backbone_num_heads", "camera_num_heads", "camera_iterations", "rope_freq"}
    assert {k: v for k, v in found.to_json().items() if k not in hidden} == {
        k: v for k, v in stated.to_json().items() if k not in hidden
    }


@GOLDEN.by_file("run")
def test_golden_vggt_run(path, description):
    golden, tolerance = load_file(path), description["tolerance"]
    network, encoded, prediction = run_network(path, description)
    assert encoded.patch_start == int(golden["patch_start_idx"])
    for i in range(network.config.depth):
        assert_within(
            encoded.layers[i],
            golden[f"layers/{i}"],
            tolerance.get("layers_max_abs", 1e-5),
            what=f"layers/{i}",
        )
    dense = tolerance.get("depth_and_conf_max_abs", 3e-4)
    assert_within(prediction.depth, golden["depth"][..., 0], dense, what="depth")
    assert_within(prediction.depth_confidence, golden["depth_conf"], dense, what="depth_conf")
    assert len(prediction.poses) == sum(name.startswith("pose_enc/") for name in golden)
    for i, pose in enumerate(prediction.poses):
        assert_within(
            pose, golden[f"pose_enc/{i}"], tolerance.get("pose_max_abs", 2e-4), what=f"pose_enc/{i}"
        )


@GOLDEN.by_file("run")
def test_golden_vggt_cameras_and_world_points(path, description):
    golden = load_file(path)
    _, _, prediction = run_network(path, description)
    pose, intrinsics = decode_poses(prediction.poses[-1], golden["images"].shape[-2:])
    assert_within(pose, golden["extrinsic"], 2e-4, what="extrinsic")
    assert_relative(intrinsics, golden["intrinsic"], 1e-3, what="intrinsic", floor=1e-6)
    if "world_points" in golden:
        depth = golden["depth"][..., 0].flatten(0, 1)
        y, x = (torch.arange(side, dtype=torch.float32) for side in depth.shape[-2:])
        corners = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).expand(len(depth), -1, -1, -1)
        points = unproject(corners, depth, golden["intrinsic"].flatten(0, 1))
        points = transform_points(points, invert_pose(pad_pose(golden["extrinsic"].flatten(0, 1))))
        assert_relative(
            points, golden["world_points"].reshape(points.shape), 1e-3, what="world_points", floor=1e-3
        )


@GOLDEN.by_file("run")
def test_golden_vggt_memory_savings_change_no_number(path, description):
    """Only the tapped entries kept, dense heads view by view, global attention 5 queries at a time,
    against the golden run.
    """
    golden = load_file(path)
    network, _, _ = run_network(path, description)
    with torch.no_grad():
        prediction = network(golden["images"], queries=5)
    assert_within(prediction.depth, golden["depth"][..., 0], 3e-4, what="depth")
    assert_within(prediction.poses[-1], golden[f"pose_enc/{len(prediction.poses) - 1}"], 2e-4, what="pose")


@GOLDEN.by_file("pieces")
def test_golden_vggt_pieces(path, description):
    golden = load_file(path)
    tolerance = description["tolerance"].get("float32_max_abs", 1e-5)
    for case in description["pos_embed_cases"]:
        table = interpolate_positions(golden["pos_embed/table"], case["h"], case["w"])
        assert_within(table, golden[case["key"]], tolerance, what=case["key"])
    for case in description["uv_cases"]:
        axes = aspect_axes(case["h"], case["w"], case["aspect_ratio"])
        grid = torch.stack(torch.meshgrid(*axes, indexing="xy"), dim=-1)
        assert_within(grid, golden[case["key"] + "/grid"], tolerance, what=case["key"])
        added = add_positions(torch.zeros(1, case["channels"], case["h"], case["w"]), case["aspect_ratio"])
        embed = added[0].movedim(0, -1) / description["uv_ratio_in_network"]
        assert_within(embed, golden[case["key"] + "/embed"], tolerance, what=case["key"])
    tokens = golden["rope/tokens"]
    table = positions_rotary_table(golden["rope/positions"][0], tokens.shape[-1], description["rope_base"])
    assert_within(apply_grid_rotary(tokens, table), golden["rope/rotated"], tolerance, what="rope")
    points, confidence = activate_points(golden["point_activation/raw"])
    assert_relative(points, golden["point_activation/points"], 1e-6, what="points", floor=1e-6)
    assert_relative(confidence, golden["point_activation/conf"], 1e-6, what="confidence", floor=1e-6)
