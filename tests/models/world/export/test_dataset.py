"""Dataset folders: what they hold equals what is rendered, they resume, and they refuse what does not fit."""

import json
import os
import random

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from spatialweave.models.core.export.files import ExportError
from spatialweave.models.core.training.data import FolderDataset
from spatialweave.models.world.captions import caption
from spatialweave.models.world.edits import edit_from_json, sample_edits
from spatialweave.models.world.export.dataset import export_dataset
from spatialweave.models.world.moves import sample_moves
from spatialweave.models.world.render import render
from spatialweave.models.world.scene import sample_scenes, scene_from_json

SMALL = {"size": (16, 24), "shard_size": 4, "samples": 1}


def manifest(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_shards_hold_what_is_rendered(tmp_path):
    export_dataset(tmp_path, 6, seed=3, split="test", normals=True, depth_type="float32", **SMALL)
    lines, scenes = manifest(tmp_path), sample_scenes(3, 6, split="test")
    frames = render(scenes, 16, 24, samples=1)
    shards = {
        name: load_file(tmp_path / name) for name in ("shard-00000.safetensors", "shard-00001.safetensors")
    }
    assert [(line["index"], line["shard"], line["row"]) for line in lines] == [
        (i, f"shard-0000{i // 4}.safetensors", i % 4) for i in range(6)
    ]
    for i, line in enumerate(lines):
        row = {key: value[line["row"]] for key, value in shards[line["shard"]].items()}
        assert (row["image"].float() / 255 - frames.image[i]).abs().max() <= 0.5 / 255 + 1e-6
        assert torch.equal(row["depth"], frames.depth[i]) and torch.equal(
            row["segmentation"].long(), frames.segmentation[i]
        )
        assert (
            torch.equal(row["line"].float(), frames.line[i])
            and (row["normals"].float() / 127 - frames.normals[i]).abs().max() < 0.005
        )
        assert torch.equal(row["intrinsics"], frames.intrinsics[i]) and torch.equal(
            row["world_to_cam"], frames.world_to_cam[i]
        )
        assert scene_from_json(line["scene"]) == scenes[i] and line["objects"] == [
            item.name for item in scenes[i].objects
        ]
        assert line["captions"] == [caption(scenes[i], random.Random(f"test/3/{i}/{k}")) for k in range(4)]
        assert line["caption"] == line["captions"][0]
    facts = json.loads((tmp_path / "dataset.json").read_text())
    wanted = {
        "format": "spatialweave-world",
        "version": 1,
        "licence": "CC0-1.0",
        "seed": 3,
        "split": "test",
        "count": 6,
        "finished": True,
    }
    assert wanted.items() <= facts.items() and (facts["height"], facts["width"]) == (16, 24)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "dataset.json",
        "manifest.jsonl",
        *sorted(shards),
    ]


def test_half_precision_keeps_depth_within_a_thousandth(tmp_path):
    export_dataset(tmp_path, 2, **SMALL)
    depth = load_file(tmp_path / "shard-00000.safetensors")["depth"]
    exact = render(sample_scenes(0, 2), 16, 24, samples=1).depth
    assert depth.dtype == torch.float16 and torch.equal(depth.isinf(), exact.isinf())
    torch.testing.assert_close(depth.float()[exact.isfinite()], exact[exact.isfinite()], rtol=1e-3, atol=0)


@pytest.mark.parametrize("layout", ["shards", "files"])
def test_trainers_read_both_layouts(tmp_path, layout):
    export_dataset(tmp_path, 3, layout=layout, **SMALL)
    frames = render(sample_scenes(0, 3), 16, 24, samples=1)
    dataset = FolderDataset(tmp_path)
    for i in range(3):
        sample = dataset[i]
        assert (sample["image"].float() / 255 - frames.image[i]).abs().max() <= 0.5 / 255 + 1e-6
        known = frames.depth[i].isfinite()
        assert torch.equal(sample["mask"], known)
        torch.testing.assert_close(sample["depth"][known], frames.depth[i][known], rtol=1e-3, atol=0)
        assert sample["caption"] == dataset.entry(i)["captions"][0]


def test_files_hold_what_is_rendered(tmp_path):
    export_dataset(tmp_path, 2, layout="files", normals=True, **SMALL)
    frames = render(sample_scenes(0, 2), 16, 24, samples=1)
    for i, line in enumerate(manifest(tmp_path)):
        maps = {
            key: np.array(Image.open(tmp_path / line[key]))
            for key in ("image", "depth", "segmentation", "line", "normals")
        }
        depth, sky = frames.depth[i].numpy(), frames.depth[i].isinf().numpy()
        assert maps["depth"].dtype == np.uint16 and ((maps["depth"] == 0) == sky).all()
        assert (
            np.abs(maps["depth"][~sky] * line["depth_scale"] - depth[~sky]).max()
            <= line["depth_scale"] / 2 + 1e-6
        )
        assert (
            np.where(maps["segmentation"] == 255, -1, maps["segmentation"].astype(int))
            == frames.segmentation[i].numpy()
        ).all()
        assert ((maps["line"] > 127) == (frames.line[i].numpy() > 0)).all()
        assert maps["image"].shape == maps["normals"].shape == (16, 24, 3)
        np.testing.assert_allclose(line["intrinsics"], frames.intrinsics[i], rtol=1e-6)
        np.testing.assert_allclose(line["world_to_cam"], frames.world_to_cam[i], rtol=1e-6)


@pytest.mark.parametrize("kind", ["edits", "moves"])
@pytest.mark.parametrize("layout", ["shards", "files"])
def test_edits_hold_both_frames(tmp_path, layout, kind):
    export_dataset(tmp_path, 5, seed=2, kind=kind, layout=layout, **SMALL)
    edits = {"edits": sample_edits, "moves": sample_moves}[kind](2, 5)
    target = render([edit.target for edit in edits], 16, 24, samples=1)
    for i, line in enumerate(manifest(tmp_path)):
        fields = {**line, "source": line["scene"], "target": line["target_scene"]}
        assert edit_from_json(fields) == edits[i]
        if layout == "shards":
            image = load_file(tmp_path / line["shard"])["target_image"][line["row"]].numpy()
        else:
            image = np.array(Image.open(tmp_path / line["target_image"]))
        assert np.abs(image / 255 - target.image[i].numpy()).max() <= 0.5 / 255 + 1e-6
        assert len(line["captions"]) == len(line["target_captions"]) == 4


def test_moves_of_one_scene_are_rendered_once(tmp_path, monkeypatch):
    from spatialweave.models.world.export import dataset

    true_render, rendered = dataset.render, []

    def count(scenes, *arguments, **options):
        rendered.extend(scenes)
        return true_render(scenes, *arguments, **options)

    monkeypatch.setattr(dataset, "render", count)
    export_dataset(tmp_path, 6, seed=2, kind="moves", size=(16, 24), samples=1)
    edits = sample_moves(2, 6)
    assert len(rendered) == len(set(rendered)) == len({s for e in edits for s in (e.source, e.target)}) <= 4


def test_an_interrupted_export_resumes_and_keeps_whole_shards(tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    export_dataset(whole, 10, **SMALL)
    from spatialweave.models.world.export import dataset

    true_render, calls = dataset.render, []

    def fail_in_the_third_shard(*arguments, **options):
        calls.append(len(arguments[0]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return true_render(*arguments, **options)

    monkeypatch.setattr(dataset, "render", fail_in_the_third_shard)
    with pytest.raises(KeyboardInterrupt):
        export_dataset(broken, 10, **SMALL)
    assert (
        json.loads((broken / "dataset.json").read_text())["finished"] is False
        and not (broken / "manifest.jsonl").exists()
    )
    summary = export_dataset(broken, 10, **SMALL)
    assert summary.rendered == 2 and calls == [4, 4, 2, 2]
    assert contents(broken) == contents(whole)
    assert "10 samples, 8 of them from an earlier run" in str(summary)


def test_a_larger_count_extends_a_finished_folder(tmp_path):
    whole, grown = tmp_path / "whole", tmp_path / "grown"
    export_dataset(whole, 10, **SMALL)
    export_dataset(grown, 5, **SMALL)
    assert export_dataset(grown, 10, **SMALL).rendered == 6, (
        "the first shard was whole, the second had one of four"
    )
    assert contents(grown) == contents(whole)
    assert export_dataset(grown, 10, **SMALL).rendered == 0
    assert contents(grown) == contents(whole)


@pytest.mark.parametrize(
    "lost, layout", [("shard-00001.safetensors", "shards"), ("depth/000003.png", "files")]
)
def test_a_lost_file_of_a_finished_folder_is_rendered_again(tmp_path, lost, layout):
    whole = export_dataset(tmp_path / "whole", count=5, size=16, shard_size=2, layout=layout)
    assert whole.rendered == 5
    before = {path: path.read_bytes() for path in (tmp_path / "whole").rglob("*") if path.is_file()}
    (tmp_path / "whole" / lost).unlink()
    assert export_dataset(tmp_path / "whole", count=5, size=16, shard_size=2, layout=layout).rendered == 2
    assert {path: path.read_bytes() for path in (tmp_path / "whole").rglob("*") if path.is_file()} == before


def test_a_folder_whose_words_are_damaged_names_the_file(tmp_path):
    export_dataset(tmp_path, count=4, size=16, shard_size=2)
    facts, manifest = tmp_path / "dataset.json", tmp_path / "manifest.jsonl"
    facts.write_bytes(b"\xef\xbb\xbf" + facts.read_bytes())
    assert export_dataset(tmp_path, count=4, size=16, shard_size=2).rendered == 0, (
        "a byte order mark is no damage"
    )
    good = manifest.read_bytes()
    manifest.write_bytes(good[:-20])
    with pytest.raises(ValueError, match=r"Expected JSON in line 4 of .*manifest\.jsonl"):
        export_dataset(tmp_path, count=4, size=16, shard_size=2)
    manifest.unlink()
    assert (
        export_dataset(tmp_path, count=4, size=16, shard_size=2).rendered == 4
        and manifest.read_bytes() == good
    )
    facts.write_text(facts.read_text().replace('"count": 4', '"count": "four"'))
    with pytest.raises(ValueError, match="got count 'four', not 4"):
        export_dataset(tmp_path, count=4, size=16, shard_size=2)


def test_several_workers_write_the_same_bytes(tmp_path):
    export_dataset(tmp_path / "one", 6, **SMALL)
    summary = export_dataset(tmp_path / "two", 6, workers=2, **SMALL)
    assert contents(tmp_path / "one") == contents(tmp_path / "two") and summary.rendered == 6


def test_another_request_for_the_same_folder_is_refused(tmp_path):
    export_dataset(tmp_path, 2, **SMALL)
    with pytest.raises(
        ValueError, match=r"got seed 0, not 1. Give the same settings to continue, or choose another folder."
    ):
        export_dataset(tmp_path, 2, seed=1, **SMALL)
    with pytest.raises(ValueError, match=r"got count 2, not 1."):
        export_dataset(tmp_path, 1, **SMALL)


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="with other files. Choose an empty folder for the dataset."):
        export_dataset(tmp_path, 1, **SMALL)
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(ValueError, match="got a file that does not .it is empty.. Choose another folder"):
        export_dataset(tmp_path, 1, **SMALL)
    (tmp_path / "dataset.json").write_text('{"format": "coco", "version": 3}')
    with pytest.raises(
        ValueError,
        match="Expected 'spatialweave-world' of version 1 in .*dataset.json, got 'coco' of version 3",
    ):
        export_dataset(tmp_path, 1, **SMALL)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_an_unwritable_folder_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ExportError,
        match=r"Cannot write .*: a part of this path is a file, not a folder; choose another folder\.$",
    ):
        export_dataset(tmp_path / "file" / "data", 1, **SMALL)


@pytest.mark.skipif(os.name != "posix", reason="only POSIX limits the size of a process's files")
def test_a_full_disk_is_one_sentence_and_whole_shards_stay(tmp_path):
    import resource

    large = {**SMALL, "size": (32, 48)}
    export_dataset(tmp_path, 4, **large)
    before = (tmp_path / "shard-00000.safetensors").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        with pytest.raises(ExportError, match=r"Cannot write .*shard-00001\.safetensors: .*\.$"):
            export_dataset(tmp_path, 8, **large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "shard-00000.safetensors").read_bytes() == before and not list(tmp_path.glob("*.part"))
    assert export_dataset(tmp_path, 8, **large).rendered == 4


def test_impossible_requests_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Expected at least 1 as the dataset's count, got 0."):
        export_dataset(tmp_path, 0)
    with pytest.raises(ValueError, match="Expected at least 8 as the dataset's height, got 4."):
        export_dataset(tmp_path, 1, size=4)
    with pytest.raises(ValueError, match="Expected one of shards, files as the dataset's layout, got 'tar'"):
        export_dataset(tmp_path, 1, layout="tar")
    assert not list(tmp_path.iterdir())


def test_a_dead_worker_is_one_sentence(tmp_path, monkeypatch):
    from concurrent.futures.process import BrokenProcessPool

    from spatialweave.models.world.export import dataset

    class DeadPool:
        def __init__(self, *_, **__): ...
        def __enter__(self):
            return self

        def __exit__(self, *_): ...

        def submit(self, *_):
            from concurrent.futures import Future

            future = Future()
            future.set_exception(BrokenProcessPool())
            return future

    monkeypatch.setattr(dataset, "ProcessPoolExecutor", DeadPool)
    with pytest.raises(
        ChildProcessError,
        match="got one that ended early, often for lack of memory. Run again with fewer workers",
    ):
        export_dataset(tmp_path, 8, workers=2, **SMALL)
