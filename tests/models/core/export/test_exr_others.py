"""EXR files of other programs: windows, layers, compression, encodings, and what is broken about them."""

import logging
import struct
import tracemalloc
import zlib

import numpy as np
import OpenEXR
import pytest
import torch

from spatialweave.models.core.export.depth_files import read_depth
from spatialweave.models.core.export.exr import decode_exr, encode_exr, find_depth, read_exr

SCANLINES = {"type": OpenEXR.scanlineimage}


def write(path, channels, **header):
    OpenEXR.File({**SCANLINES, "compression": OpenEXR.ZIP_COMPRESSION, **header}, dict(channels)).write(
        str(path)
    )
    return path


def header_of(data):
    """The end of a header's attributes: where the table of blocks begins."""
    position = 8
    while data[position]:
        position = data.index(b"\0", data.index(b"\0", position) + 1) + 1
        position += 4 + struct.unpack_from("<i", data, position)[0]
    return position + 1


def with_attribute(data, name, kind, value):
    """The same file with one more attribute at its beginning; the table's places move along."""
    more = name + b"\0" + kind + b"\0" + struct.pack("<i", len(value)) + value
    end = header_of(data)
    height = 48
    table = np.frombuffer(data, "<u8", -(-height // 16), end) + len(more)
    return data[:8] + more + data[8:end] + table.astype("<u8").tobytes() + data[end + table.nbytes :]


def ramp(height=48, width=64):
    return np.linspace(1, 9, height * width, dtype=np.float32).reshape(height, width)


def box(left, top, right, bottom):
    return (np.array([left, top], np.int32), np.array([right, bottom], np.int32))


@pytest.mark.parametrize("compression", ["NO", "RLE", "ZIPS", "ZIP", "PXR24"])
def test_a_crop_lies_where_it_was_in_the_frame(tmp_path, caplog, compression):
    """Display window 8 x 6, data window (2, 1) to (5, 3): what was not rendered is invalid, the rest keeps
    its pixel.
    """
    depth = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    windows = {"displayWindow": box(0, 0, 7, 5), "dataWindow": box(2, 1, 5, 3)}
    path = write(
        tmp_path / "crop.exr",
        {"Z": depth},
        **windows,
        compression=getattr(OpenEXR, f"{compression}_COMPRESSION"),
    )
    with caplog.at_level(logging.INFO, "spatialweave.export"):
        view = read_depth(path, units="metric")
    wanted = np.zeros((6, 8), np.float32)
    wanted[1:4, 2:6] = depth
    np.testing.assert_array_equal(view.depth[0].numpy(), wanted)
    np.testing.assert_array_equal(view.mask[0].numpy(), wanted > 0)
    assert "the data window (2, 1) to (5, 3) lies inside the display window (0, 0) to (7, 5)" in caplog.text


@pytest.mark.parametrize("order", ["INCREASING_Y", "DECREASING_Y"])
def test_overscan_is_cut_off(tmp_path, order):
    depth = np.arange(1, 81, dtype=np.float32).reshape(8, 10)
    windows = {
        "displayWindow": box(0, 0, 7, 5),
        "dataWindow": box(-1, -1, 8, 6),
        "lineOrder": getattr(OpenEXR, order),
    }
    view = read_exr(write(tmp_path / "over.exr", {"Z": depth}, **windows), units="metric")
    np.testing.assert_array_equal(view.depth[0].numpy(), depth[1:-1, 1:-1])
    assert float(view.depth[0, 0, 0]) == 12 and view.sky is None


def test_a_frame_that_begins_elsewhere_keeps_its_place(tmp_path):
    depth = ramp(4, 5)
    windows = {"displayWindow": box(100, -50, 105, -46), "dataWindow": box(99, -49, 103, -46)}
    view = read_exr(write(tmp_path / "far.exr", {"Z": depth}, **windows), units="metric")
    wanted = np.zeros((5, 6), np.float32)
    wanted[1:5, 0:4] = depth[:, 1:]
    np.testing.assert_array_equal(view.depth[0].numpy(), wanted)


def test_windows_that_do_not_meet_are_both_named(tmp_path):
    windows = {"displayWindow": box(0, 0, 7, 5), "dataWindow": box(20, 1, 23, 3)}
    path = write(tmp_path / "apart.exr", {"Z": ramp(3, 4)}, **windows)
    with pytest.raises(
        ValueError, match=r"apart.exr.*display window \(0, 0\) to \(7, 5\), got \(20, 1\) to \(23, 3\)"
    ):
        read_exr(path, units="metric")


@pytest.mark.parametrize("compression", ["NO", "RLE", "ZIPS", "ZIP", "PXR24"])
@pytest.mark.parametrize("size", [(1, 1), (37, 51), (16, 7), (33, 300)], ids=str)
def test_every_pixel_type_beside_the_others(tmp_path, compression, size):
    """PXR24 writes 24 bits of a float32: the values here have no more."""
    random = np.random.default_rng(0)
    channels = {
        "A": random.integers(0, 2**32, size, dtype=np.uint32),
        "B": random.normal(size=size).astype(np.float16),
        "Z": (random.integers(1, 2**14, size) / 64).astype(np.float32),
    }
    path = write(tmp_path / "o.exr", channels, compression=getattr(OpenEXR, f"{compression}_COMPRESSION"))
    found, _ = decode_exr(path.read_bytes())
    for name, plane in channels.items():
        np.testing.assert_array_equal(found[name], plane.astype(np.float32) if name == "B" else plane)
    np.testing.assert_array_equal(read_exr(path, units="metric").depth[0].numpy(), channels["Z"])


def test_flat_areas_by_run_lengths(tmp_path):
    depth = np.full((20, 700), 2.125, np.float16)  # two bytes of 0x40: runs
    depth[5:9, 100:400] = 7
    path = write(tmp_path / "r.exr", {"Z": depth}, compression=OpenEXR.RLE_COMPRESSION)
    assert path.stat().st_size < depth.nbytes / 5
    np.testing.assert_array_equal(read_exr(path, units="metric").depth[0].numpy(), depth)


@pytest.mark.parametrize("method", ["PIZ", "B44", "B44A", "DWAA", "DWAB"])
def test_other_methods_are_named_with_the_remedy(tmp_path, method):
    path = write(
        tmp_path / "m.exr",
        {"Z": ramp().astype(np.float16)},
        compression=getattr(OpenEXR, f"{method}_COMPRESSION"),
    )
    with pytest.raises(
        ValueError,
        match=rf"m.exr: Expected compression none, RLE, ZIPS, ZIP, PXR24, got {method}. Save it with ZIP",
    ):
        read_exr(path, units="metric")


@pytest.mark.parametrize("names, wanted", [
    (["R", "G", "B", "A", "Z"], "Z"),
    (["Y", "Z"], "Z"),  # a luminance and a depth
    (["Z", "ZBack"], "Z"),
    (["Y"], "Y"),
    (["ViewLayer.Combined.R", "ViewLayer.Depth.Z", "ViewLayer.Mist.Z"], "ViewLayer.Depth.Z"),
    (
        ["ViewLayer.Depth.Z", "ViewLayer.Denoising Depth.Z", *(f"ViewLayer.Normal.{axis}" for axis in "XYZ")],
        "ViewLayer.Depth.Z",
    ),
    (["X", "Y", "Z", "Depth.Z"], "Depth.Z"),
    (["P.X", "P.Y", "P.Z", "Z"], "Z"),
    (["Image.R", "Image.G", "Image.B", "depth.V"], "depth.V"),
    (["Depth.V", "Mist.V"], "Depth.V"),
    (["R", "G", "B", "depth"], "depth"),
    (["R", "G", "B", "z"], "z"),
])  # fmt: skip
def test_the_depth_is_found_by_its_name(names, wanted):
    assert find_depth(names) == wanted


@pytest.mark.parametrize("names, about", [
    (
        ["X", "Y", "Z"],
        "; Z beside X is part of a vector, not a depth. Name the one with the depth: exr_channel "
        "in Load Depth",
    ),
    (["N.X", "N.Y", "N.Z", "R", "G", "B"], "; N.Z beside X is part of a vector"),
    (["Vector.X", "Vector.Y", "Vector.Z", "Vector.W"], "; Vector.Z beside X"),
    (["left.Depth.Z", "right.Depth.Z"], r"\['left.Depth.Z', 'right.Depth.Z'\]\. Name"),
    (["R", "G", "B"], r"\['B', 'G', 'R'\]\. Name"),
    (["Mist.Z", "R"], r"\['Mist.Z', 'R'\]\. Name"),
])  # fmt: skip
def test_what_is_no_depth_or_more_than_one_is_asked_for(names, about):
    with pytest.raises(ValueError, match=f"Expected one channel that is a depth by its name, got .*{about}"):
        find_depth(names)


def test_a_vector_pass_is_read_only_by_name(tmp_path, caplog):
    path = write(
        tmp_path / "n.exr", {name: np.full((3, 4), index, np.float32) for index, name in enumerate("XYZ", 1)}
    )
    with pytest.raises(
        ValueError, match=r"Cannot read .*n.exr: .*\['X', 'Y', 'Z'\]; Z beside X is part of a vector"
    ):
        read_exr(path, units="metric")
    with caplog.at_level(logging.INFO, "spatialweave.export"):
        assert float(read_exr(path, units="metric", channel="Y").depth.max()) == 2
    assert "the depth is channel 'Y' of ['X', 'Y', 'Z']" in caplog.text
    with pytest.raises(ValueError, match=r"n.exr: Expected a channel named 'W', got \['X', 'Y', 'Z'\]"):
        read_exr(path, units="metric", channel="W")


@pytest.mark.parametrize(
    "name, kind, value",
    [
        (b"comments", b"string", "für Ölgemälde".encode("cp1252")),
        (b"owner", b"string", "\u6df1\u5ea6".encode("shift-jis")),
        (b"aperture", b"float", struct.pack("<d", 2.8)),
        (b"aperture", b"float", b""),
        ("größe".encode("latin-1"), b"string", b"x"),
        (b"an_attribute_name_of_more_than_31_characters", b"string", b"x"),
        (b"odd", b"a_kind_of_its_own", bytes(5)),
    ],
    ids=["cp1252", "shift-jis", "double", "empty float", "latin-1 name", "long name", "unknown kind"],
)  # fmt: skip
def test_what_else_stands_in_the_header_stops_nobody(tmp_path, name, kind, value):
    path = tmp_path / "a.exr"
    path.write_bytes(with_attribute(write(path, {"Z": ramp()}).read_bytes(), name, kind, value))
    np.testing.assert_array_equal(read_exr(path, units="metric").depth[0].numpy(), ramp())


def test_a_channel_may_be_named_in_latin_1(tmp_path):
    path = tmp_path / "l.exr"
    data = encode_exr({"Tiefe_aou": ramp() * 2, "Tiefe_ssz": ramp()})
    path.write_bytes(
        data.replace(b"_aou", "_ßéx".encode("latin-1")).replace(b"_ssz", "_äöü".encode("latin-1"))
    )
    with pytest.raises(ValueError, match=r"got \['Tiefe_ßéx', 'Tiefe_äöü'\]"):
        read_exr(path, units="metric")
    np.testing.assert_array_equal(
        read_exr(path, units="metric", channel="Tiefe_äöü").depth[0].numpy(), ramp()
    )


@pytest.mark.parametrize("units, told", [("cm", "'cm'"), (100.0, "100.0")])
def test_units_of_another_tongue_are_not_taken_for_ours(tmp_path, units, told):
    path = tmp_path / "u.exr"
    path.write_bytes(encode_exr({"Z": ramp()}, {"depthUnits": units}))
    with pytest.raises(ValueError, match=rf"u.exr: Expected depthUnits 'metric' or 'relative', got {told}"):
        read_exr(path)


def test_a_stated_direction_and_hole_are_heeded(tmp_path):
    path = tmp_path / "d.exr"
    path.write_bytes(encode_exr({"Z": ramp()}, {"depthUnits": "metric", "depthDirection": "larger = nearer"}))
    with pytest.raises(
        ValueError, match=r"d.exr: Expected depthDirection 'larger = farther', got 'larger = nearer'"
    ):
        read_exr(path)
    path.write_bytes(encode_exr({"Z": ramp()}, {"depthUnits": "metric", "depthInvalid": 1.0}))
    assert read_exr(path).invalid_counts == (1,)


@pytest.mark.parametrize("method", ["NO", "ZIP"])
def test_a_table_of_zeros_is_made_again_from_the_blocks(tmp_path, method):
    """A writer that was stopped leaves it; OpenEXR walks through the blocks, too."""
    path = write(tmp_path / "t.exr", {"Z": ramp()}, compression=getattr(OpenEXR, f"{method}_COMPRESSION"))
    data, count = path.read_bytes(), 48 if method == "NO" else 3
    end = header_of(data)
    whole = data[:end] + bytes(8 * count) + data[end + 8 * count :]
    path.write_bytes(whole)
    np.testing.assert_array_equal(read_exr(path, units="metric").depth[0].numpy(), ramp())
    path.write_bytes(whole[:-1])
    with pytest.raises(
        ValueError,
        match=f"t.exr: Expected a whole EXR, got one that is damaged or cut short .1 of {count} blocks "
        "of scanlines are missing",
    ):
        read_exr(path, units="metric")


def test_a_block_named_twice_leaves_no_line_unread(tmp_path):
    path = write(tmp_path / "t.exr", {"Z": ramp()})
    data = bytearray(path.read_bytes())
    end = header_of(bytes(data))
    data[end + 8 : end + 16] = data[end : end + 8]
    path.write_bytes(data)
    with pytest.raises(ValueError, match="1 of 3 blocks of scanlines are missing"):
        read_exr(path, units="metric")


@pytest.mark.parametrize(
    "background, sky", [(1e10, 640), (65504.0, 640), (65505.0, 640), (8.5, 640), (None, 0)]
)
def test_a_background_that_half_floats_cannot_hold(tmp_path, background, sky):
    """Blender writes 1e10 into a half channel as the largest half, 65504."""
    depth = np.full((48, 64), 8, np.float16)
    depth[:10] = 65504
    path = write(tmp_path / "h.exr", {"Z": depth})
    view = read_depth(path, units="metric", background=background)
    assert (0 if view.sky is None else int(view.sky.sum())) == sky
    assert float(view.depth.max()) == (8 if sky else 65504)


def test_a_float_channel_keeps_its_65504_metres(tmp_path):
    depth = np.full((4, 4), 65504, np.float32)
    view = read_depth(write(tmp_path / "f.exr", {"Z": depth}), units="metric", background=1e10)
    assert bool(view.mask.all()) and not bool(view.sky.any())


def test_not_a_number_is_invalid(tmp_path):
    depth = np.array([[np.nan, np.inf, -1.0, 0.0, 2.0]], np.float32)
    view = read_exr(write(tmp_path / "n.exr", {"Z": depth}), units="metric")
    assert view.mask.tolist() == [[[False, False, False, False, True]]] and view.sky.tolist()[0][0] == [
        False,
        True,
        False,
        False,
        False,
    ]


def test_a_depth_of_whole_numbers(tmp_path):
    depth = np.arange(1, 13, dtype=np.uint32).reshape(3, 4) * 1000
    view = read_exr(write(tmp_path / "u.exr", {"Z": depth}), units="metric")
    np.testing.assert_array_equal(view.depth[0].numpy(), depth.astype(np.float32))


def test_parts_and_kinds_that_are_not_read_are_named(tmp_path):
    parts = [OpenEXR.Part(dict(SCANLINES), {"Z": ramp()}, name) for name in ("one", "two")]
    OpenEXR.File(parts).write(str(tmp_path / "p.exr"))
    with pytest.raises(
        ValueError,
        match="p.exr: Expected a flat scanline EXR, got one that is multi-part. Save it as flat scanlines",
    ):
        read_exr(tmp_path / "p.exr", units="metric")
    data = bytearray(write(tmp_path / "d.exr", {"Z": ramp()}).read_bytes())
    for flags, told in (
        (0x802, "one that is deep"),
        (0x202, "one that is tiled"),
        (3, "version 3"),
        (0x10002, "unknown flags"),
    ):
        data[4:8] = struct.pack("<I", flags)
        (tmp_path / "d.exr").write_bytes(data)
        with pytest.raises(ValueError, match=f"d.exr: .*{told}"):
            read_exr(tmp_path / "d.exr", units="metric")


def test_subsampled_channels_are_named(tmp_path):
    data = encode_exr({"BY": ramp(), "Z": ramp()})
    place = data.index(b"BY\0" + struct.pack("<4i", 2, 0, 1, 1)) + 3
    (tmp_path / "s.exr").write_bytes(data[:place] + struct.pack("<4i", 2, 0, 2, 2) + data[place + 16 :])
    with pytest.raises(
        ValueError, match="s.exr: Expected every pixel of each channel, got channel 'BY' subsampled"
    ):
        read_exr(tmp_path / "s.exr", units="metric")


@pytest.mark.parametrize("which", ["dataWindow", "displayWindow"])
@pytest.mark.parametrize("window", [
    (0, 0, 2**31 - 1, 2**31 - 1), (-(2**31), -(2**31), 2**31 - 1, 2**31 - 1), (0, 0, 2**31 - 1, 0),
    (0, 0, 0, 2**31 - 1),
    (0, 0, 1999, 1999), (5, 5, 4, 4), (7, 0, 0, 7),
], ids=str)  # fmt: skip
def test_windows_without_measure_take_no_memory(tmp_path, which, window):
    data = encode_exr({"Z": ramp()})
    kind = which.encode() + b"\0box2i\0" + struct.pack("<i", 16)
    place = data.index(kind) + len(kind)
    path = tmp_path / "w.exr"
    path.write_bytes(data[:place] + struct.pack("<4i", *window) + data[place + 16 :])
    if which == "displayWindow" and window == (0, 0, 1999, 1999):
        assert read_exr(path, units="metric").depth.shape == (
            1,
            2000,
            2000,
        )  # a small crop of a large frame is one
        return
    tracemalloc.start()
    with pytest.raises(ValueError, match="Cannot read .*w.exr: "):
        read_exr(path, units="metric")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 20e6


def test_a_block_that_unpacks_without_end_is_stopped(tmp_path):
    data = encode_exr({"Z": ramp(16, 64)})
    start = header_of(data) + 8
    forged = zlib.compress(bytes(10**8), 9)[: 16 * 64 * 4 - 1]
    path = tmp_path / "b.exr"
    path.write_bytes(data[:start] + struct.pack("<2i", 0, len(forged)) + forged)
    with pytest.raises(
        ValueError,
        match="b.exr: Expected a whole EXR, got one that is damaged or cut short .a block holds 4097 "
        "bytes instead of 4096",
    ):
        read_exr(path, units="metric")


@pytest.mark.parametrize("compression", ["NO", "RLE", "ZIP", "PXR24"])
def test_every_damage_ends_in_a_sentence_or_in_the_files_frame(tmp_path, compression):
    """Bytes changed, cut out, doubled and cut off, in the header more often than elsewhere."""
    random = np.random.default_rng(13)
    channels = {"R": ramp(20, 30).astype(np.float16), "Z": ramp(20, 30)}
    whole = write(
        tmp_path / "w.exr", channels, compression=getattr(OpenEXR, f"{compression}_COMPRESSION")
    ).read_bytes()
    path, ends = tmp_path / "f.exr", {"read": 0, "refused": 0}
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(random.integers(1, 4)):
            place = int(
                random.integers(0, header_of(whole) + 100 if random.random() < 0.7 else len(data))
            ) % len(data)
            kind = random.integers(0, 4)
            if kind == 0:
                data[place] = random.integers(0, 256)
            elif kind == 1:
                data[place : place + 4] = struct.pack(
                    "<i", int(random.choice([0, -1, 2**31 - 1, -(2**31), 1 << 20]))
                )
            elif kind == 2:
                del data[place : place + int(random.integers(1, 20))]
            else:
                data[place:place] = data[place : place + int(random.integers(1, 20))]
        path.write_bytes(data[: random.integers(1, len(data))] if random.random() < 0.1 else data)
        try:
            view = read_exr(path, units="metric")
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            ends["refused"] += 1
        else:
            assert view.depth.ndim == 3 and bool(torch.isfinite(view.depth).all())
            ends["read"] += 1
    assert min(ends.values()) > 10, ends
