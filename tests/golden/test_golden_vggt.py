"""Parity with the published VGGT, on every VGGT file of the folder SPATIALWEAVE_GOLDEN.

Nothing here knows a width, a grid, a case or a file by name: what a file is and what it holds is read from
its own metadata, so another set of files of the same format runs unchanged. Tolerances are those of the
format's README.
"""

import json
import os
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from spatialweave.models.core.layers.dpt import add_positions, aspect_axes
from spatialweave.models.core.layers.positions import apply_grid_rotary, positions_rotary_table
from spatialweave.models.core.layers.vit import interpolate_positions
from spatialweave.models.vggt.config import HEADS, VggtConfig
from spatialweave.models.vggt.network import Vggt, activate_points
from spatialweave.models.vggt.pipeline import unproject_to_world
from spatialweave.models.vggt.pose_code import decode_poses
from spatialweave.models.vggt.weights import load_network

DEFAULT = Path(__file__).resolve().parents[3] / "shared" / "golden"
FOLDER = Path(os.environ.get("SPATIALWEAVE_GOLDEN") or DEFAULT)


def read_description(path):
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get("golden")
    return json.loads(text) if text else None


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


def find_files():
    """{kind: [(path, description), ...]} of the family, over the whole folder."""
    found = defaultdict(list)
    for path in sorted(FOLDER.glob("**/*.safetensors")):
        description = read_description(path)
        if description and is_of_the_family(description):
            found[find_kind(description)].append((path, description))
    return dict(found)


FILES = find_files()
# a folder that was named and holds nothing is a fault; only the default may be absent
needs_files = pytest.mark.skipif(
    not FILES and "SPATIALWEAVE_GOLDEN" not in os.environ,
    reason=f"no golden files: {FOLDER} holds none; set SPATIALWEAVE_GOLDEN"
)


def by_file(kind):
    files = FILES.get(kind, [])
    return pytest.mark.parametrize(("path", "description"), files, ids=[path.stem for path, _ in files])


def find_weights(path, description):
    """The weights that belong to a file: the one it names, else the one of the same configuration."""
    candidates = [other for other, d in FILES.get("weights", []) if d["config"] == description["config"]]
    named = [
        other
        for other in candidates
        if other.name == description.get("weights_file") and other.parent == path.parent
    ]
    assert candidates, f"no weights file in {FOLDER} has the configuration of {path.name}"
    return (named or candidates)[0]


def find_config(description, state):
    """The stated sizes, with the heads that the weights have."""
    heads = tuple(head for head in HEADS if any(name.startswith(f"{head}_head.") for name in state))
    return replace(VggtConfig.from_metadata(description["config"]), heads=heads)


def run_network(path, description):
    """All entries of the aggregator and all outputs of the heads, without gradients."""
    state = load_file(find_weights(path, description))
    network = Vggt(find_config(description, state))
    network.load_state_dict(state)
    images = load_file(path)["images"]
    with torch.no_grad():
        encoded = network.aggregator(images, range(network.config.depth))
        return network, encoded, network.predict(encoded, images.shape[-2:])


def assert_within(actual, expected, max_abs, what=""):
    assert actual.shape == expected.shape, what
    error = (actual.double() - expected.double()).abs().max()
    assert error <= max_abs, f"{what}: max abs {error:.3g} > {max_abs}"


def assert_relative(actual, expected, tolerance, what="", floor=1e-6):
    assert actual.shape == expected.shape, what
    error = (actual.double() - expected.double()).abs() / expected.double().abs().clamp(min=floor)
    assert (error <= tolerance).all(), f"{what}: relative {error.max():.3g}"


@needs_files
def test_golden_vggt_files_are_all_of_a_known_kind():
    assert FILES, f"{FOLDER} holds no golden file of VGGT"
    assert not [str(path) for kind in FILES if kind.startswith("unknown") for path, _ in FILES[kind]]


@by_file("weights")
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


@by_file("weights")
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


@by_file("run")
def test_golden_vggt_run(path, description):
    golden, tolerance = load_file(path), description["tolerance"]
    network, encoded, prediction = run_network(path, description)
    assert encoded.patch_start == int(golden["patch_start_idx"])
    for i in range(network.config.depth):
        assert_within(
            encoded.layers[i], golden[f"layers/{i}"], tolerance.get("layers_max_abs", 1e-5), f"layers/{i}"
        )
    dense = tolerance.get("depth_and_conf_max_abs", 3e-4)
    assert_within(prediction.depth, golden["depth"][..., 0], dense, "depth")
    assert_within(prediction.depth_confidence, golden["depth_conf"], dense, "depth_conf")
    assert len(prediction.poses) == sum(name.startswith("pose_enc/") for name in golden)
    for i, pose in enumerate(prediction.poses):
        assert_within(pose, golden[f"pose_enc/{i}"], tolerance.get("pose_max_abs", 2e-4), f"pose_enc/{i}")


@by_file("run")
def test_golden_vggt_cameras_and_world_points(path, description):
    golden = load_file(path)
    _, _, prediction = run_network(path, description)
    pose, intrinsics = decode_poses(prediction.poses[-1], golden["images"].shape[-2:])
    assert_within(pose, golden["extrinsic"], 2e-4, "extrinsic")
    assert_relative(intrinsics, golden["intrinsic"], 1e-3, "intrinsic")
    if "world_points" in golden:
        points = unproject_to_world(golden["depth"][..., 0], golden["extrinsic"], golden["intrinsic"])
        assert_relative(
            points, golden["world_points"].reshape(points.shape), 1e-3, "world_points", floor=1e-3
        )


@by_file("run")
def test_golden_vggt_memory_savings_change_no_number(path, description):
    """Only the tapped entries kept, dense heads view by view, global attention 5 queries at a time,
    against the golden run.
    """
    golden = load_file(path)
    network, _, _ = run_network(path, description)
    with torch.no_grad():
        prediction = network(golden["images"], queries=5)
    assert_within(prediction.depth, golden["depth"][..., 0], 3e-4, "depth")
    assert_within(prediction.poses[-1], golden[f"pose_enc/{len(prediction.poses) - 1}"], 2e-4, "pose")


@by_file("pieces")
def test_golden_vggt_pieces(path, description):
    golden = load_file(path)
    tolerance = description["tolerance"].get("float32_max_abs", 1e-5)
    for case in description["pos_embed_cases"]:
        table = interpolate_positions(golden["pos_embed/table"], case["h"], case["w"])
        assert_within(table, golden[case["key"]], tolerance, case["key"])
    for case in description["uv_cases"]:
        axes = aspect_axes(case["h"], case["w"], case["aspect_ratio"])
        grid = torch.stack(torch.meshgrid(*axes, indexing="xy"), dim=-1)
        assert_within(grid, golden[case["key"] + "/grid"], tolerance, case["key"])
        added = add_positions(torch.zeros(1, case["channels"], case["h"], case["w"]), case["aspect_ratio"])
        embed = added[0].movedim(0, -1) / description["uv_ratio_in_network"]
        assert_within(embed, golden[case["key"] + "/embed"], tolerance, case["key"])
    tokens = golden["rope/tokens"]
    table = positions_rotary_table(golden["rope/positions"][0], tokens.shape[-1], description["rope_base"])
    assert_within(apply_grid_rotary(tokens, table), golden["rope/rotated"], tolerance, "rope")
    points, confidence = activate_points(golden["point_activation/raw"])
    assert_relative(points, golden["point_activation/points"], 1e-6, "points")
    assert_relative(confidence, golden["point_activation/conf"], 1e-6, "confidence")
