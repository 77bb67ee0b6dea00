"""16-bit PNG: read back by ourselves, by imageio and from files of others."""

import json

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from PIL import Image

from spatialweave.models.core.export.png16 import read_png16, write_png16
from spatialweave.models.core.geometry.view import View

CAMERA = torch.tensor([[20.0, 0, 11.5], [0, 20, 8.5], [0, 0, 1]])


def a_view(units="metric"):
    depth = torch.rand(1, 17, 23, generator=torch.Generator().manual_seed(0)) * 80 + 0.3
    depth[0, 3, 4], depth[0, 5, 6] = float("inf"), 0
    return View.from_depth(depth, units=units, intrinsics=CAMERA)


@pytest.mark.parametrize("units", ["metric", "relative"])
@pytest.mark.parametrize("scale", [None, 0.002])
def test_reread_equals_written_within_half_a_step(tmp_path, units, scale):
    view = a_view(units)
    write_png16(tmp_path / "d.png", view, scale=scale)
    back = read_png16(tmp_path / "d.png")
    step = scale or float(view.depth[view.mask].max() - view.depth[view.mask].min()) / 65534
    assert back.units == units
    assert torch.equal(back.mask, view.mask)
    assert float((back.depth - view.depth).abs().max()) <= step / 2 * 1.001 + 1e-5


def test_others_can_follow_the_metadata(tmp_path):
    """imageio for the pixels, Pillow for the text, the standard library for the JSON."""
    view = a_view()
    write_png16(tmp_path / "d.png", view)
    values = imageio.imread(tmp_path / "d.png")
    assert values.dtype == np.uint16 and values.shape == (17, 23)
    assert (values[3, 4], values[5, 6]) == (0, 0)
    assert values.max() == 65535 and values[values > 0].min() == 1
    text = Image.open(tmp_path / "d.png").text
    facts = json.loads((tmp_path / "d.json").read_text())
    assert text["depth_units"] == facts["depth_units"] == "metric"
    assert text["depth_direction"] == facts["depth_direction"] == "larger = farther"
    depth = values * float(text["depth_scale"]) + float(text["depth_offset"])
    np.testing.assert_allclose(
        depth[values > 0], view.depth[view.mask].numpy(), atol=facts["depth_scale"] / 2 * 1.001
    )
    assert facts["depth_min"] == float(view.depth[view.mask].min()) and facts["depth_max"] == float(
        view.depth.max()
    )
    assert (
        facts["depth_scale"] == float(text["depth_scale"])
        and facts["depth_invalid"] == 0
        and facts["invalid_pixels"] == 2
    )
    assert facts["intrinsics"] == CAMERA.tolist()


def test_a_whole_scale_writes_millimetres(tmp_path):
    write_png16(
        tmp_path / "d.png", View.from_depth(torch.tensor([[1.5, 0.0002, 20.0]]), units="metric"), scale=0.001
    )
    assert imageio.imread(tmp_path / "d.png").tolist() == [[1500, 1, 20000]]


def test_constant_depth_survives(tmp_path):
    write_png16(tmp_path / "d.png", View.from_depth(torch.full((4, 4), 3.25), units="relative"))
    assert bool((read_png16(tmp_path / "d.png").depth == 3.25).all())


def test_json_serves_when_the_text_was_dropped(tmp_path):
    view = a_view()
    write_png16(tmp_path / "d.png", view)
    imageio.imwrite(tmp_path / "d.png", imageio.imread(tmp_path / "d.png"))
    assert read_png16(tmp_path / "d.png").units == "metric"
    (tmp_path / "d.json").write_text("{")
    with pytest.raises(ValueError, match="Expected JSON in .*d.json, got text that is not JSON in line 1"):
        read_png16(tmp_path / "d.png")


def test_files_of_others_need_scale_and_units(tmp_path):
    path = tmp_path / "kinect.png"
    imageio.imwrite(path, np.array([[0, 1000], [2500, 65535]], np.uint16))
    with pytest.raises(
        ValueError,
        match="Expected a scale for .*kinect.png, which does not state it, got none. Pass scale and units",
    ):
        read_png16(path)
    with pytest.raises(ValueError, match="which does not state them, got none"):
        read_png16(path, scale=0.001)
    view = read_png16(path, scale=0.001, units="metric")
    assert view.mask.tolist() == [[[False, True], [True, True]]]
    torch.testing.assert_close(view.depth, torch.tensor([[[0, 1.0], [2.5, 65.535]]]))


def test_arguments_override_the_file(tmp_path):
    write_png16(tmp_path / "d.png", View.from_depth(torch.tensor([[1.0, 2.0]]), units="relative"), scale=0.5)
    view = read_png16(tmp_path / "d.png", scale=1.0, offset=10.0, units="metric")
    assert view.depth.tolist() == [[[12.0, 14.0]]] and view.units == "metric"


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_other_pictures_are_named(tmp_path, mode):
    Image.new(mode, (4, 4)).save(tmp_path / "x.png")
    with pytest.raises(
        ValueError,
        match=f"16-bit gray PNG in .*x.png, got a PNG image of mode {mode}. .* View from Depth Image",
    ):
        read_png16(tmp_path / "x.png")


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(
        ValueError, match="Expected a 16-bit gray PNG in .*x.png, got no image or a damaged one"
    ):
        read_png16(tmp_path / "x.png")
    write_png16(tmp_path / "y.png", a_view())
    whole = (tmp_path / "y.png").read_bytes()
    (tmp_path / "y.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        ValueError, match="Expected a 16-bit gray PNG in .*y.png, got no image or a damaged one"
    ):
        read_png16(tmp_path / "y.png")
    with pytest.raises(FileNotFoundError):
        read_png16(tmp_path / "absent.png")


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"Expected depths of at most 65.535, which 16 bits hold at a scale of 0.001, got up to 100",
    ):
        write_png16(
            tmp_path / "d.png", View.from_depth(torch.full((2, 2), 100.0), units="metric"), scale=0.001
        )
    with pytest.raises(ValueError, match="Expected one depth map a file, got a batch of 2"):
        write_png16(tmp_path / "d.png", View.from_depth(torch.ones(2, 2, 2), units="metric"))
    with pytest.raises(
        ValueError,
        match=r"Expected a valid pixel \(finite and above 0\), got none among 4 in depth map 0 of 1",
    ):
        write_png16(tmp_path / "d.png", View.from_depth(torch.zeros(2, 2), units="metric"))
    assert not list(tmp_path.iterdir())
