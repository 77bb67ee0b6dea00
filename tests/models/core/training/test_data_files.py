"""What manifests and loose files of a training folder state: read by value, or refused by line."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

from spatialweave.models.core.training.data import FolderDataset

H, W = 6, 9
MILLIMETRES = (np.arange(H * W, dtype=np.uint16) * 100 + 1000).reshape(H, W)
METRES = MILLIMETRES / 1000
LINE = {"image": "a.png", "depth": "d.png", "depth_scale": 0.001}


@pytest.fixture
def folder(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)).save(
        tmp_path / "a.png"
    )
    Image.fromarray(MILLIMETRES).save(tmp_path / "d.png")
    return tmp_path


def write(folder, *lines, encoding="utf-8"):
    text = "".join(json.dumps(line, ensure_ascii=encoding == "utf-8") + "\n" for line in lines)
    (folder / "manifest.jsonl").write_text(text, encoding=encoding)
    return FolderDataset(folder)


def test_a_manifest_as_any_editor_saves_it(folder):
    (folder / "manifest.jsonl").write_bytes(
        b"\xef\xbb\xbf"
        + "\r\n".join(
            ["", json.dumps({**LINE, "caption": "a\u2028b\x85c"}, ensure_ascii=False), "  ", ""]
        ).encode()
    )
    dataset = FolderDataset(folder)
    assert len(dataset) == 1 and dataset[0]["caption"] == "a\u2028b\x85c"
    assert dataset.where(0).startswith("Sample 0 (line 2 of ")


def test_a_manifest_in_another_encoding_is_named_with_its_line(folder):
    with pytest.raises(ValueError, match=r"Expected UTF-8 text in .*manifest.jsonl, got byte 0xe9 in line 2"):
        write(folder, LINE, {**LINE, "caption": "é"}, encoding="cp1252")


@pytest.mark.parametrize("caption", [{}, {"caption": None}, {"caption": ""}])
def test_no_caption_is_the_empty_text(folder, caption):
    dataset = write(folder, {**LINE, **caption})
    assert dataset[0]["caption"] == "" and dataset.entry(0)["caption"] == ""


WRONG = {
    "caption list": ({"caption": ["a", "b"]}, 'Expected text as "caption" in line 2 of '),
    "caption number": ({"caption": 5}, "got 5"),
    "caption half a character": ({"caption": json.loads('"\\ud83d"')}, "half of a surrogate pair"),
    "captions text": ({"captions": "a"}, 'Expected a list of texts as "captions" in line 2 of '),
    "captions of numbers": ({"captions": ["a", 5]}, 'Expected text as "caption" in line 2 of '),
    "scale text": ({"depth_scale": "0.001"}, 'Expected a number above 0 as "depth_scale" in line 2 of '),
    "scale 0": ({"depth_scale": 0}, "got 0"),
    "scale negative": ({"depth_scale": -1}, "got -1"),
    "scale true": ({"depth_scale": True}, "got True"),
    "scale nan": ({"depth_scale": float("nan")}, "got nan"),
    "scale infinite": ({"depth_scale": float("inf")}, "got inf"),
    "scale beyond floats": ({"depth_scale": 10**400}, "Expected a number above 0"),
    "scale list": ({"depth_scale": [0.001]}, "got [0.001]"),
    "image number": ({"image": 3}, 'Expected the name of a file as "image" in line 2 of '),
    "image empty": ({"image": ""}, "got ''"),
    "image list": ({"image": ["a.png"]}, "got ['a.png']"),
    "depth true": ({"depth": True}, 'as "depth" in line 2 of '),
    "mask number": ({"mask": 0}, 'as "mask" in line 2 of '),
    "absolute": ({"image": "/etc/hostname"}, "relative to the folder and inside it, got '/etc/hostname'"),
    "absolute on Windows": ({"image": "C:\\a.png"}, "relative to the folder"),
    "above": ({"depth": "../d.png"}, 'Expected "depth" in line 2 of '),
    "above on Windows": ({"depth": "x\\..\\..\\d.png"}, "relative to the folder"),
    "null byte": ({"image": "a\0.png"}, 'Expected the name of a file as "image"'),
    "shard number": ({"shard": 1, "row": 0}, 'Expected the name of a file as "shard" in line 2 of '),
    "row missing": ({"shard": "s.safetensors"}, 'Expected a "row" of 0 or more in line 2 of '),
    "row negative": ({"shard": "s.safetensors", "row": -1}, "got -1"),
    "row float": ({"shard": "s.safetensors", "row": 1.0}, "got 1.0"),
    "row true": ({"shard": "s.safetensors", "row": True}, "got True"),
    "row text": ({"shard": "s.safetensors", "row": "0"}, "got '0'"),
}


@pytest.mark.parametrize(("change", "words"), WRONG.values(), ids=WRONG)
def test_wrong_statements_are_refused_by_line_at_the_start(folder, change, words):
    with pytest.raises(ValueError, match="line 2 of .*manifest.jsonl") as error:
        write(folder, LINE, {**LINE, **change})
    assert words in str(error.value)


@pytest.mark.parametrize("text", ["[1]", '"a"', "5", "null", "{}", '{"depth_scale": 1}'])
def test_a_line_that_is_no_sample_is_named(folder, text):
    (folder / "manifest.jsonl").write_text(json.dumps(LINE) + "\n" + text + "\n")
    with pytest.raises(ValueError, match="in line 2 of .*manifest.jsonl"):
        FolderDataset(folder)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8", "<f2", "<u2", ">u2", "<i4", "<u4", ">i8"])
@pytest.mark.parametrize("shape", [(H, W), (H, W, 1), (1, H, W), (1, 1, H, W)])
def test_depth_arrays_of_any_number_type_and_layout(folder, dtype, shape):
    np.save(folder / "d.npy", MILLIMETRES.reshape(shape).astype(dtype))
    depth = write(folder, {**LINE, "depth": "d.npy"})[0][
        "depth"
    ]  # the line's scale counts for arrays as for pictures
    np.testing.assert_allclose(depth.numpy(), METRES, rtol=1e-3 if dtype == "<f2" else 1e-6)


def test_an_array_without_a_scale_is_in_metres(folder):
    with (folder / "D.NPY").open("wb") as file:
        np.save(file, METRES)
    np.testing.assert_allclose(write(folder, {"depth": "D.NPY"})[0]["depth"].numpy(), METRES, rtol=1e-6)


ARRAYS = {
    "text": (np.full((H, W), "3.5"), "got text"),
    "complex": (METRES + 1j, "got complex numbers"),
    "objects": (np.full((H, W), None), "of plain numbers in"),
    "truth values": (METRES > 2, "got truth values"),
    "several maps": (np.ones((2, H, W)), "Expected one depth map in"),
    "one row": (np.ones(W), "Expected (h, w)"),
    "colours": (np.ones((1, H, W, 3)), "Expected one channel in"),
    "empty": (np.ones((0, W)), "Expected one depth map in"),
}


@pytest.mark.parametrize(("array", "words"), ARRAYS.values(), ids=ARRAYS)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_that_are_no_depth_are_named(folder, array, words, suffix):
    np.save(folder / "d.npy", array) if suffix == ".npy" else np.savez(folder / "d.npz", depth=array)
    dataset = write(folder, {"depth": f"d{suffix}"})
    with pytest.raises(ValueError, match=rf"^Sample 0 \(line 1 of .*d\{suffix}") as error:
        dataset[0]
    assert words in str(error.value)


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY", b"PK\x03\x04", b"no array", bytes(300)])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_broken_array_files_are_named(folder, data, suffix):
    (folder / f"d{suffix}").write_bytes(data)
    dataset = write(folder, {"depth": f"d{suffix}"})
    with pytest.raises(ValueError, match=rf"^Sample 0 \(line 1 of .*d\{suffix}, got"):
        dataset[0]


def test_what_an_npz_states_counts(folder):
    mask = np.ones((H, W), bool)
    mask[2, 3] = False
    np.savez(
        folder / "d.npz",
        depth=MILLIMETRES,
        mask=mask,
        depth_scale=0.001,
        direction="larger = farther",
        units="metric",
    )
    sample = write(folder, {"depth": "d.npz"})[0]
    assert (~sample["mask"]).nonzero().tolist() == [[2, 3]] and sample["depth"][2, 3] == 0
    np.testing.assert_allclose(sample["depth"].numpy()[mask], METRES[mask], rtol=1e-6)
    same = write(folder, {"depth": "d.npz", "depth_scale": 0.001})[0]["depth"]
    assert torch.equal(same, sample["depth"])
    dataset = write(folder, {"depth": "d.npz", "depth_scale": 0.01})
    with pytest.raises(
        ValueError,
        match="Expected one scale for .*d.npz, got depth_scale 0.01 in the line, .* file depth_scale 0.001",
    ):
        dataset[0]


@pytest.mark.parametrize(("arrays", "words"), [
    ({"depth": METRES, "direction": "larger = nearer"}, "Expected the direction 'larger = farther' in"),
    ({"depth": METRES, "mask": np.ones((W, H), bool)}, "Expected a mask of (6, 9)"),
    ({"depth": METRES, "depth_scale": "millimetres"}, "Expected a finite number above 0 as 'depth_scale' in"),
    ({"depth": METRES, "depth_scale": 0.0}, "Expected a finite number above 0 as 'depth_scale' in"),
    ({"depth": METRES, "depth_scale": np.ones(2)}, "Expected a finite number above 0 as 'depth_scale' in"),
    ({"depth": METRES, "units": "millimetres"}, "units"),
    ({"a": METRES, "b": METRES}, "Expected an array 'depth' in"),
])  # fmt: skip
def test_an_npz_that_states_something_else_is_refused(folder, arrays, words):
    np.savez(folder / "d.npz", **arrays)
    dataset = write(folder, {"depth": "d.npz"})
    with pytest.raises(ValueError, match=r"^Sample 0 \(line 1 of .*d\.npz") as error:
        dataset[0]
    assert words in str(error.value)


def test_scale_and_offset_in_a_pngs_text_count(folder):
    text = PngImagePlugin.PngInfo()
    text.add_text("depth_scale", "0.001")
    text.add_text("depth_offset", "2.5")
    values = MILLIMETRES.copy()
    values[0, 0] = 0
    Image.fromarray(values).save(folder / "t.png", pnginfo=text)
    sample = write(folder, {"depth": "t.png"})[0]
    assert not sample["mask"][0, 0] and sample["mask"].sum() == H * W - 1
    np.testing.assert_allclose(sample["depth"].numpy()[1:], METRES[1:] + 2.5, rtol=1e-6)
    dataset = write(folder, {"depth": "t.png", "depth_scale": 0.001})
    with pytest.raises(ValueError, match="with depth_offset 2.5. Take one of them out"):
        dataset[0]


def test_the_json_beside_a_png_counts(folder):
    (folder / "d.json").write_text(
        json.dumps({"depth_scale": 0.001, "depth_offset": 0.0, "depth_units": "metric"})
    )
    line = {"depth": "d.png"}
    np.testing.assert_allclose(write(folder, line)[0]["depth"].numpy(), METRES, rtol=1e-6)
    assert write(folder, {**line, "depth_scale": 0.001})[0]["mask"].all()
    dataset = write(folder, {**line, "depth_scale": 0.002})
    with pytest.raises(ValueError, match="Expected one scale for .*d.png, got depth_scale 0.002 in the line"):
        dataset[0]
    (folder / "d.json").write_text(json.dumps({"depth_scale": None}))
    with pytest.raises(ValueError, match=r"Sample 0 .*'depth_scale' in .*d.json, got None"):
        dataset[0]
    (folder / "d.json").write_text(json.dumps(["something", "else"]))
    assert dataset[0]["mask"].all()


@pytest.mark.parametrize(("image", "words"), [
    (Image.new("L", (W, H), 9), "has 8 bits (mode L)"), (Image.new("1", (W, H), 1), "has 8 bits (mode 1)"),
    (Image.new("P", (W, H), 9), "is a color image"), (Image.new("RGB", (W, H)), "is a color image"),
])  # fmt: skip
def test_a_depth_picture_of_eight_bits_or_colours_is_refused(folder, image, words):
    image.save(folder / "x.png")
    dataset = write(folder, {"depth": "x.png", "depth_scale": 0.1})
    with pytest.raises(
        ValueError, match=r"^Sample 0 .*Expected depth as one gray channel of 16 bits, got .*x.png"
    ) as error:
        dataset[0]
    assert words in str(error.value)


def test_a_turned_image_belongs_to_its_upright_depth(tmp_path):
    upright = np.zeros((60, 40, 3), np.uint8)
    upright[:30] = (200, 30, 30)
    exif = Image.Exif()
    exif[274] = 6  # stored a quarter turn to the left of upright
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / "a.jpg", exif=exif, quality=95, subsampling=0)
    Image.fromarray(np.full((60, 40), 1000, np.uint16)).save(tmp_path / "d.png")
    (tmp_path / "manifest.jsonl").write_text(json.dumps({**LINE, "image": "a.jpg"}))
    sample = FolderDataset(tmp_path)[0]
    assert sample["image"].shape == (60, 40, 3) and sample["depth"].shape == (60, 40)
    assert abs(sample["image"].int() - torch.from_numpy(upright).int())[torch.arange(60) % 30 < 22].max() <= 4
    for size in (32, (32, 32)):
        small = FolderDataset(tmp_path, size=size)[0]["image"].int()
        assert small.shape == (32, 32, 3) and (small[:14, :, 0] > 190).all() and (small[18:] < 10).all()


def test_sixteen_bit_and_float_images_are_scaled_by_their_type(tmp_path):
    ramp = np.linspace(0, 65535, 60).round().astype(np.uint16)[None].repeat(4, 0)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    Image.fromarray((ramp / 65535).astype(np.float32)).save(tmp_path / "b.tif")
    dataset = write(tmp_path, {"image": "a.png"}, {"image": "b.tif"})
    for index in range(2):
        assert np.array_equal(dataset[index]["image"][..., 1].numpy(), np.round(ramp / 257))


def test_alpha_is_named_once(tmp_path, caplog):
    Image.new("RGBA", (W, H), (255, 0, 255, 0)).save(tmp_path / "a.png")
    dataset = write(tmp_path, {"image": "a.png"}, {"image": "a.png"})
    with caplog.at_level(logging.WARNING):
        assert dataset[0]["image"].float().mean() == 170 and dataset[1]
    assert [("a.png" in text, "alpha channel" in text) for text in caplog.messages] == [(True, True)]


def sizes(folder, image, depth, mask=None):
    Image.new("RGB", image[::-1]).save(folder / "a.png")
    Image.fromarray(np.full(depth, 1000, np.uint16)).save(folder / "d.png")
    if mask:
        Image.new("L", mask[::-1], 255).save(folder / "m.png")
    (folder / "manifest.jsonl").write_text(json.dumps({**LINE, **({"mask": "m.png"} if mask else {})}))


@pytest.mark.parametrize(("image", "depth", "mask"), [
    ((40, 60), (40, 60), (40, 60)), ((40, 60), (20, 30), (20, 30)), ((41, 61), (20, 30), None),
    ((480, 641), (240, 320), None),
    ((20, 30), (40, 60), None), ((1080, 1920), (192, 342), None),
])  # fmt: skip
def test_image_and_depth_of_one_shape_go_together(tmp_path, image, depth, mask):
    sizes(tmp_path, image, depth, mask)
    assert FolderDataset(tmp_path, size=32)[0]["depth"].shape == (32, 32)


@pytest.mark.parametrize(("image", "depth", "mask"), [
    ((40, 60), (40, 40), None), ((40, 60), (60, 40), None), ((40, 60), (20, 32), None),
    ((40, 60), (40, 60), (60, 40)),
    ((40, 60), (40, 60), (20, 30)), ((480, 640), (480, 720), None), ((100, 101), (101, 100), None),
])  # fmt: skip
@pytest.mark.parametrize("size", [None, 32])
def test_maps_of_other_shapes_are_refused_before_anything_is_cropped(tmp_path, image, depth, mask, size):
    sizes(tmp_path, image, depth, mask)
    with pytest.raises(
        ValueError, match=r"^Sample 0 \(line 1 of .*jsonl\): Expected .*, got .* x .*(Crop|Save it at)"
    ):
        FolderDataset(tmp_path, size=size)[0]


@pytest.mark.parametrize(
    "size", [0, -1, 32.0, "32", [32], [32, 32, 32], [32, 0], [32, True], True, [], {"height": 32}]
)
def test_a_size_is_one_number_or_two(folder, size):
    write(folder, LINE)
    with pytest.raises(
        ValueError,
        match=r"Expected a size of one whole number from 1 to 16384, or \[height, width\] of such, got",
    ):
        FolderDataset(folder, size=size)


def test_loose_label_pictures_are_read_as_shards_have_them(folder):
    numbers = np.arange(H * W, dtype=np.uint8).reshape(H, W)
    numbers[0, 0] = 255
    Image.fromarray(numbers).save(folder / "s.png")
    Image.fromarray(numbers.astype(np.uint16)).save(folder / "wide.png")
    dataset = write(
        folder,
        {**LINE, "segmentation": "s.png"},
        {**LINE, "segmentation": "wide.png"},
        {**LINE, "segmentation": "a.png"},
    )
    found = dataset[0]["segmentation"]
    assert found[0, 0] == -1 and found.flatten()[1:].tolist() == numbers.flatten()[1:].tolist()
    assert dataset[1]["segmentation"][0, 0] == 255
    with pytest.raises(
        ValueError, match="Sample 2 .*Expected one gray channel of whole numbers in .*a.png, got colors"
    ):
        dataset[2]
    assert "segmentation" not in FolderDataset(folder, keys=("image",))[0]
    scaled = FolderDataset(folder, size=(3, 4))[0]["segmentation"]
    assert scaled.shape == (3, 4) and set(scaled.flatten().tolist()) <= set(found.flatten().tolist())


def test_what_a_sample_needs_is_asked_of_each(folder):
    write(folder, {**LINE, "objects": ["red ball"]}, LINE)
    dataset = FolderDataset(folder, needs=("image", "objects"))
    assert "depth" in dataset[0]
    with pytest.raises(
        ValueError, match=r"^Sample 1 \(line 2 of .*Expected image, objects, got none of objects"
    ):
        dataset[1]


ROW = {"image": torch.zeros(2, H, W, 3, dtype=torch.uint8), "depth": torch.ones(2, H, W)}
SHARDS = {
    "float image": (
        {"image": torch.zeros(2, H, W, 3)},
        "Expected image as uint8 (height, width, 3) in s.safetensors, got float32",
    ),
    "channels first": ({"image": torch.zeros(2, 3, H, W, dtype=torch.uint8)}, "got uint8 (3, 6, 9)"),
    "gray image": ({"image": torch.zeros(2, H, W, dtype=torch.uint8)}, "got uint8 (6, 9)"),
    "whole depth": (
        {"depth": torch.ones(2, H, W, dtype=torch.int32)},
        "Expected depth as float16 or float32",
    ),
    "depth with a channel": ({"depth": torch.ones(2, H, W, 1)}, "got float32 (6, 9, 1)"),
    "float mask": ({"mask": torch.ones(2, H, W)}, "Expected mask as bool or uint8"),
    "unsigned normals": ({"normals": torch.zeros(2, H, W, 3, dtype=torch.uint8)}, "Expected normals as int8"),
    "float segmentation": ({"segmentation": torch.zeros(2, H, W)}, "Expected segmentation as"),
    "another shape": ({"depth": torch.ones(2, W, H)}, "Expected image and depth of one shape"),
    "too few rows": (
        {"depth": torch.ones(1, H, W)},
        "Expected a row below 1 of depth in s.safetensors, got 1",
    ),
    "no rows": ({"depth": torch.tensor(1.0)}, "Expected a row below 0 of depth"),
}


@pytest.mark.parametrize(("change", "words"), SHARDS.values(), ids=SHARDS)
def test_rows_of_shards_have_the_formats_types_and_shapes(tmp_path, change, words):
    save_file({**ROW, **change}, tmp_path / "s.safetensors")
    dataset = write(tmp_path, {"shard": "s.safetensors", "row": 1})
    with pytest.raises(
        ValueError, match=r"^Sample 0 \(line 1 of .*manifest.jsonl, row \d+ of s.safetensors\): "
    ) as error:
        dataset[0]
    assert words in str(error.value)


def test_a_row_beyond_the_shard_and_a_broken_shard_are_named(tmp_path):
    save_file(ROW, tmp_path / "s.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}garbage")
    dataset = write(tmp_path, {"shard": "s.safetensors", "row": 2}, {"shard": "b.safetensors", "row": 0})
    for index, words in (
        (0, "Expected a row below 2 of depth|Expected a row below 2 of image"),
        (1, "header cannot be read"),
    ):
        with pytest.raises(ValueError, match=rf"^Sample {index} \(line {index + 1} of .*({words})"):
            dataset[index]
