"""The figures of VGGT's evaluation, of predictions whose errors are known."""

import torch
from scipy.spatial.transform import Rotation

from spatialweave.models.benchmarks.vggt import evaluate_vggt, measure_scene
from spatialweave.models.core.geometry.camera import pad_pose, upright_world
from spatialweave.models.core.geometry.view import View
from spatialweave.models.vggt.config import VggtConfig
from spatialweave.models.vggt.network import Vggt
from spatialweave.models.vggt.training import init_weights
from spatialweave.models.vggt.weights import save_network
from spatialweave.models.world.multiview import relative_poses, sample_views

SMALL = VggtConfig(
    img_size=28, embed_dim=32, depth=4, num_heads=2, backbone_depth=1, backbone_num_heads=2, dpt_features=8,
    dpt_out_channels=(8, 8, 8, 8), dpt_layers=(0, 1, 2, 3), camera_trunk_depth=1, camera_num_heads=2,
    heads=("camera", "depth"),
)  # fmt: skip


class Answers:
    """A pipeline that gives the truth, turned and scaled as told."""

    def __init__(self, scene, degrees=0.0, scale=1.0):
        poses = relative_poses(scene.world_to_cam)
        turn = torch.from_numpy(Rotation.from_euler("y", degrees, degrees=True).as_matrix()).float()
        poses[1] = torch.cat((turn @ poses[1][:, :3], scale * turn @ poses[1][:, 3:]), dim=1)
        self.view = View.from_depth(
            scale * scene.depth_metric, units="relative", mask=scene.mask, intrinsics=scene.intrinsics,
            world_to_cam=upright_world(pad_pose(poses)),
        )  # fmt: skip

    def __call__(self, images):
        return self


def test_the_truth_at_another_scale_has_no_error():
    (scene,) = sample_views(0, 1, 2, (28, 28), split="test", samples=1)
    figures, (rotation, translation) = measure_scene(Answers(scene, scale=0.3), scene)
    assert (
        figures["absrel"] < 1e-5
        and figures["scene_absrel"] < 1e-5
        and figures["delta1"] == 1
        and figures["fov"] < 1e-3
    )
    assert float(rotation) < 0.1 and float(translation) < 0.1


def test_a_turned_camera_counts_its_angle():
    (scene,) = sample_views(0, 1, 2, (28, 28), split="test", samples=1)
    _, (rotation, _) = measure_scene(Answers(scene, degrees=7.0), scene)
    assert abs(float(rotation) - 7) < 0.05


def test_figures_are_of_all_numbers_of_views(tmp_path):
    network = Vggt(SMALL)
    init_weights(network, torch.Generator().manual_seed(0))
    save_network(tmp_path / "vggt.safetensors", network, SMALL)
    figures = evaluate_vggt("vggt_1b", weights=tmp_path / "vggt.safetensors", count=2)
    assert {f"{views}_views.absrel" for views in (2, 3, 4)} < set(figures) and figures["scenes"] == 2
    assert 0 < figures["absrel"] < 5 and 0 <= figures["rotation"] <= 180
