"""Edits in two published layouts, read back by webdataset, tarfile and Pillow:
prompts, boxes, masks, resuming.
"""

import io
import json
import re
import tarfile

import numpy as np
import pytest
from PIL import Image, ImageDraw

from spatialweave.models.cli.console import main
from spatialweave.models.joyai_edit.data.edits import open_edit_folder, read_edit
from spatialweave.models.joyai_edit.data.export import LayoutRequest, export_edits
from spatialweave.models.world.export.dataset import export_dataset

COUNT = 40


@pytest.fixture(scope="module", params=["shards", "files"])
def world(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / request.param
    export_dataset(folder, count=COUNT, size=64, kind="edits", layout=request.param, seed=5, samples=1)
    return folder


def read_lines(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


@pytest.fixture
def own(tmp_path):
    """A user's folder: a move with a box, a rotation with a view, a removal, an edit in free words."""
    folder = tmp_path / "own"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (120, 80), (10 * number, 100, 200)).save(folder / f"{number}_a.png")
        Image.new("RGB", (120, 80), (10 * number, 200, 100)).save(folder / f"{number}_b.png")
        mask = Image.new("L", (120, 80))
        ImageDraw.Draw(mask).rectangle((30, 20, 59, 39), fill=255)
        mask.save(folder / f"{number}_mask.png")
    more = [
        {
            "kind": "move", "object_name": "the red mug", "box": [60, 20, 30, 40],
            "object_mask": "0_mask.png", "target_object_mask": "0_mask.png",
        },
        {
            "kind": "rotate", "object_name": "the car", "view": "rear left", "parameters": {"degrees": 90},
            "object_mask": "1_mask.png",
        },
        {
            "kind": "remove", "object_name": "cup", "object_mask": "2_mask.png",
            "target_object_mask": "2_mask.png"
        },
        {"prompt": "Make it  night.", "kind": "edit"},
    ]  # fmt: skip
    lines = [
        {"image": f"{n}_a.png", "target_image": f"{n}_b.png", "instruction": f"do {n}"} | extra
        for n, extra in enumerate(more)
    ]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_the_worlds_edits_become_spatialedit_shards_that_webdataset_reads(world, tmp_path):
    webdataset = pytest.importorskip(
        "webdataset", reason="the test extra is not installed, so shards were NOT read by webdataset"
    )
    summary = export_edits(world, tmp_path / "out", LayoutRequest("spatialedit", shard_size=4, quality=100))
    edits, seen = {line["index"]: line for line in read_lines(world)}, {}
    for path in sorted((tmp_path / "out").glob("*/worker0-*.tar")):
        for sample in webdataset.WebDataset(str(path), shardshuffle=False).decode("rgb8"):
            assert set(sample) >= {"__key__", "json", "0.jpg", "1.jpg"}
            seen[int(sample["__key__"])] = (path, sample)
    lines = read_lines(tmp_path / "out")
    kinds = {edit["kind"] for edit in edits.values()}
    assert kinds == {"move", "rotate", "camera"} and len(seen) == summary.stored > 15 and len(lines) == COUNT
    dataset = open_edit_folder(world)
    for index, (path, sample) in seen.items():
        edit, record = edits[index], sample["json"]
        assert record["metadata"] == {
            "instruction": sample["json"]["metadata"]["instruction"],
            "instruction_human": edit["instruction"], "id": sample["__key__"],
        }  # fmt: skip
        assert (
            path.parent.name
            == record["data_type"]
            == {"move": "object_moving", "camera": "camera"}[edit["kind"]]
        )
        assert re.fullmatch(r"worker0-\d{6}\.tar", path.name)
        assert record["conversations"][0]["value"].endswith(record["metadata"]["instruction"])
        raw = dataset[index]["image"].numpy()
        check_source(edit, record["metadata"]["instruction"], sample["0.jpg"], raw, read_edit(dataset, index))
        target = read_edit(dataset, index).target.numpy()
        assert np.abs(sample["1.jpg"].astype(int) - target).mean() < 2
    left_out = [line["left_out"] for line in lines if "left_out" in line]
    assert (
        len(left_out) == COUNT - len(seen)
        and all("rotation without a view" in why or "lens" in why for why in left_out)
    )


def check_source(edit, prompt, shown, raw, sample):
    """The prompt is JoyAI's, and a move's source has its red box around where the object goes,
    and no other pixel changed.
    """
    if edit["kind"] == "camera":
        parameters = edit["parameters"]
        assert (
            f"Yaw {parameters.get('yaw_degrees', 0):.1f}°, Pitch {parameters.get('pitch_degrees', 0):.1f}°."
            in prompt
        )
        zoom = {0: "unchanged", 1: "in", -1: "out"}[int(np.sign(parameters.get("metres", 0)))]
        assert (
            prompt.startswith("Move the camera.\n")
            and f"zoom: {zoom}." in prompt
            and np.abs(shown.astype(int) - raw).mean() < 2
        )
        return
    name = edit["objects"][edit["object"]].replace("box", "block")
    assert prompt == f"Move the {name} into the red box and finally remove the red box."
    rows, columns = np.nonzero(sample.masks[1].numpy())
    expected = Image.fromarray(raw)
    top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
    ImageDraw.Draw(expected).rectangle((left, top, right, bottom), outline=(255, 0, 0), width=2)
    assert np.abs(shown.astype(int) - np.asarray(expected)).mean() < 4  # JPEG around a line


def test_tarfile_reads_the_shards_and_equal_runs_write_equal_bytes(world, tmp_path):
    request = LayoutRequest("spatialedit", shard_size=100)
    for name in ("one", "two"):
        export_edits(world, tmp_path / name, request)
    for path in (tmp_path / "one").glob("*/*.tar"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()
        with tarfile.open(path) as archive:
            names = archive.getnames()
            picture = Image.open(io.BytesIO(archive.extractfile(names[1]).read()))
        assert picture.size == (64, 64) and len(names) % 3 == 0
        assert [name.partition(".")[2] for name in names[:3]] == ["json", "0.jpg", "1.jpg"]


def test_the_worlds_edits_become_object3dit_folders(world, tmp_path):
    export_edits(world, tmp_path / "out", LayoutRequest("object3dit", split="val", unseen=True, size=32))
    edits = {line["index"]: line for line in read_lines(world)}
    words = json.loads((tmp_path / "out/objaverse_cat_descriptions_64k.json").read_text())
    folders = sorted((tmp_path / "out").glob("*/val/unseen/*"))
    assert {folder.parts[-4] for folder in folders} == {"translate", "rotate"}
    assert len(folders) == sum(edit["kind"] != "camera" for edit in edits.values())
    dataset = open_edit_folder(world)
    for folder in folders:
        edit, data = edits[int(folder.name)], json.loads((folder / "metadata.json").read_text())
        assert sorted(path.name for path in folder.iterdir()) == [
            "1.png", "1_mask.png", "2.png", "2_mask.png", "metadata.json"
        ]
        (one,) = data["object_data"]
        name = edit["objects"][edit["object"]]
        assert words[one["uid"]] == {"description": name} and one["category"] == name.split()[-1]
        mask = np.asarray(Image.open(folder / "2_mask.png"))
        on = (mask == (55, 126, 184, 255)).all(-1)
        assert mask.shape == (32, 32, 4) and ((mask == (228, 26, 28, 255)).all(-1) == ~on).all()
        assert np.asarray(Image.open(folder / "1.png")).shape == (32, 32, 3)
        if edit["kind"] == "rotate":
            assert (
                data["rotation_category"] == one["category"]
                and data["rotation_angle"] == edit["parameters"]["degrees"]
            )
        else:
            rows, columns = np.nonzero(read_edit(dataset, int(folder.name)).masks[1].numpy())
            x, y = (columns.min() + columns.max() + 1) / 128, (rows.min() + rows.max() + 1) / 128
            assert data["translation_category"] == one["category"]
            assert data["end_location_2d"] == pytest.approx([x, y], abs=1.1 / 32)


def test_a_users_folder(own, tmp_path):
    assert main(["joyai", "export", str(own), str(tmp_path / "out"), "--quality", "100"]) == 0
    prompts = {line["index"]: line["prompt"] for line in read_lines(tmp_path / "out")}
    assert prompts == {
        0: "Move the red mug into the red box and finally remove the red box.",
        1: "Rotate the car to show the rear left side view.",
        2: "do 2", 3: "Make it  night.",
    }  # fmt: skip
    with tarfile.open(tmp_path / "out/object_moving/worker0-000000.tar") as archive:
        picture = np.asarray(
            Image.open(io.BytesIO(archive.extractfile("00000000.0.jpg").read())).convert("RGB")
        ).astype(int)
    assert (
        picture[21, 75, 0] > 200
        and picture[40, 61, 0] > 200
        and picture[40, 75, 0] < 60
        and picture[21, 50, 0] < 60
    )
    assert {path.parent.name for path in (tmp_path / "out").glob("*/*.tar")} == {
        "object_moving",
        "object_rotation",
        "edit",
    }


def test_a_box_follows_the_image_when_it_is_scaled_and_cropped(own):
    # from 120 x 80: half as large, ten columns off each side
    sample = read_edit(open_edit_folder(own), 0, (40, 40))
    assert sample.box == (20, 10, 35, 30) and tuple(sample.with_box().shape) == (40, 40, 3)


def test_a_users_folder_as_object3dit_says_what_is_left_out(own, tmp_path, capsys):
    assert main(["joyai", "export", str(own), str(tmp_path / "out"), "--layout", "object3dit"]) == 0
    said = capsys.readouterr().out
    assert "2 edits." in said and "1 (an object without masks)" in said and "1 (a kind that is edit" in said
    assert (
        (tmp_path / "out/remove/train/00000002/1_mask.png").is_file()
        and (tmp_path / "out/translate/train/00000000").is_dir()
    )


def test_a_stopped_run_goes_on_and_a_finished_one_rests(world, tmp_path, monkeypatch):
    import spatialweave.models.joyai_edit.data.export as exporting

    request, write, seen = LayoutRequest("spatialedit", shard_size=4), exporting.write_group, []

    def stopping(*args):
        seen.append(args[2])
        if len(seen) == 8:
            raise KeyboardInterrupt
        return write(*args)

    monkeypatch.setattr(exporting, "write_group", stopping)
    with pytest.raises(KeyboardInterrupt):
        export_edits(world, tmp_path / "out", request)
    summary = export_edits(world, tmp_path / "out", request)
    assert len(seen) == len(set(seen)) + 1 and 0 < summary.written < summary.stored, (
        "only the interrupted group was begun twice"
    )
    assert "from an earlier run" in str(summary)
    monkeypatch.setattr(exporting, "write_group", write)
    export_edits(world, tmp_path / "whole", request)
    for path in (tmp_path / "whole").glob("*/*.tar"):
        assert path.read_bytes() == (tmp_path / "out" / path.relative_to(tmp_path / "whole")).read_bytes()
    assert read_lines(tmp_path / "out") == read_lines(tmp_path / "whole")
    assert export_edits(world, tmp_path / "out", request).written == 0
    with pytest.raises(ValueError, match="got quality 95, not 50"):
        export_edits(world, tmp_path / "out", LayoutRequest("spatialedit", shard_size=4, quality=50))


@pytest.mark.parametrize("change, words", [
    ({"instruction": " "}, "Expected an instruction, got none"),
    ({"kind": "paint"}, "Expected a kind of move, .*, got 'paint'"),
    ({"target_image": "../b.png"}, "target_image"),
    ({"target_image": 3}, "target_image"),
])  # fmt: skip
def test_a_line_that_is_no_edit_is_refused_by_number(own, tmp_path, change, words):
    lines = read_lines(own)
    lines[2] |= change
    (own / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match=words) as error:
        export_edits(own, tmp_path / "out", LayoutRequest("spatialedit"))
    assert "line 3 of" in str(error.value) or "manifest.jsonl" in str(error.value)


@pytest.mark.parametrize("change, words", [
    ({"box": [1, 2, 3]}, r"Expected a box \[x, y, width, height\]"),
    ({"box": [1, 2, float("inf"), 3]}, "Expected a box"),
    ({"target_image": "nowhere.png"}, "nowhere.png"),
    ({"target_object_mask": "small.png"}, "of one size"),
])  # fmt: skip
def test_a_sample_that_cannot_be_read_is_named_and_left_out(own, tmp_path, change, words, caplog):
    Image.new("L", (10, 10), 255).save(own / "small.png")
    lines = read_lines(own)
    lines[0] |= change
    (own / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = export_edits(own, tmp_path / "out", LayoutRequest("spatialedit"))
    assert summary.left_out == {"a sample that cannot be read": 1} and summary.stored == 3
    assert re.search(words, caplog.text) and "line 1 of" in caplog.text


def test_settings_that_contradict_are_refused(own, tmp_path):
    with pytest.raises(ValueError, match="Expected unseen with OBject-3DIT's val or test"):
        LayoutRequest("object3dit", unseen=True)
    with pytest.raises(ValueError, match="Expected a layout of spatialedit, object3dit"):
        LayoutRequest("coco")
    with pytest.raises(ValueError, match="Expected another folder"):
        export_edits(own, own, LayoutRequest("spatialedit"))
