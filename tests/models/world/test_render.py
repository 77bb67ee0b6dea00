"""Frames: sizes, labels, lines, and the same bits every time."""

import colorsys
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from spatialweave.models.world.render import render, render_geometry
from spatialweave.models.world.scene import COLORS, sample_scenes, with_objects


def test_same_scenes_same_bits_in_any_batch():
    scenes = sample_scenes(3, 5)
    together, again = render(scenes, 32, 48), render(scenes, 32, 48)
    alone = render(scenes[2:3], 32, 48)
    for field in fields(together):
        one, two = getattr(together, field.name), getattr(again, field.name)
        assert torch.equal(one, two)
        assert torch.equal(one[2:3], getattr(alone, field.name))


def test_geometry_alone_is_the_geometry_of_the_image():
    scenes = sample_scenes(4, 3)
    frames = render(scenes, 24, 32, samples=1)
    depth, segmentation = render_geometry(scenes, 24, 32)
    assert torch.equal(depth, frames.depth) and torch.equal(segmentation, frames.segmentation)


@pytest.mark.parametrize("height, width", [(32, 32), (24, 56), (57, 33)])
def test_any_size(height, width):
    frames = render(sample_scenes(0, 2), height, width, samples=1)
    assert len(frames) == 2
    assert frames.image.shape == (2, height, width, 3) == frames.normals.shape
    assert frames.depth.shape == frames.segmentation.shape == frames.line.shape == (2, height, width)
    assert frames.image.min() >= 0 and frames.image.max() <= 1 and not frames.image.isnan().any()
    sky = frames.segmentation == -1
    assert torch.equal(sky, frames.depth.isinf()) and (frames.normals[sky] == 0).all()
    assert frames.segmentation.dtype == torch.int64 and (frames.depth > 0).all()


def test_a_wider_picture_shows_the_square_one_in_its_middle():
    scenes = sample_scenes(7, 2)
    wide, square = render(scenes, 32, 64, samples=1), render(scenes, 32, 32, samples=1)
    torch.testing.assert_close(wide.depth[:, :, 16:48], square.depth, rtol=1e-5, atol=1e-5)
    assert (wide.segmentation[:, :, 16:48] == square.segmentation).float().mean() > 0.999


def test_labels_name_the_objects():
    """Each object's pixels have, on the whole, the hue that its name says."""
    scenes = sample_scenes(8, 30)
    frames = render(scenes, 64, 64, samples=1)
    hues = {name: colorsys.rgb_to_hsv(*rgb)[0] for name, rgb in COLORS.items()}
    for i, scene in enumerate(scenes):
        for label, item in enumerate(scene.objects, 1):
            red, green, blue = frames.image[i][frames.segmentation[i] == label].mean(0).tolist()
            hue, saturation, _ = colorsys.rgb_to_hsv(red, green, blue)
            distance = {name: min(abs(hue - h), 1 - abs(hue - h)) for name, h in hues.items()}
            # pink is a pale red and purple a dark pink: their hues alone are near
            assert min(distance, key=distance.get) == item.color or distance[item.color] < 0.06, (
                item.name,
                hue,
            )
            assert saturation > 0.2


def test_every_object_is_seen():
    scenes = sample_scenes(9, 60)
    segmentation = render(scenes, 48, 48, samples=1).segmentation
    for scene, labels in zip(scenes, segmentation, strict=True):
        assert all((labels == label).sum() >= 4 for label in range(1, len(scene.objects) + 1))


def test_lines_run_only_along_outlines_and_creases(make_scene, make_object, look):
    """A box on open ground, its corners projected here: every line pixel lies at an edge of the box or at the
    horizon."""
    item = make_object("box", extents=(0.8, 0.7, 0.6), yaw=30.0)
    scene = make_scene(item)
    frames = render([scene], 128, 128, samples=1)
    origin, _, rotation, focal = look(scene, 128, 128)
    turn = np.radians(item.yaw)
    axes = (
        np.array([[np.cos(turn), 0, -np.sin(turn)], [0, 1, 0], [np.sin(turn), 0, np.cos(turn)]])
        * np.array(item.extents)[:, None]
    )
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    corners = (signs @ axes + item.center - origin) @ rotation.T
    pixels = focal * corners[:, :2] / corners[:, 2:] + 64
    edges = [
        (pixels[i], pixels[j]) for i in range(8) for j in range(i) if np.abs(signs[i] - signs[j]).sum() == 2
    ]
    line = frames.line[0].numpy() > 0
    sky = frames.segmentation[0].numpy() == -1
    border = np.zeros_like(sky)
    border[:-1] = sky[:-1] != sky[1:]
    horizon = border | np.roll(border, 1, 0) | np.roll(border, -1, 0)
    rows, columns = np.nonzero(line & ~horizon)
    assert len(rows) > 100
    points = np.stack((columns + 0.5, rows + 0.5), -1)
    distance = np.min([segment_distance(points, a, b) for a, b in edges], 0)
    assert distance.max() < 1.6
    seen = [edge for edge in edges if near_line(line, edge)]
    assert len(seen) == 9, "of a box's twelve edges a raised camera sees nine"


def segment_distance(points, a, b):
    along = np.clip(((points - a) @ (b - a)) / ((b - a) @ (b - a)), 0, 1)
    return np.linalg.norm(points - a - along[:, None] * (b - a), axis=-1)


def near_line(line, edge):
    """Whether nearly all of an edge's inner points have a line pixel within reach."""
    points = edge[0] + np.linspace(0.12, 0.88, 20)[:, None] * (edge[1] - edge[0])
    hits = [line[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2].any() for x, y in points]
    return np.mean(hits) > 0.9


def test_a_ball_has_an_outline_and_nothing_inside(make_scene, make_object):
    frames = render([make_scene(make_object("ball", extents=(0.8, 0.8, 0.8)))], 96, 96, samples=1)
    ball = (frames.segmentation[0] == 1)[None, None].float()
    inside = -torch.nn.functional.max_pool2d(-ball, 5, 1, 2)[0, 0] > 0
    around = torch.nn.functional.max_pool2d(ball, 5, 1, 2)[0, 0] > 0
    line = frames.line[0] > 0
    assert not line[inside].any()
    assert line[around & ~inside].sum() > 60
    ground = (frames.segmentation[0] == 0) & ~around & (frames.depth[0] < 12)
    assert not line[ground].any()


def test_shadow_and_light_change_the_picture_but_no_geometry(make_scene, make_object):
    scene = make_scene(make_object())
    darker = replace(scene, light=replace(scene.light, ambient=0.2))
    one, two = render([scene], 32, 32), render([darker], 32, 32)
    assert torch.equal(one.depth, two.depth) and torch.equal(one.line, two.line)
    assert two.image.mean() < one.image.mean()


def test_more_samples_smooth_the_picture_and_leave_geometry_alone(make_scene, make_object):
    scene = with_objects(make_scene(), (make_object("box", yaw=20.0),))
    rough, fine = render([scene], 48, 48, samples=1), render([scene], 48, 48, samples=3)
    assert torch.equal(rough.depth, fine.depth) and not torch.equal(rough.image, fine.image)


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match="Expected at least one scene to render, got none"):
        render([], 32, 32)
    with pytest.raises(
        ValueError, match="an image of at least 8 x 8 pixels with at least 1 sample, got 4 x 32 with 1"
    ):
        render(sample_scenes(0, 1), 32, 4, samples=1)
