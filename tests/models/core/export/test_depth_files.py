"""The door to the depth formats, against the readers of other people."""

import json
from dataclasses import replace

import imageio.v3 as imageio
import numpy as np
import OpenEXR
import pytest
import torch
from PIL import Image

from spatialweave.models.core.export.depth_files import read_depth, write_depth
from spatialweave.models.core.geometry.view import View


def make(batch=1):
    depth = torch.rand(batch, 5, 7, generator=torch.Generator().manual_seed(0)) * 3 + 1
    depth[0, 0, 0] = float("inf")
    return View.from_depth(depth, units="metric", image=torch.rand(batch, 5, 7, 3))


@pytest.mark.parametrize(("name", "step"), [("a.png", 3e-5), ("a.EXR", 0), ("a.npz", 0)])
def test_what_is_read_is_what_was_written(tmp_path, name, step):
    view = make()
    again = read_depth(write_depth(tmp_path / name, view))
    assert (
        (again.depth - view.depth).abs().max() <= step
        and torch.equal(again.mask, view.mask)
        and again.units == "metric"
    )


def test_a_scale_reaches_the_png_and_the_picture_the_exr(tmp_path):
    view = make()
    steps = imageio.imread(write_depth(tmp_path / "a.png", view, scale=0.001))
    assert steps.dtype == np.uint16
    np.testing.assert_allclose(steps / 1000, view.depth[0], atol=0.00051)
    with OpenEXR.File(str(write_depth(tmp_path / "a.exr", view)), separate_channels=True) as file:
        assert sorted(file.channels()) == ["B", "G", "R", "Z"]
    with OpenEXR.File(
        str(write_depth(tmp_path / "b.exr", view, picture=False)), separate_channels=True
    ) as file:
        assert sorted(file.channels()) == ["Z"]


def test_an_npz_holds_the_batch_and_the_others_say_they_cannot(tmp_path):
    assert len(read_depth(write_depth(tmp_path / "a.npz", make(3)))) == 3
    for name in ("a.png", "a.exr"):
        with pytest.raises(ValueError, match="Expected one depth map a file, got a batch of 3"):
            write_depth(tmp_path / name, make(3))


def test_a_scale_and_unit_given_go_before_the_files(tmp_path):
    path = write_depth(tmp_path / "a.png", make(), scale=0.001)
    view = read_depth(path, scale=0.01, units="relative")
    assert view.units == "relative" and float(view.depth.max()) > 10
    assert read_depth(write_depth(tmp_path / "a.exr", make()), channel="R").depth.max() <= 1


def test_the_background_of_another_program_is_sky_where_it_is_said_to_be(tmp_path):
    """Blender's Z pass: 1e10 where nothing is, which spoils every mean if it is taken for a distance."""
    z = np.full((4, 6), 2.5, np.float32)
    z[:2] = 1e10
    with OpenEXR.File(
        {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}, {"Z": z}
    ) as file:
        file.write(str(tmp_path / "blender.exr"))
    as_it_is = read_depth(tmp_path / "blender.exr", units="metric")
    assert as_it_is.sky is None and float(as_it_is.depth.max()) == 1e10
    view = read_depth(tmp_path / "blender.exr", units="metric", background=1e10)
    assert view.sky[0].tolist() == [[True] * 6] * 2 + [[False] * 6] * 2 and float(view.depth.max()) == 2.5
    for name in ("a.png", "a.npz"):
        assert bool(read_depth(write_depth(tmp_path / name, make()), background=2.0).sky.any())


def test_other_files_are_refused(tmp_path):
    for call in (lambda: read_depth(tmp_path / "a.jpg"), lambda: write_depth(tmp_path / "a.jpg", make())):
        with pytest.raises(
            ValueError, match=r"^Expected a depth file that ends in \.png, \.exr, \.npz, got a\.jpg\. Choose"
        ):
            call()


CAMERA = torch.tensor([[[81.5, 0.0, 3.5], [0.0, 80.25, 2.1], [0.0, 0.0, 1.0]]])
NOTES = {"prompt": '{"1": "\\u7ea2"}', "workflow": "{}"}


def made_by_a_graph(tmp_path, name):
    return write_depth(tmp_path / name, replace(make(), intrinsics=CAMERA), notes=NOTES)


@pytest.mark.parametrize("name", ["a.png", "a.exr", "a.npz"])
def test_the_camera_comes_back(tmp_path, name):
    assert torch.equal(read_depth(made_by_a_graph(tmp_path, name)).intrinsics, CAMERA)
    assert read_depth(write_depth(tmp_path / name, make())).intrinsics is None


def test_notes_lie_where_other_programs_look(tmp_path):
    with Image.open(made_by_a_graph(tmp_path, "a.png")) as picture:
        text = picture.text
    with OpenEXR.File(str(made_by_a_graph(tmp_path, "a.exr")), separate_channels=True) as file:
        header = dict(file.header())
    with np.load(made_by_a_graph(tmp_path, "a.npz")) as arrays:
        texts = {name: str(arrays[name]) for name in NOTES}
    for found in (text, header, texts):
        assert {name: found[name] for name in NOTES} == NOTES
    assert (
        header["depthUnits"] == text["depth_units"] == "metric"
        and json.loads(header["intrinsics"]) == CAMERA[0].tolist()
    )


def test_a_note_takes_no_name_that_is_taken_or_too_long(tmp_path):
    notes = {
        "depth_units": "feet",
        "depthUnits": "feet",
        "depth": "feet",
        "x" * 40: "long",
        "intrinsics": "wide",
        "conf": "low",
    }
    for name in ("a.png", "a.exr", "a.npz"):
        assert read_depth(write_depth(tmp_path / name, make(), notes=notes)).units == "metric"


def test_a_broken_camera_is_named(tmp_path):
    path = made_by_a_graph(tmp_path, "a.exr")
    path.write_bytes(path.read_bytes().replace(b"[[81.5", b"[[81,5"))
    with pytest.raises(ValueError, match="Expected a camera of 3 x 3 numbers in .*a.exr"):
        read_depth(path)
