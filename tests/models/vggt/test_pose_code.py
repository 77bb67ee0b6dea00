"""The pose encoding against scipy's rotations, and its inverse."""

import math

import torch
from scipy.spatial.transform import Rotation

from spatialweave.models.vggt.pose_code import (
    decode_poses,
    encode_poses,
    quaternion_to_rotation,
    relative_to_first,
    rotation_to_quaternion,
)


def test_quaternions_are_scipys_near_every_axis_and_half_turn():
    turns = Rotation.random(200, random_state=0)
    half = Rotation.from_rotvec(
        math.pi * torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0.8, 0]]).numpy()
    )
    for rotation in (turns, half, Rotation.identity(3)):
        matrix = torch.from_numpy(rotation.as_matrix())
        found = rotation_to_quaternion(matrix)
        assert (quaternion_to_rotation(found) - matrix).abs().max() < 1e-12
        expected = torch.from_numpy(rotation.as_quat())
        assert (
            torch.minimum((found - expected).abs().amax(-1), (found + expected).abs().amax(-1)).max() < 1e-12
        )


def test_quaternion_of_any_length_is_the_same_rotation():
    q = torch.tensor([0.1, -0.2, 0.3, 0.9])
    assert (quaternion_to_rotation(3 * q) - quaternion_to_rotation(q)).abs().max() < 1e-6


def test_encoding_holds_pose_and_both_fields_of_view():
    rotation = torch.from_numpy(Rotation.from_euler("xyz", [10, -30, 5], degrees=True).as_matrix()).float()
    pose = torch.cat((rotation, torch.tensor([[0.5], [-1.0], [2.0]])), dim=1)
    intrinsics = torch.tensor([[200.0, 0, 80], [0, 150, 60], [0, 0, 1]])
    code = encode_poses(pose, intrinsics, (120, 160))
    assert (
        abs(float(code[8]) - 2 * math.atan(80 / 200)) < 1e-6
        and abs(float(code[7]) - 2 * math.atan(60 / 150)) < 1e-6
    )
    back, lens = decode_poses(code, (120, 160))
    assert (back - pose).abs().max() < 1e-6 and (lens - intrinsics).abs().max() < 1e-4


def test_first_camera_becomes_the_world():
    turns = torch.from_numpy(Rotation.random(3, random_state=1).as_matrix()).float()
    poses = torch.cat((turns, torch.rand(3, 3, 1)), dim=-1)
    found = relative_to_first(poses)
    assert (found[0] - torch.eye(4)[:3]).abs().max() < 1e-6
    # a point of the first camera's frame, sent through the old world, is where the new pose sends it
    point = torch.tensor([0.3, -0.2, 2.0])
    world = turns[0].T @ (point - poses[0, :, 3])
    for i in range(3):
        assert (
            turns[i] @ world + poses[i, :, 3] - (found[i, :, :3] @ point + found[i, :, 3])
        ).abs().max() < 1e-5
