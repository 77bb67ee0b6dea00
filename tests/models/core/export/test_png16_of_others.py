"""16-bit PNG of other programs: what text, JSON and chunks state is heeded, and what cannot be is refused by
file.
"""

import json
import struct
import zlib

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from spatialweave.models.core.export.depth_files import fingerprint_depth, read_depth
from spatialweave.models.core.export.files import UnstatedError
from spatialweave.models.core.export.png16 import read_png16, write_png16
from spatialweave.models.core.geometry.view import View

VALUES = np.array([[0, 1000, 5000], [256, 512, 65535]], np.uint16)
STATED = {"depth_units": "metric", "depth_scale": 0.001, "depth_offset": 0.0}


def save(folder, text=None, beside=None, **options):
    """d.png with these facts in its text, and these in d.json beside it."""
    chunks = PngImagePlugin.PngInfo()
    for name, value in (text or {}).items():
        chunks.add_text(name, str(value))
    Image.fromarray(VALUES).save(folder / "d.png", pnginfo=chunks, **options)
    if beside is not None:
        (folder / "d.json").write_text(
            beside if isinstance(beside, str) else json.dumps(beside), encoding="utf-8"
        )
    return folder / "d.png"


def test_text_or_json_says_what_the_values_are(tmp_path):
    want = torch.from_numpy((VALUES * 0.001).astype(np.float32))[None]
    for text, beside in (
        (STATED, None),
        (None, STATED),
        (STATED, STATED),
        ({"depth_scale": 0.001}, {"depth_units": "m"}),
    ):
        view = read_png16(save(tmp_path, text, beside))
        assert torch.equal(view.depth, want) and view.units == "metric"
    view = read_png16(save(tmp_path, None, "\ufeff" + json.dumps(STATED)))  # as Windows' editors save it
    assert torch.equal(view.depth, want)


def test_an_offset_need_not_be_stated(tmp_path):
    assert read_png16(save(tmp_path, None, {"depth_scale": 1 / 256, "depth_units": "metric"})).depth[
        0, 1, :2
    ].tolist() == [1, 2]


@pytest.mark.parametrize("name", ["depth_scale", "depth_offset"])
@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "0.001", True, [0.001], {}])
def test_numbers_of_the_json_that_are_none_are_refused(tmp_path, name, value):
    with pytest.raises(
        ValueError, match=rf"Expected a finite number (above 0 )?as '{name}' in .*d\.json, got "
    ):
        read_png16(save(tmp_path, None, {**STATED, name: value}))


@pytest.mark.parametrize("value", [0, -0.001, "abc", "", "nan", "0,001"])
def test_scales_of_the_text_that_are_none_are_refused(tmp_path, value):
    with pytest.raises(
        ValueError, match=r"Expected a finite number above 0 as 'depth_scale' in .*d\.png, got "
    ):
        read_png16(save(tmp_path, {**STATED, "depth_scale": value}))


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ({**STATED, "depth_units": "mm"}, r"Expected units 'metric' .* in .*d\.json, got 'mm'"),
        ({**STATED, "depth_units": None}, r"Expected units 'metric' .* in .*d\.json, got None"),
        ({**STATED, "depth_units": 1}, r"Expected units 'metric' .* in .*d\.json, got 1"),
        (
            {**STATED, "depth_direction": "larger = nearer"},
            r"Expected the direction 'larger = farther' in .*d\.json",
        ),
        ({**STATED, "depth_invalid": 65535}, r"Expected 0 as 'depth_invalid' in .*d\.json, got 65535"),
        (
            {**STATED, "width": 999},
            r"Expected the width 3 of .*d\.png in .*d\.json, got 999: it describes another image",
        ),
        ({**STATED, "height": 3}, r"Expected the height 2 of .*d\.png in .*d\.json, got 3"),
        ({**STATED, "height": "2"}, r"Expected a finite number as 'height' in .*d\.json, got '2'"),
        ({**STATED, "intrinsics": [[1, 2]]}, r"Expected a camera of 3 x 3 numbers in .*d\.json"),
        ({**STATED, "intrinsics": [["a"] * 3] * 3}, r"Expected a camera of 3 x 3 numbers in .*d\.json"),
        (
            {**STATED, "intrinsics": np.eye(3).tolist()},
            r"Cannot read .*d\.png: Expected intrinsics in pixels of a map 3 x 2",
        ),
        ([1, 2], r"Expected a JSON object in .*d\.json, got a list"),
        ("{", r"Expected JSON in .*d\.json, got text that is not JSON in line 1"),
    ],
    ids=str,
)
def test_a_json_that_cannot_be_is_refused(tmp_path, beside, message):
    with pytest.raises(ValueError, match=message):
        read_png16(save(tmp_path, None, beside))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("depth_scale", 0.0002),
        ("depth_offset", 1.0),
        ("depth_units", "relative"),
        ("intrinsics", [[9, 0, 2], [0, 9, 1], [0, 0, 1]]),
    ],
)
def test_text_and_json_that_differ_are_refused(tmp_path, name, value):
    text = {**STATED, "intrinsics": "[[9, 0, 1.5], [0, 9, 1], [0, 0, 1]]"}
    path = save(tmp_path, text, {**STATED, name: value})
    with pytest.raises(
        ValueError, match=rf"Expected one {name} for .*d\.png, got .* in its text and .* in .*d\.json"
    ):
        read_png16(path)
    if name in ("depth_scale", "depth_offset"):
        assert read_png16(path, scale=0.5).depth[0, 0, 1] == 500  # the caller settles it


def test_words_for_one_unit_do_not_differ(tmp_path):
    assert (
        read_png16(save(tmp_path, {**STATED, "depth_units": "meters"}, {**STATED, "depth_units": "m"})).units
        == "metric"
    )


def test_a_json_about_other_things_is_none_of_ours(tmp_path):
    view = read_png16(save(tmp_path, None, {"width": 999, "labels": []}), scale=0.001, units="metric")
    assert float(view.depth[0, 0, 2]) == pytest.approx(5)


def test_what_is_missing_is_named_for_the_caller(tmp_path):
    for beside, missing in (
        (None, ("scale", "units")),
        ({"depth_units": "m"}, ("scale",)),
        ({"depth_scale": 1}, ("units",)),
    ):
        with pytest.raises(UnstatedError) as caught:
            read_png16(save(tmp_path, None, beside))
        assert caught.value.missing == missing


def test_the_transparent_value_is_invalid(tmp_path):
    view = read_png16(save(tmp_path, STATED, transparency=65535))
    assert view.mask[0].tolist() == [[False, True, True], [True, True, False]]


@pytest.mark.parametrize("turn", [2, 3, 6, 8])
def test_a_turned_depth_is_refused(tmp_path, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    with pytest.raises(
        ValueError, match=rf"Expected an upright depth in .*d\.png, got Exif orientation {turn}"
    ):
        read_png16(save(tmp_path, STATED, exif=exif))
    exif[0x0112] = 1
    assert read_png16(save(tmp_path, STATED, exif=exif)).depth.shape == (1, 2, 3)


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def test_more_pixels_than_can_be_opened_are_refused(tmp_path):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 16, 0, 0, 0, 0))
    (tmp_path / "huge.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )
    with pytest.raises(
        ValueError, match=r"Expected a 16-bit gray PNG in .*huge\.png, got more pixels than can be opened"
    ):
        read_png16(tmp_path / "huge.png", scale=0.001, units="metric")


def test_known_scales_are_exact(tmp_path):
    """Millimetres, KITTI's 1/256 and TUM's 1/5000, against numpy in double precision."""
    imageio.imwrite(tmp_path / "k.png", VALUES)
    for scale in (0.001, 1 / 256, 1 / 5000):
        depth = read_png16(tmp_path / "k.png", scale=scale, units="metric").depth[0].numpy()
        assert np.array_equal(depth, (VALUES.astype(np.float64) * scale).astype(np.float32))


def test_the_fingerprint_knows_every_file_that_is_read(tmp_path):
    path = save(tmp_path)
    prints = [fingerprint_depth(path)]
    for scale in (0.001, 0.002, 0.0002):
        save(tmp_path, None, {**STATED, "depth_scale": scale})
        assert float(read_depth(path).depth[0, 0, 2]) == pytest.approx(5000 * scale)
        prints.append(fingerprint_depth(path))
    write_png16(path, View.from_depth(torch.ones(2, 3), units="metric"))
    prints.append(fingerprint_depth(path))
    assert len(set(prints)) == 5 and fingerprint_depth(path) == prints[-1]


def test_an_array_file_is_told_how_to_become_a_depth(tmp_path):
    np.save(tmp_path / "d.npy", np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"got d\.npy\. Save an array by numpy\.savez\(path, depth=array\)"):
        read_depth(tmp_path / "d.npy")
