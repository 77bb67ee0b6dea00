"""COLMAP and nerfstudio folders, read by pycolmap where it is installed and by parsers written here from the
formats' descriptions; the truth is the world's geometry."""

import json
import math
import os
from dataclasses import replace

import imageio.v3 as imageio
import numpy as np
import plyfile
import pytest
import torch

from spatialweave.models.core.export.files import ExportError, new_folder
from spatialweave.models.core.export.scene_folder import write_scene_folder
from spatialweave.models.core.geometry.fusion import FusionSettings, fuse_views
from spatialweave.models.core.geometry.tracks import find_tracks
from spatialweave.models.core.geometry.view import View
from spatialweave.models.world.multiview import render_views, sample_cameras

HEIGHT, WIDTH = 48, 64


@pytest.fixture(scope="module")
def view():
    """Four views, each of its own lens, the second off center and with pixels that are not square."""
    (cameras,) = sample_cameras(1, 1, 4, split="test", lens_jitter=0.3)
    (item,) = render_views([cameras], HEIGHT, WIDTH, samples=1)
    depth = item.depth_metric.masked_fill(~item.mask, torch.inf)
    others = {"image": item.image, "intrinsics": item.intrinsics, "world_to_cam": item.world_to_cam}
    return View.from_depth(depth, units="metric", **others)


@pytest.fixture(scope="module")
def fused(view):
    return fuse_views(view, FusionSettings(edge_rtol=0.0, max_points=1500))


@pytest.fixture(scope="module")
def written(fused, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene") / "kitchen"
    return folder, write_scene_folder(folder, fused)


def rows(path):
    return [line for line in path.read_text().split("\n") if not line.startswith("#")]


def rotation(w, x, y, z):
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def read_colmap(folder):
    """cameras {id: (model, w, h, params)}, images {id: (pose, camera, name, [(x, y, point)])},
    points {id: ...}.
    """
    cameras, images, points = {}, {}, {}
    for row in filter(None, rows(folder / "cameras.txt")):
        number, model, width, height, *params = row.split()
        cameras[int(number)] = (model, int(width), int(height), [float(value) for value in params])
    lines = rows(folder / "images.txt")
    assert lines[-1] == "" and len(lines) % 2 == 1
    for first, second in zip(lines[:-1:2], lines[1::2], strict=True):
        number, *pose, camera, name = first.split()
        pose = [float(value) for value in pose]
        matrix = np.hstack((rotation(*pose[:4]), np.array(pose[4:])[:, None]))
        seen = second.split()
        triples = [(float(x), float(y), int(point)) for x, y, point in zip(*[iter(seen)] * 3, strict=True)]
        images[int(number)] = (matrix, int(camera), name, triples)
    for row in filter(None, rows(folder / "points3D.txt")):
        number, x, y, z, red, green, blue, error, *track = row.split()
        pairs = list(zip(*[iter(map(int, track))] * 2, strict=True))
        points[int(number)] = (
            np.array([x, y, z], float), (int(red), int(green), int(blue)), float(error), pairs,
        )
    return cameras, images, points


def test_each_picture_has_its_own_camera(view, written):
    folder, _ = written
    cameras, images, _ = read_colmap(folder / "sparse" / "0")
    assert (
        len(cameras) == len(images) == len(view) and len({params[0] for *_, params in cameras.values()}) == 4
    )
    for number, (pose, camera, name, _) in images.items():
        index = int(name.removeprefix("view_").removesuffix(".png"))
        model, width, height, params = cameras[camera]
        lens = view.intrinsics[index].double().numpy()
        assert (model, width, height) == ("PINHOLE", WIDTH, HEIGHT) and number == index + 1
        np.testing.assert_allclose(params, (lens[0, 0], lens[1, 1], lens[0, 2], lens[1, 2]), rtol=1e-6)
        np.testing.assert_allclose(pose, view.world_to_cam[index, :3].double().numpy(), atol=1e-5)
        picture = imageio.imread(folder / "images" / name)
        np.testing.assert_allclose(picture / 255, view.image[index], atol=0.51 / 255)


def test_tracks_tie_points_to_pictures_both_ways(written):
    folder, summary = written
    cameras, images, points = read_colmap(folder / "sparse" / "0")
    assert (
        len(points) == summary.points
        and summary.observations == sum(len(seen) for *_, seen in images.values())
    )
    for number, (place, _, error, track) in points.items():
        assert len({image for image, _ in track}) == len(track) >= 1 and error < 1.5
        for image, row in track:
            pose, camera, _, seen = images[image]
            x, y, point = seen[row]
            assert point == number
            focal_x, focal_y, middle_x, middle_y = cameras[camera][3]
            in_cam = pose[:, :3] @ place + pose[:, 3]
            assert in_cam[2] > 0
            at = focal_x * in_cam[0] / in_cam[2] + middle_x, focal_y * in_cam[1] / in_cam[2] + middle_y
            np.testing.assert_allclose((x, y), at, atol=2e-3)


def test_points_have_the_colors_of_their_pictures(written, fused):
    folder, _ = written
    _, _, points = read_colmap(folder / "sparse" / "0")
    colors = {tuple(np.round(place, 4)): color for place, color, *_ in points.values()}
    matched = 0
    for place, color in zip(fused.cloud.points.double().numpy(), fused.cloud.colors.numpy(), strict=True):
        saved = colors.get(tuple(np.round(place, 4)))
        if saved is not None:
            np.testing.assert_allclose(np.array(saved) / 255, color, atol=0.51 / 255)
            matched += 1
    assert matched > 0.9 * len(points)


def test_pycolmap_reads_the_model(view, written):
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed")
    folder, summary = written
    model = pycolmap.Reconstruction(str(folder / "sparse" / "0"))
    assert (model.num_cameras(), model.num_images(), model.num_points3D()) == (4, 4, summary.points)
    assert model.compute_num_observations() == summary.observations
    for image in model.images.values():
        index = int(image.name.removeprefix("view_").removesuffix(".png"))
        camera = model.cameras[image.camera_id]
        np.testing.assert_allclose(
            camera.calibration_matrix(), view.intrinsics[index].double().numpy(), rtol=1e-5
        )
        pose = image.cam_from_world().matrix()
        np.testing.assert_allclose(pose, view.world_to_cam[index, :3].double().numpy(), atol=1e-5)
    for point in model.points3D.values():
        for element in point.track.elements:
            image = model.images[element.image_id]
            assert image.points2D[element.point2D_idx].point3D_id in model.points3D
            projected = image.project_point(point.xyz)
            np.testing.assert_allclose(projected, image.points2D[element.point2D_idx].xy, atol=5e-3)


def test_transforms_json_agrees_with_the_views(view, fused, written):
    """A point of the PLY projects, by nerfstudio's conventions alone,
    to where the view's own camera shows it.
    """
    folder, _ = written
    data = json.loads((folder / "transforms.json").read_text())
    assert data["camera_model"] == "OPENCV" and data["units"] == "metric" and len(data["frames"]) == 4
    vertex = plyfile.PlyData.read(folder / data["ply_file_path"])["vertex"]
    points = np.stack([vertex[axis] for axis in "xyz"], -1).astype(float)
    turn = np.vstack((data["applied_transform"], (0, 0, 0, 1)))
    original = points @ np.linalg.inv(turn)[:3, :3].T
    near = np.abs(original[:40, None] - fused.cloud.points.double().numpy()).max(-1).min(-1)
    assert near.max() < 1e-5, "applied_transform leads back to the world of the views"
    assert np.ptp(points[:, 2]) > 0.5 and points[:, 2].min() > -0.01, "z is up: the ground is below"
    for index, frame in enumerate(data["frames"]):
        assert (folder / frame["file_path"]).is_file() and frame["file_path"] == f"images/view_{index:04}.png"
        assert (frame["w"], frame["h"]) == (WIDTH, HEIGHT)
        camera = np.linalg.inv(np.array(frame["transform_matrix"]))  # OpenGL: y up, looks down -z
        x, y, z = (points @ camera[:3, :3].T + camera[:3, 3]).T
        at = np.stack((frame["fl_x"] * x / -z + frame["cx"], frame["fl_y"] * -y / -z + frame["cy"]), -1)
        pose, lens = (tensor[index].double().numpy() for tensor in (view.world_to_cam, view.intrinsics))
        in_cam = original @ pose[:3, :3].T + pose[:3, 3]
        expected = in_cam @ lens.T
        front = in_cam[:, 2] > 0.5
        np.testing.assert_allclose(at[front], expected[front, :2] / expected[front, 2:], atol=1e-2)


def test_off_center_and_oblong_pixels(view, tmp_path):
    lens = view.intrinsics.clone()
    lens[1, 0, 2] += 5
    lens[2, 1, 1] *= 1.3
    fused = fuse_views(replace(view, intrinsics=lens), FusionSettings(tolerance=0.0, max_points=100))
    write_scene_folder(tmp_path / "s", fused, layout="colmap")
    cameras, _, _ = read_colmap(tmp_path / "s" / "sparse" / "0")
    assert cameras[2][3][2] == pytest.approx(WIDTH / 2 + 5)
    assert cameras[3][3][1] == pytest.approx(1.3 * cameras[3][3][0], rel=1e-5)
    assert not (tmp_path / "s" / "transforms.json").exists()


def test_larger_images_in_place_of_the_views_own(view, tmp_path):
    """Three times as large: cameras and observations count in their pixels,
    and the right images are chosen.
    """
    large = view.image.repeat_interleave(3, 1).repeat_interleave(3, 2).flip(-1)
    fused = fuse_views(view, FusionSettings(every=3, max_points=200, edge_rtol=0.0))
    write_scene_folder(tmp_path / "s", fused, images=large)
    cameras, images, points = read_colmap(tmp_path / "s" / "sparse" / "0")
    assert [name for _, _, name, _ in images.values()] == ["view_0000.png", "view_0003.png"]
    for number, index in ((1, 0), (2, 3)):
        assert cameras[number][1:3] == (3 * WIDTH, 3 * HEIGHT)
        np.testing.assert_allclose(cameras[number][3][0], 3 * float(view.intrinsics[index, 0, 0]), rtol=1e-6)
        np.testing.assert_allclose(
            imageio.imread(tmp_path / "s" / "images" / images[number][2]) / 255, large[index], atol=0.51 / 255
        )
        pose, _, _, seen = images[number]
        focal_x, focal_y, middle_x, middle_y = cameras[number][3]
        for x, y, point in seen[:20]:
            in_cam = pose[:, :3] @ points[point][0] + pose[:, 3]
            at = focal_x * in_cam[0] / in_cam[2] + middle_x, focal_y * in_cam[1] / in_cam[2] + middle_y
            np.testing.assert_allclose((x, y), at, atol=5e-3)
    frame = json.loads((tmp_path / "s" / "transforms.json").read_text())["frames"][1]
    assert (frame["w"], frame["h"]) == (3 * WIDTH, 3 * HEIGHT)
    for wrong, words in (
        (large[:3], "Expected an image for each of 4 views, got 3"),
        (large[:, :50], "Expected images of the views' proportions"),
    ):
        with pytest.raises(ValueError, match=words):
            write_scene_folder(tmp_path / "t", fused, images=wrong)


def test_images_of_different_sizes_have_cameras_of_different_sizes(view, tmp_path):
    """The second and third view as parts of their images, the rest of the batch's size without depth."""
    crops = [(HEIGHT, WIDTH), (40, WIDTH), (HEIGHT, 50), (HEIGHT, WIDTH)]
    mask = view.mask.clone()
    for index, (height, width) in enumerate(crops):
        mask[index, height:], mask[index, :, width:] = False, False
    parts = replace(view, depth=torch.where(mask, view.depth, 0), mask=mask)
    fused = fuse_views(parts, FusionSettings(max_points=400, edge_rtol=0.0))
    write_scene_folder(tmp_path / "s", fused, crops=crops)
    cameras, images, _ = read_colmap(tmp_path / "s" / "sparse" / "0")
    frames = json.loads((tmp_path / "s" / "transforms.json").read_text())["frames"]
    for number, (height, width) in enumerate(crops, 1):
        assert cameras[number][1:3] == (width, height) == (frames[number - 1]["w"], frames[number - 1]["h"])
        np.testing.assert_allclose(cameras[number][3][0], float(view.intrinsics[number - 1, 0, 0]), rtol=1e-6)
        picture = imageio.imread(tmp_path / "s" / "images" / images[number][2])
        np.testing.assert_allclose(picture / 255, view.image[number - 1, :height, :width], atol=0.51 / 255)
        assert images[number][3] and all(x <= width + 1 and y <= height + 1 for x, y, _ in images[number][3])


def test_layouts_names_and_every_second_view(view, tmp_path):
    fused = fuse_views(view, FusionSettings(every=2, max_points=200))
    summary = write_scene_folder(tmp_path / "s", fused, layout="nerfstudio")
    names = sorted(
        str(path.relative_to(tmp_path / "s")) for path in (tmp_path / "s").rglob("*") if path.is_file()
    )
    assert names == ["images/view_0000.png", "images/view_0002.png", "sparse_pc.ply", "transforms.json"]
    assert sorted(summary.files) == names


def test_tracks_of_exact_views_have_small_errors_and_several_views(fused):
    tracks = find_tracks(fused)
    lengths = torch.bincount(tracks.point)
    assert int(lengths.min()) >= 1 and float(lengths.double().mean()) > 1.7
    assert float(tracks.errors.median()) < 0.5


def test_a_view_that_sees_nothing_has_an_empty_line(view, tmp_path):
    pose = view.world_to_cam.clone()
    pose[3, :3, 3] += 500
    fused = fuse_views(replace(view, world_to_cam=pose), FusionSettings(max_points=300))
    cloud = fused.cloud.select((fused.cloud.points.abs() < 50).all(-1))
    write_scene_folder(tmp_path / "s", replace(fused, cloud=cloud), layout="colmap")
    _, images, _ = read_colmap(tmp_path / "s" / "sparse" / "0")
    assert images[4][3] == [] and images[1][3]


def test_nothing_is_overwritten_and_failures_leave_nothing(fused, tmp_path, monkeypatch):
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ExportError, match="taken exists already. Choose another name"):
        write_scene_folder(tmp_path / "taken", fused)
    with pytest.raises(ExportError, match="a part of this path is a file, not a folder"):
        write_scene_folder(tmp_path / "file" / "s", fused)

    def cancel(items):
        yield items[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scene_folder(tmp_path / "cancelled", fused, each=cancel)
    assert sorted(os.listdir(tmp_path)) == ["file", "taken"] and not os.listdir(tmp_path / "taken")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a device that is always full")
def test_a_full_disk_leaves_no_folder(fused, tmp_path):
    def fill(items):
        target = next(tmp_path.glob("*.part"))
        (target / "images").mkdir()
        (target / "images" / "view_0000.png.part").symlink_to("/dev/full")
        yield from items

    with pytest.raises(ExportError, match="the disk is full; free some space"):
        write_scene_folder(tmp_path / "s", fused, each=fill)
    assert os.listdir(tmp_path) == []


def test_a_folder_in_the_making_is_not_shared(tmp_path):
    with new_folder(tmp_path / "s") as part:
        with pytest.raises(ExportError, match="s.part exists already"), new_folder(tmp_path / "s"):
            pass
        (part / "a").write_text("x")
    assert (tmp_path / "s" / "a").read_text() == "x"


def test_what_no_trainer_can_use_is_refused(view, fused, tmp_path):
    skewed = view.intrinsics.clone()
    skewed[2, 0, 1] = 3.0
    cases = {
        "Expected views with images, got none": replace(fused, views=replace(fused.views, image=None)),
        "Expected cameras without skew, got 3 in camera 2": replace(
            fused, views=replace(view, intrinsics=skewed)
        ),
    }
    for words, cloud in cases.items():
        with pytest.raises(ValueError, match=words):
            write_scene_folder(tmp_path / "s", cloud)
    with pytest.raises(ValueError, match="Expected a layout of"):
        write_scene_folder(tmp_path / "s", fused, layout="obj")
    assert not os.listdir(tmp_path) and math.isfinite(float(fused.cloud.points.sum()))
