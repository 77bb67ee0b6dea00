"""EXR against the OpenEXR package, both ways, and against its own damage."""

import numpy as np
import OpenEXR
import pytest
import torch

from spatialweave.models.core.export.exr import decode_exr, encode_exr, read_exr, srgb_to_linear, write_exr
from spatialweave.models.core.geometry.view import View


def a_view(height=37, width=51):
    depth = torch.rand(1, height, width, generator=torch.Generator().manual_seed(0)) * 80 + 0.1
    depth[0, height // 2, width // 3] = float("nan")
    return View.from_depth(depth, units="metric")


@pytest.mark.parametrize("size", [(37, 51), (1, 1), (16, 4), (17, 300)], ids=str)
def test_openexr_reads_the_same_bits(tmp_path, size):
    depth = torch.rand(1, *size) * 80 + 0.1
    write_exr(tmp_path / "d.exr", View.from_depth(depth, units="metric"))
    with OpenEXR.File(str(tmp_path / "d.exr")) as file:
        channels, header = (
            {name: channel.pixels for name, channel in file.channels().items()},
            dict(file.header()),
        )
    assert list(channels) == ["Z"]
    assert channels["Z"].dtype == np.float32
    np.testing.assert_array_equal(channels["Z"], depth[0].numpy())
    assert (header["depthUnits"], header["depthDirection"], header["depthInvalid"]) == (
        "metric",
        "larger = farther",
        0,
    )


def test_smooth_depth_is_compressed_and_exact(tmp_path):
    depth = (torch.arange(200.0)[:, None] / 7 + torch.arange(300.0) / 100 + 1)[None]
    path = write_exr(tmp_path / "d.exr", View.from_depth(depth, units="relative"))
    assert path.stat().st_size < depth.numel() * 4 * 0.7
    with OpenEXR.File(str(path)) as file:
        assert file.header()["compression"] == OpenEXR.ZIP_COMPRESSION
        np.testing.assert_array_equal(file.channels()["Z"].pixels, depth[0].numpy())


def test_rgb_beside_depth_is_written_as_it_is(tmp_path):
    view, rgb = a_view(), torch.rand(37, 51, 3) * 3
    write_exr(tmp_path / "d.exr", view, rgb_linear=rgb)
    with OpenEXR.File(str(tmp_path / "d.exr"), separate_channels=True) as file:
        found = {name: channel.pixels for name, channel in file.channels().items()}
    assert sorted(found) == ["B", "G", "R", "Z"]
    for index, name in enumerate("RGB"):
        np.testing.assert_array_equal(found[name], rgb[..., index].numpy())
    np.testing.assert_array_equal(found["Z"], view.depth[0].numpy())


def test_reread_equals_written(tmp_path):
    view = a_view()
    write_exr(tmp_path / "d.exr", view)
    back = read_exr(tmp_path / "d.exr")
    assert (
        torch.equal(back.depth, view.depth) and torch.equal(back.mask, view.mask) and back.units == "metric"
    )


def test_infinity_and_nan_pass_through_the_codec():
    values = np.array([[np.inf, -np.inf], [np.nan, -0.0]], np.float32)
    np.testing.assert_array_equal(decode_exr(encode_exr({"Z": values}))[0]["Z"], values)


@pytest.mark.parametrize("compression", ["NO_COMPRESSION", "ZIPS_COMPRESSION", "ZIP_COMPRESSION"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint32], ids=lambda d: d.__name__)
def test_files_by_openexr_are_read(tmp_path, compression, dtype):
    path, values = tmp_path / "o.exr", (np.random.default_rng(0).uniform(1, 9, (35, 20))).astype(dtype)
    header = {"compression": getattr(OpenEXR, compression), "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {"Z": values, "other": np.zeros((35, 20), np.float16)}).write(str(path))
    with pytest.raises(ValueError, match=r"Expected units for .*o\.exr, which does not state them, got none"):
        read_exr(path)
    np.testing.assert_array_equal(read_exr(path, units="metric").depth[0].numpy(), values.astype(np.float32))


def test_the_depth_channel_is_named_or_unambiguous(tmp_path):
    one, two = np.ones((3, 3), np.float32), np.full((3, 3), 2, np.float32)
    (tmp_path / "two.exr").write_bytes(encode_exr({"Far.V": two, "Mist.V": one}))
    with pytest.raises(
        ValueError,
        match=r"Expected one channel that is a depth by its name, got \['Far.V', 'Mist.V'\]. Name the one",
    ):
        read_exr(tmp_path / "two.exr", units="metric")
    assert float(read_exr(tmp_path / "two.exr", units="metric", channel="Far.V").depth.max()) == 2
    (tmp_path / "one.exr").write_bytes(encode_exr({"Y": two}))
    assert float(read_exr(tmp_path / "one.exr", units="metric").depth.max()) == 2


def test_unreadable_files_are_named(tmp_path):
    write_exr(tmp_path / "d.exr", a_view())
    whole = (tmp_path / "d.exr").read_bytes()
    for cut in (3, 10, 60, 300, len(whole) - 1):
        (tmp_path / "cut.exr").write_bytes(whole[:cut])
        with pytest.raises(
            ValueError,
            match=r"Cannot read .*cut\.exr: Expected a whole EXR, got one that is damaged or cut short",
        ):
            read_exr(tmp_path / "cut.exr")
    (tmp_path / "x.exr").write_bytes(b"not an exr file at all")
    with pytest.raises(ValueError, match="x.exr: Expected an OpenEXR file, got another kind"):
        read_exr(tmp_path / "x.exr")
    values = np.ones((40, 40), np.float32)
    OpenEXR.File(
        {"compression": OpenEXR.PIZ_COMPRESSION, "type": OpenEXR.scanlineimage}, {"Z": values}
    ).write(str(tmp_path / "p.exr"))
    with pytest.raises(
        ValueError, match="Expected compression none, RLE, ZIPS, ZIP, PXR24, got PIZ. Save it with ZIP"
    ):
        read_exr(tmp_path / "p.exr")
    tiled = {
        "compression": OpenEXR.ZIP_COMPRESSION,
        "type": OpenEXR.tiledimage,
        "tiles": OpenEXR.TileDescription(),
    }
    OpenEXR.File(tiled, {"Z": values}).write(str(tmp_path / "t.exr"))
    with pytest.raises(ValueError, match="got one that is tiled. Save it as flat scanlines"):
        read_exr(tmp_path / "t.exr")


def test_bad_arguments_are_worded(tmp_path):
    with pytest.raises(ValueError, match="Expected EXR channels of one"):
        encode_exr({"Z": np.ones((2, 2)), "Y": np.ones((2, 3))})
    with pytest.raises(ValueError, match="at most 31 characters"):
        encode_exr({"Z" * 32: np.ones((2, 2))})
    with pytest.raises(ValueError, match=r"Expected RGB of the depth map's \(37, 51, 3\), got \(2, 2, 3\)"):
        write_exr(tmp_path / "d.exr", a_view(), rgb_linear=torch.zeros(2, 2, 3))
    with pytest.raises(ValueError, match="got a batch of 2"):
        write_exr(tmp_path / "d.exr", View.from_depth(torch.ones(2, 2, 2), units="metric"))


def test_srgb_to_linear_at_known_points():
    """18.4 % gray is sRGB 0.4663 (118.9 / 255); below the knee the curve is x / 12.92."""
    found = srgb_to_linear(torch.tensor([0.0, 0.0323, 0.5, 1.0])[None, :, None].expand(1, 4, 3))[0, :, 0]
    torch.testing.assert_close(found, torch.tensor([0.0, 0.0025, 0.21404114, 1.0]), atol=1e-6, rtol=0)
