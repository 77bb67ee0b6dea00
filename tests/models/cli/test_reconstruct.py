"""`spatialweave reconstruct`: image files to views, one cloud and a COLMAP folder."""

import numpy as np
import pytest
import torch
from PIL import Image

from spatialweave.models.cli import main
from spatialweave.models.core.export.npz import read_npz
from spatialweave.models.vggt.config import VggtConfig
from spatialweave.models.vggt.network import Vggt
from spatialweave.models.vggt.weights import save_network

SMALL = VggtConfig(
    img_size=56, embed_dim=32, depth=4, num_heads=2, backbone_depth=1, backbone_num_heads=2, dpt_features=8,
    dpt_out_channels=(8, 8, 8, 8), dpt_layers=(0, 1, 2, 3), camera_trunk_depth=1, camera_num_heads=2,
    pixel_center=0.5,
    heads=("camera", "depth"),
)  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A network that says one depth and one camera for every view, whatever it sees:
    all tensors 0 but the biases.
    """
    network = Vggt(SMALL).requires_grad_(False)
    for parameter in network.parameters():
        parameter.zero_()
    network.depth_head.scratch.output_conv2[2].bias.copy_(torch.tensor([np.log(2.0), 1.0]))
    network.camera_head.pose_branch.fc2.bias.copy_(torch.tensor([0, 0, 0, 0, 0, 0, 0.25, 0.25, 0.25]))
    return save_network(tmp_path_factory.mktemp("weights") / "flat.safetensors", network, SMALL)


def write_pictures(folder, sizes):
    files = []
    for i, size in enumerate(sizes):
        files.append(folder / f"view {i}.png")
        Image.effect_noise(size, 60).convert("RGB").save(files[-1])
    return [str(file) for file in files]


def test_reconstruct_writes_views_cloud_and_colmap(tmp_path, weights, capsys):
    files = write_pictures(tmp_path, [(60, 40)] * 3)
    assert main(["reconstruct", *files, "--out", str(tmp_path / "scene"), "--weights", str(weights)]) == 0
    said = capsys.readouterr().out
    assert "3 views at 56 x 42 pixels: about" in said and "View 0's camera is the common frame" in said
    view = read_npz(tmp_path / "scene" / "view_0002.npz")
    # four iterations of the camera head add up: one radian across and down, and the middle of the picture
    assert abs(float(view.depth.mean()) - 2) < 1e-3 and view.units == "relative"
    assert abs(float(view.intrinsics[0, 0, 0]) - 30 / np.tan(0.5)) < 0.1
    names = {
        file.relative_to(tmp_path / "scene").as_posix()
        for file in (tmp_path / "scene").rglob("*")
        if file.is_file()
    }
    assert {"view_0000.png", "points.ply", "colmap/sparse/0/cameras.txt", "colmap/transforms.json"} <= names
    header = (tmp_path / "scene" / "points.ply").read_bytes()[:400].decode("ascii", "replace")
    assert "comment units: relative" in header and "element vertex" in header
    cameras = (tmp_path / "scene/colmap/sparse/0/cameras.txt").read_text().splitlines()
    assert sum(not line.startswith("#") for line in cameras) == 3


def test_reconstruct_takes_pictures_of_several_sizes(tmp_path, weights, capsys):
    files = write_pictures(tmp_path, [(60, 40), (41, 77)])
    assert main(["reconstruct", *files, "--out", str(tmp_path / "scene"), "--weights", str(weights)]) == 0
    assert "view_0001.png" in capsys.readouterr().out
    assert read_npz(tmp_path / "scene" / "view_0001.npz").depth.shape == (1, 77, 41)
    rows = (tmp_path / "scene/colmap/sparse/0/cameras.txt").read_text().splitlines()
    assert [row.split()[2:4] for row in rows if not row.startswith("#")] == [["60", "40"], ["41", "77"]]
    for index, size in enumerate(((60, 40), (41, 77))):
        with Image.open(tmp_path / f"scene/colmap/images/view_000{index}.png") as picture:
            assert picture.size == size


@pytest.mark.parametrize("kind", ["no file", "taken", "not VGGT", "no picture"])
def test_reconstruct_refuses_in_a_sentence(tmp_path, weights, capsys, kind):
    files, out, file = write_pictures(tmp_path, [(30, 30)] * 2), tmp_path / "scene", str(weights)
    if kind == "no file":
        files.append(str(tmp_path / "none.png"))
    if kind == "taken":
        out.mkdir()
    if kind == "not VGGT":
        file = str(tmp_path / "x.safetensors")
        (tmp_path / "x.safetensors").write_bytes(b"PK\x03\x04" + bytes(60))
    if kind == "no picture":
        (tmp_path / "text.png").write_text("no picture")
        files.append(str(tmp_path / "text.png"))
    assert main(["reconstruct", *files, "--out", str(out), "--weights", file]) != 0
    said = capsys.readouterr().err
    expected = {
        "no file": "none.png", "taken": "already", "not VGGT": "x.safetensors", "no picture": "text.png",
    }[kind]
    assert expected in said and "Traceback" not in said


def test_reconstruct_takes_the_shipped_network_by_default(tmp_path, capsys):
    """Three views of a scene: one coherent cloud, whose cameras turn about as the true ones."""
    from spatialweave.models.core.evaluation.pose_metrics import pair_errors
    from spatialweave.models.core.geometry.camera import pad_pose
    from spatialweave.models.world.multiview import sample_views

    (scene,) = sample_views(0, 1, 3, (112, 112), split="test", start=1)
    files = []
    for i, image in enumerate(scene.image):
        files.append(str(tmp_path / f"{i}.png"))
        Image.fromarray((image * 255).round().to(torch.uint8).numpy()).save(files[-1])
    assert main(["reconstruct", *files, "--out", str(tmp_path / "scene")]) == 0
    poses = torch.cat([read_npz(tmp_path / "scene" / f"view_{i:04}.npz").world_to_cam for i in range(3)])
    rotation, _ = pair_errors(poses, pad_pose(scene.world_to_cam))
    assert float(rotation.median()) < 10
    assert "no other view sees the same surface" not in capsys.readouterr().out
