"""Picture files of every kind, written by Pillow, imageio or byte by byte, against values known beforehand.
"""

import io
import struct
import zlib

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image

from spatialweave.models.core.picture_files import PictureError
from spatialweave.models.core.pictures import (
    open_gray,
    open_labels,
    open_mask,
    open_picture,
    open_rgb,
    read_pictures,
)

UPRIGHT = (np.arange(2 * 3 * 3, dtype=np.uint8) * 14).reshape(2, 3, 3)  # 2 high, 3 wide, no two values alike
# EXIF orientation -> how the pixels of the upright picture lie in the file (TIFF 6.0, tag 274)
STORED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: x.transpose(1, 0, 2)[::-1],
    7: lambda x: x.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda x: x.transpose(1, 0, 2)[:, ::-1],
}
RAMP = np.linspace(0, 65535, 96).round().astype(np.uint16)[None].repeat(2, axis=0)  # 2 x 96


def save(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(values, color, *extra, bits=16):
    """A PNG of whole bytes a sample, by the specification alone: color 0 gray, 2 RGB, 4 gray and alpha, 6
    RGBA.
    """
    height, width = values.shape[:2]
    rows = values.reshape(height, values.size // max(height, 1)).astype(f">u{bits // 8}")
    head = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + b"".join(extra)
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )


def tiff(values, photometric, *, kind=1, order="<", extra=None):
    """An uncompressed TIFF, by the specification alone; kind 1 unsigned, 2 signed, 3 float; extra 1
    premultiplied alpha, 2 plain.
    """
    height, width, channels = (*values.shape, 1)[:3]
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    fields = [
        (256, 4, [width]),
        (257, 4, [height]),
        (258, 3, [values.itemsize * 8] * channels),
        (259, 3, [1]),
        (262, 3, [photometric]),
    ]
    fields += [(273, 4, [8]), (277, 3, [channels]), (278, 4, [height]), (279, 4, [len(data)])]
    fields += ([(338, 3, [extra])] if extra else []) + [(339, 3, [kind] * channels)]
    start = 8 + len(data)
    directory, tail, place = struct.pack(order + "H", len(fields)), b"", start + 2 + 12 * len(fields) + 4
    for tag, form, numbers in fields:
        packed = struct.pack(order + {3: "H", 4: "I"}[form] * len(numbers), *numbers)
        if len(packed) > 4:
            tail += packed
            packed = struct.pack(order + "I", place + len(tail) - len(packed))
        directory += struct.pack(order + "HHI", tag, form, len(numbers)) + packed.ljust(4, b"\0")
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(order + "I", start) + data + directory + struct.pack(order + "I", 0) + tail


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_every_exif_orientation_is_turned_upright(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    lossless = {"lossless": True} if kind == "WEBP" else {}
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](UPRIGHT)))
    data = save(stored, kind, exif=exif, **lossless)
    path = tmp_path / "picture"
    path.write_bytes(data)
    for source in (path, str(path), data, bytearray(data)):
        assert np.array_equal(open_rgb(source)[0].numpy(), UPRIGHT)
    with Image.open(path) as image:  # as a caller hands it in
        np.testing.assert_allclose(read_pictures(image).rgb[0].numpy(), UPRIGHT / 255, atol=1e-6)


@pytest.mark.parametrize("orientation", STORED)
def test_jpeg_orientation_and_that_of_maps(orientation):
    corners = np.zeros((32, 48, 3), np.uint8)  # red, green, blue, black
    corners[:16, :24, 0] = corners[:16, 24:, 1] = corners[16:, :24, 2] = 255
    exif = Image.Exif()
    exif[274] = orientation
    data = save(
        Image.fromarray(np.ascontiguousarray(STORED[orientation](corners))),
        "JPEG",
        exif=exif,
        quality=95,
        subsampling=0,
    )
    rgb = open_rgb(data)[0].numpy().astype(int)
    assert rgb.shape == corners.shape
    for y, x in ((8, 12), (8, 36), (24, 12), (24, 36)):
        assert abs(rgb[y, x] - corners[y, x]).max() <= 4
    assert open_gray(data)[8, 12] == pytest.approx(0.299, abs=0.02)
    assert open_mask(
        save(Image.fromarray(np.ascontiguousarray(STORED[orientation](corners))), "PNG", exif=exif)
    )[24].tolist() == ([True] * 24 + [False] * 24)


@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + b"\x00" * 40, b"garbage" * 9]
)
def test_broken_exif_says_nothing_and_the_pixels_are_read(exif):
    assert np.array_equal(
        open_rgb(png(UPRIGHT, 2, chunk(b"eXIf", exif.removeprefix(b"Exif\0\0")), bits=8))[0].numpy(), UPRIGHT
    )


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_upright(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    assert np.array_equal(open_rgb(save(Image.fromarray(UPRIGHT), "PNG", exif=exif))[0].numpy(), UPRIGHT)


DEEP = {
    "png by the specification": lambda: png(RAMP, 0),
    "png by imageio": lambda: iio.imwrite("<bytes>", RAMP, extension=".png"),
    "tiff little": lambda: tiff(RAMP, 1),
    "tiff big": lambda: tiff(RAMP, 1, order=">"),
    "tiff white is zero": lambda: tiff(65535 - RAMP, 0),
    "tiff of 32 bits": lambda: tiff(RAMP.astype(np.int32), 1, kind=2),
    "pgm": lambda: b"P5 96 2 65535\n" + RAMP.astype(">u2").tobytes(),
    "pillow I;16": lambda: Image.fromarray(RAMP),
    "pillow I;16B": lambda: Image.frombytes("I;16B", (96, 2), RAMP.astype(">u2").tobytes()),
    "pillow I": lambda: Image.fromarray(RAMP.astype(np.int32)),
}


@pytest.mark.parametrize("source", DEEP.values(), ids=DEEP)
def test_sixteen_bits_are_scaled_by_their_type(source):
    np.testing.assert_allclose(open_picture(source()).rgb[0, ..., 1].numpy(), RAMP / 65535, atol=1e-6)
    np.testing.assert_allclose(open_gray(source()).numpy(), RAMP / 65535, atol=1e-6)
    rgb, _ = open_rgb(source())
    assert np.array_equal(rgb[..., 0].numpy(), np.round(RAMP / 257)) and len(rgb.unique()) == 96


@pytest.mark.parametrize("source", [
    lambda: png(RAMP[..., None].repeat(3, -1), 2), lambda: tiff(RAMP[..., None].repeat(3, -1), 2),
    lambda: b"P6 96 2 65535\n" + RAMP[..., None].repeat(3, -1).astype(">u2").tobytes(),
], ids=["png", "tiff", "ppm"])  # fmt: skip
def test_sixteen_bit_colours_lose_their_lower_bits_and_say_so(source):
    rgb, notes = open_rgb(source())
    assert abs(rgb[..., 2].numpy().astype(int) - RAMP / 257).max() <= 1  # Pillow has no deeper colours
    assert any("16 bits per color" in note for note in notes)


def test_floats_are_taken_as_they_are_or_refused(tmp_path):
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    for order in "<>":
        np.testing.assert_array_equal(open_gray(tiff(values, 1, kind=3, order=order)).numpy(), values)
    Image.fromarray(values * 255).save(tmp_path / "bright.tif")
    with pytest.raises(
        PictureError, match=r"floats from 0 to 255. Divide them by their full scale \(in .*bright.tif\)"
    ):
        open_picture(tmp_path / "bright.tif")
    values[0, 0] = np.nan
    assert any(note.startswith("1 image values are NaN") for note in open_rgb(tiff(values, 1, kind=3))[1])


@pytest.mark.parametrize(
    "values", [RAMP.astype(np.int32) * 3, RAMP.astype(np.int32) - 1], ids=["above", "below"]
)
def test_thirty_two_bits_have_no_full_scale(tmp_path, values):
    (tmp_path / "wide.tif").write_bytes(tiff(values, 1, kind=2))
    with pytest.raises(PictureError, match=r"Expected 16-bit values \(0 to 65535\) in .*wide.tif, got"):
        open_rgb(tmp_path / "wide.tif")


COLOR = (200, 100, 50)
MODES = {
    "RGB": (Image.new("RGB", (4, 3), COLOR), COLOR, None),
    "RGBX": (Image.new("RGB", (4, 3), COLOR).convert("RGBX"), COLOR, None),
    "RGBA": (Image.new("RGBA", (4, 3), (*COLOR, 51)), COLOR, 0.2),
    "RGBa": (Image.new("RGBA", (4, 3), (*COLOR, 255)).convert("RGBa"), COLOR, 1.0),
    "P": (Image.new("RGB", (4, 3), COLOR).convert("P", palette=Image.Palette.ADAPTIVE), COLOR, None),
    "CMYK": (Image.new("CMYK", (4, 3), (55, 155, 205, 0)), COLOR, None),
    "YCbCr": (Image.new("RGB", (4, 3), COLOR).convert("YCbCr"), COLOR, None),
    "HSV": (Image.new("RGB", (4, 3), COLOR).convert("HSV"), COLOR, None),
    "LAB": (Image.new("LAB", (4, 3), (128, 128, 128)), (119, 119, 119), None),  # L 50, neutral: sRGB 119
    "L": (Image.new("L", (4, 3), 77), (77, 77, 77), None),
    "LA": (Image.new("LA", (4, 3), (77, 0)), (77, 77, 77), 0.0),
    "1": (Image.new("1", (4, 3), 1), (255, 255, 255), None),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_pillow(mode):
    image, color, alpha = MODES[mode]
    found = open_picture(image)
    assert found.rgb.shape == (1, 3, 4, 3) and found.rgb.dtype == torch.float32
    near = 3 if mode in ("YCbCr", "HSV", "LAB") else 0  # 8 bits of another space
    assert abs(found.rgb[0, 1, 2] * 255 - torch.tensor(color)).max() <= near + 1e-3
    assert (found.alpha is None) if alpha is None else found.alpha[0, 1, 2].item() == pytest.approx(alpha)
    assert (alpha is not None) == any("alpha channel" in note for note in found.notes)


def test_premultiplied_colours_are_divided_by_their_alpha():
    stored = np.array([[[100, 50, 25, 128], [60, 60, 60, 60]]], np.uint8)
    for data in (tiff(stored, 2, extra=1), Image.frombytes("RGBa", (2, 1), stored.tobytes())):
        found = open_picture(data)
        assert (found.rgb[0, 0] * 255 - torch.tensor([[199, 100, 50], [255, 255, 255]])).abs().max() <= 1
        assert found.alpha.flatten().tolist() == pytest.approx([128 / 255, 60 / 255])


def test_what_trns_declares_transparent_is_alpha():
    gray = np.array([[0, 7, 255]])
    for bits in (8, 16):
        found = open_picture(png(gray, 0, chunk(b"tRNS", struct.pack(">H", 7)), bits=bits))
        assert found.alpha.tolist() == [[[1, 0, 1]]]
    colors = np.array([[[1, 2, 3], [1, 2, 4]]])
    key = chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3))
    assert open_picture(png(colors, 2, key, bits=8)).alpha.tolist() == [[[0, 1]]]
    wide = chunk(b"tRNS", struct.pack(">HHH", 256, 512, 768))
    assert open_picture(png(colors * 256, 2, wide)).alpha.tolist() == [[[0, 1]]]
    palette = chunk(b"PLTE", bytes([9, 9, 9, 255, 0, 255])) + chunk(b"tRNS", bytes([255, 51]))
    found = open_picture(png(np.array([[0, 1]]), 3, palette, bits=8))
    assert found.alpha.flatten().tolist() == pytest.approx([1, 0.2]) and (
        found.rgb[0, 0, 1] * 255
    ).tolist() == [255, 0, 255]


def test_colours_below_transparent_pixels_are_named():
    image = Image.new("RGBA", (4, 4), (255, 0, 255, 0))
    rgb, notes = open_rgb(save(image, "PNG"))
    assert rgb[0, 0].tolist() == [255, 0, 255] and any(
        "also where it is transparent" in note for note in notes
    )


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_used_and_said(kind):
    frames = [Image.new("RGB", (8, 8), (value, value, value)) for value in (0, 120, 240)]
    data = save(frames[0], kind, save_all=True, append_images=frames[1:])
    rgb, notes = open_rgb(data)
    assert rgb.max() == 0 and "The file has 3 frames; frame 1 was used." in notes


def broken():
    whole = save(Image.fromarray(UPRIGHT.repeat(30, 0).repeat(30, 1)), "PNG")
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    yield "empty", b"", "got an empty file"
    yield "html", b"<html>not found</html>", "a file that Pillow does not know"
    yield "truncated png", whole[: len(whole) // 2], "a damaged or truncated file"
    yield "truncated jpeg", save(Image.fromarray(noise), "JPEG")[:900], "a damaged or truncated file"
    yield "no rows", png(np.zeros((0, 4)), 0), "Expected an image in"
    head = struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0)
    yield (
        "bomb",
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b""),
        "more pixels than are read at once",
    )
    yield "eps", save(Image.new("RGB", (4, 4)), "EPS"), "got an EPS file"
    yield "zeros", bytes(4096), "a file that Pillow does not know"


@pytest.mark.parametrize(("data", "words"), [pytest.param(*case[1:], id=case[0]) for case in broken()])
def test_what_cannot_be_read_is_named_in_a_sentence(tmp_path, data, words):
    path = tmp_path / "some picture.png"
    path.write_bytes(data)
    for read in (open_picture, open_rgb, open_gray, open_mask, open_labels):
        with pytest.raises(PictureError, match=r"^Expected .*some picture.png") as error:
            read(path)
        assert words in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(PictureError, match="^Expected .*bytes of b.png"):
        open_picture(data, name="bytes of b.png")


def test_paths_that_hold_no_file_are_named(tmp_path):
    for path in (tmp_path / "gone.png", tmp_path, "nul\0byte.png"):
        with pytest.raises(PictureError, match="^Expected an image in .*, got"):
            open_picture(path)
    with pytest.raises(PictureError, match="^Expected an image in the given data, got"):
        closed = Image.open(io.BytesIO(save(Image.fromarray(UPRIGHT), "PNG")))
        closed.close()
        open_picture(closed)


def test_the_limit_of_pixels_is_not_lifted_from_outside(monkeypatch):
    head = struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(PictureError, match="Expected at most 178956970 pixels in .*, got 20000 x 20000"):
        open_picture(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b""))


@pytest.mark.parametrize("byte", range(8, 200, 7))
def test_a_picture_with_one_wrong_byte_is_read_or_refused(byte):
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"):
        data = bytearray(save(Image.fromarray(UPRIGHT), kind))
        data[byte % len(data)] ^= 0x55
        try:
            assert open_picture(bytes(data)).rgb.ndim == 4
        except PictureError as error:
            assert str(error).startswith("Expected ")


MASKS = {
    "1": Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1"),
    "L, faint": Image.fromarray(np.array([[0, 1], [255, 0]], np.uint8)),
    "I;16, faint": Image.fromarray(np.array([[0, 1], [65535, 0]], np.uint16)),
    "I, wide": Image.fromarray(np.array([[0, 70000], [1, 0]], np.int32)),
    "F": Image.fromarray(np.array([[0, 0.5], [255, np.nan]], np.float32)),
    "RGB, blue alone": Image.fromarray(np.array([[[0, 0, 0], [0, 0, 1]], [[1, 0, 0], [0, 0, 0]]], np.uint8)),
    "RGBA, opaque": Image.fromarray(
        np.array([[[0, 0, 0, 255], [9, 9, 9, 255]], [[9, 0, 0, 255], [0, 0, 0, 255]]], np.uint8)
    ),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masks_of_every_type(mask):
    assert open_mask(mask).tolist() == [[False, True], [True, False]]


def test_a_palette_mask_counts_by_its_colours():
    image = Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8), "P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 0, 0])
    assert open_mask(image).tolist() == [[False, True], [False, False]]


def test_transparent_pixels_of_masks_and_lines_are_refused():
    image = Image.new("RGBA", (2, 2), (255, 255, 255, 0))
    for read in (open_mask, open_gray):
        with pytest.raises(
            PictureError, match=r"Expected an opaque gray image in a\.png, got one with transparent pixels"
        ):
            read(image, name="a.png")


def test_label_pictures_are_numbers():
    numbers = np.array([[0, 300], [255, 7]], np.uint16)
    labels, bits = open_labels(Image.fromarray(numbers))
    assert labels.tolist() == numbers.tolist() and bits == 16
    palette = Image.fromarray(np.array([[3, 1]], np.uint8), "P")
    palette.putpalette([0, 0, 0, 9, 9, 9, 8, 8, 8, 7, 7, 7])
    assert open_labels(palette)[0].tolist() == [[3, 1]]
    for wrong in (
        Image.new("RGB", (2, 2)),
        Image.fromarray(np.full((2, 2), 0.5, np.float32)),
        Image.new("I", (2, 2), -1),
    ):
        with pytest.raises(PictureError, match="Expected one gray channel of whole numbers in x.png, got"):
            open_labels(wrong, name="x.png")
