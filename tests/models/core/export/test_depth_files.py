"""The door to the depth formats, against the readers of other people."""

import imageio.v3 as imageio
import numpy as np
import OpenEXR
import pytest
import torch

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
    assert (again.depth - view.depth).abs().max() <= step and torch.equal(again.mask, view.mask) and again.units == "metric"


def test_a_scale_reaches_the_png_and_the_picture_the_exr(tmp_path):
    view = make()
    steps = imageio.imread(write_depth(tmp_path / "a.png", view, scale=0.001))
    assert steps.dtype == np.uint16
    np.testing.assert_allclose(steps / 1000, view.depth[0], atol=0.00051)
    with OpenEXR.File(str(write_depth(tmp_path / "a.exr", view)), separate_channels=True) as file:
        assert sorted(file.channels()) == ["B", "G", "R", "Z"]
    with OpenEXR.File(str(write_depth(tmp_path / "b.exr", view, picture=False)), separate_channels=True) as file:
        assert sorted(file.channels()) == ["Z"]


def test_an_npz_holds_the_batch_and_the_others_say_they_cannot(tmp_path):
    assert len(read_depth(write_depth(tmp_path / "a.npz", make(3)))) == 3
    for name in ("a.png", "a.exr"):
        with pytest.raises(ValueError, match="A batch of 3 depth maps arrived for a file that holds one"):
            write_depth(tmp_path / name, make(3))


def test_a_scale_and_unit_given_go_before_the_files(tmp_path):
    path = write_depth(tmp_path / "a.png", make(), scale=0.001)
    view = read_depth(path, scale=0.01, units="relative")
    assert view.units == "relative" and float(view.depth.max()) > 10
    assert read_depth(write_depth(tmp_path / "a.exr", make()), channel="R").depth.max() <= 1


def test_other_files_are_refused(tmp_path):
    for call in (lambda: read_depth(tmp_path / "a.jpg"), lambda: write_depth(tmp_path / "a.jpg", make())):
        with pytest.raises(ValueError, match=r"^a\.jpg is no depth file by its name, wanted one that ends in \.png, \.exr, \.npz\.$"):
            call()
