"""Dataset folders with intrinsic maps: both layouts, what is missing, sizes; and folders written by several processes."""

import contextlib
import json
import os
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from spatialweave.models.intrinsic_ldm.data import shards as dataset_shards
from spatialweave.models.intrinsic_ldm.data.dataset import IntrinsicSamples
from spatialweave.models.intrinsic_ldm.data.facts import stamp_files
from spatialweave.models.intrinsic_ldm.data.sources import Source
from spatialweave.models.intrinsic_ldm.maps.channels import encode_segmentation
from spatialweave.models.intrinsic_ldm.vae import map_slices, split_maps
from spatialweave.models.world.export.dataset import export_dataset


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    for layout in ("shards", "files"):
        export_dataset(folder / layout, count=3, size=32, seed=1, layout=layout, normals=True, depth_type="float32")
    return folder


def copy_folder(source, target):
    shutil.copytree(source, target)
    return target


def test_both_layouts_of_the_world_give_the_same_maps(world):
    shards, files = (IntrinsicSamples(world / layout, image=True) for layout in ("shards", "files"))
    assert len(shards) == len(files) == 3
    for index in range(3):
        one, two = shards[index], files[index]
        assert one["maps"].shape == (8, 32, 32) and one["present"].tolist() == two["present"].tolist() == [True] * 4
        assert one["caption"] == two["caption"] != "" and torch.equal(one["image"], two["image"])
        assert one["maps"].abs().max() <= 1.001
        (a, b) = (split_maps(sample["maps"][None]) for sample in (one, two))
        assert torch.equal(a["line"], b["line"]) and torch.equal(a["segmentation"], b["segmentation"])
        torch.testing.assert_close(a["depth"], b["depth"], atol=0.01, rtol=0)  # half a millimetre a step
        torch.testing.assert_close(a["normals"], b["normals"], atol=0.02, rtol=0)  # 8 bits a component


def test_maps_are_those_of_the_scene(world):
    """Line is 1 where the shard's is, the surroundings are black, nearer is greater, normals of a picture's normal map."""
    raw = load_file(world / "shards" / "shard-00000.safetensors")
    for index in range(3):
        maps = {name: part[0] for name, part in split_maps(IntrinsicSamples(world / "shards")[index]["maps"][None]).items()}
        assert torch.equal(maps["line"][0], raw["line"][index].float() * 2 - 1)
        assert torch.equal((maps["segmentation"] == -1).all(0), raw["segmentation"][index] <= 0)
        known = raw["depth"][index].isfinite()
        near, far = raw["depth"][index][known].min(), raw["depth"][index][known].max()
        assert maps["depth"][0][raw["depth"][index] == near].mean() == 1 and maps["depth"][0][raw["depth"][index] == far].mean() == -1
        assert (maps["depth"][0][raw["segmentation"][index] == -1] == -1).all(), "sky is as far as can be"
        normals = raw["normals"][index].float().movedim(-1, 0) / 127
        torch.testing.assert_close(maps["normals"], normals * torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1))


def test_missing_maps_are_known_to_be_missing(world, tmp_path):
    folder = copy_folder(world / "files", tmp_path / "files")
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    del lines[0]["normals"], lines[1]["depth"], lines[2]["segmentation"], lines[2]["line"]
    Image.new("RGB", (32, 32)).save(folder / "normals" / "000001.png")  # black all over: no normal is known
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    samples = IntrinsicSamples(folder)
    assert [samples[index]["present"].tolist() for index in range(3)] == [
        [True, False, True, True], [False, False, True, True], [True, True, False, False],
    ]  # fmt: skip
    for index in range(3):
        for (name, part), present in zip(map_slices().items(), samples[index]["present"].tolist()):
            assert present or not samples[index]["maps"][part].any(), name


def test_maps_are_scaled_together(world):
    small, whole = IntrinsicSamples(world / "shards", size=(16, 24), image=True), IntrinsicSamples(world / "shards", image=True)
    sample = small[0]
    assert sample["maps"].shape == (8, 16, 24) and sample["image"].shape == (3, 16, 24)
    steps = (sample["maps"][map_slices()["segmentation"]] + 1) * 1.5
    torch.testing.assert_close(steps, steps.round())  # no colour between two masks
    assert len(steps.flatten(1).unique(dim=1).T) <= len(whole[0]["maps"][map_slices()["segmentation"]].flatten(1).unique(dim=1).T)


def test_ids_of_sixteen_bits_are_kept(tmp_path):
    ids = torch.zeros(8, 8, dtype=torch.int32)
    ids[:4], ids[4:, :4] = 255, 3000
    Image.fromarray(ids.to(torch.uint16).numpy()).save(tmp_path / "ids.png")
    Image.new("L", (8, 8), 200).save(tmp_path / "line.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    line = {"image": "image.png", "segmentation": "ids.png", "line": "line.png", "caption": "x"}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(line))
    maps = split_maps(IntrinsicSamples(tmp_path)[0]["maps"][None])
    assert len(maps["segmentation"][0].flatten(1).T.unique(dim=0)) == 3
    assert float(maps["line"].mean()) == pytest.approx(200 / 127.5 - 1)


@pytest.mark.parametrize("spoil, words", [
    (lambda line: line.update(segmentation=line["image"]), "Expected one grey channel of whole numbers in "),
    (lambda line: line.update(line="gone.png"), "gone.png"),
    (lambda line: [line.pop(name) for name in ("depth", "normals", "segmentation", "line")], "No map arrived"),
])  # fmt: skip
def test_a_sample_that_cannot_be_used_is_named(world, tmp_path, spoil, words):
    folder = copy_folder(world / "files", tmp_path / "files")
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    spoil(lines[1])
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match=r"Sample 1 \(line 2 of ") as error:
        IntrinsicSamples(folder)[1]
    assert words in str(error.value)


def write_numbers(folder, log=None):
    """A shard holds the numbers in its samples' names; "x..." cannot be written."""

    def write(name, members, state):
        if log is not None:
            log.append([member.name for member in members])
        taken = [int(member.name) for member in members if not member.name.startswith("x")]
        if taken:
            save_file({"x": torch.tensor(taken)}, folder / f"{name}.safetensors")
        return ["it has no number" if member.name.startswith("x") else "" for member in members]

    return write


def named(*names, files=None, **options):
    return [Source(str(name), {str(name): files / str(name)} if files else {}, **options) for name in names]


@pytest.fixture
def numbers(tmp_path):
    """numbers(**changes) -> a summary; the shards that were written are in numbers.log."""
    pytest.importorskip("accelerate", reason="the trainer's extra is not installed")
    folder, log = tmp_path / "numbers", []

    def run(write=None, **changes):
        settings = {"sources": named(*range(10)), "shard_size": 4, "what": "test"} | changes
        return dataset_shards.write_folder(folder, settings.pop("facts", {"a": 1}), write=write or write_numbers(folder, log), **settings)

    run.log, run.folder = log, folder
    return run


def read_numbers(folder):
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    return [load_file(folder / line["shard"])["x"][line["row"]].item() for line in lines]


def test_an_interrupted_folder_is_completed_and_a_finished_one_is_left(numbers):
    def stops(name, members, state):
        if members[0].name == "8":
            raise KeyboardInterrupt
        return write_numbers(numbers.folder)(name, members, state)

    with pytest.raises(KeyboardInterrupt):
        numbers(stops)
    assert not (numbers.folder / "manifest.jsonl").exists()
    assert str(numbers()).endswith("10 samples, 2 of them written in this process.")
    assert numbers.log == [["8", "9"]]
    assert read_numbers(numbers.folder) == list(range(10))
    assert not list(numbers.folder.glob("shard-*.jsonl"))
    assert numbers().written == 0 and numbers.log == [["8", "9"]]


def test_another_run_is_not_mixed_into_a_folder(numbers, tmp_path):
    numbers()
    with pytest.raises(ValueError, match="was begun with a 1, not 2; give the same to go on"):
        numbers(facts={"a": 2})
    (numbers.folder / "dataset.json").write_text("[")
    with pytest.raises(ValueError, match="does not say what its folder holds"):
        numbers()
    (numbers.folder / "dataset.json").unlink()
    with pytest.raises(ValueError, match="holds other files and no dataset.json"):
        numbers()


def test_a_folder_of_an_earlier_version_is_refused_in_words(numbers):
    numbers(facts={"version": 1})
    with pytest.raises(ValueError, match="of version 2, got 1: the folder does not say which files it was made from"):
        numbers(facts={"version": 2})


def test_another_file_is_named_without_its_hash(numbers, tmp_path):
    paths = [("VAE", tmp_path / "vae"), ("text of the base", tmp_path / "text")]
    for _, path in paths:
        path.write_bytes(b"old")

    def facts():
        return {"a": 1, "files": stamp_files(numbers.folder, paths)}

    numbers(facts=facts())
    os.utime(paths[0][1], (1, 1))
    assert numbers(facts=facts()).written == 0, "another time is no other content"
    paths[0][1].write_bytes(b"new")
    os.utime(paths[0][1], (1, 1))
    with pytest.raises(ValueError, match="numbers was begun with another VAE; give the same to go on, or choose another folder.$"):
        numbers(facts=facts())


def test_one_sample_more_or_less_touches_its_own_shard_alone(numbers):
    numbers()
    summary = numbers(sources=named(*range(1, 12)))
    assert numbers.log[3:] == [["1", "2", "3"], ["10", "11"]] and summary.written == 5
    assert "Since the last run 10, 11 are new; 0 is removed." in str(summary)
    assert sorted(read_numbers(numbers.folder)) == list(range(1, 12))
    assert numbers(sources=named(*range(1, 12))).changes == "" and len(numbers.log) == 5


@pytest.mark.parametrize("stopped", [False, True])
def test_a_replaced_file_makes_its_shard_anew(numbers, tmp_path, stopped):
    """Under the same name, of the same size, and with the same date; in a finished folder and in one that was stopped."""
    for number in range(10):
        (tmp_path / str(number)).write_bytes(b"old")
        os.utime(tmp_path / str(number), (1, 1))
    sources = named(*range(10), files=tmp_path)

    def stops(name, members, state):
        if members[0].name == "8":
            raise KeyboardInterrupt
        return write_numbers(numbers.folder)(name, members, state)

    with pytest.raises(KeyboardInterrupt) if stopped else contextlib.nullcontext():
        numbers(stops if stopped else None, sources=sources)
    (tmp_path / "5").write_bytes(b"new")
    os.utime(tmp_path / "5", (1, 1))
    numbers.log.clear()
    assert numbers(sources=sources).changes == "5 is replaced"
    assert numbers.log == [["4", "5", "6", "7"]] + [["8", "9"]] * stopped
    assert read_numbers(numbers.folder) == list(range(10))


def test_a_run_that_stops_while_a_shard_is_made_anew_is_completed(numbers, tmp_path):
    for number in range(10):
        (tmp_path / str(number)).write_bytes(b"old")
    sources = named(*range(10), files=tmp_path)
    numbers(sources=sources)
    (tmp_path / "5").write_bytes(b"new")

    def stops(name, members, state):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        numbers(stops, sources=sources)
    assert not (numbers.folder / "manifest.jsonl").exists(), "its rows would be those of another shard"
    numbers.log.clear()
    numbers(sources=sources)
    assert numbers.log == [["4", "5", "6", "7"]] and read_numbers(numbers.folder) == list(range(10))


def test_a_lost_shard_is_made_anew(numbers):
    numbers()
    (numbers.folder / "shard-00001.safetensors").unlink()
    numbers.log.clear()
    assert numbers().written == 4 and numbers.log == [["4", "5", "6", "7"]]


def test_words_of_a_folder_that_are_damaged_name_the_file_or_are_made_anew(numbers):
    def stops(name, members, state):
        if members[0].name == "8":
            raise KeyboardInterrupt
        return write_numbers(numbers.folder)(name, members, state)

    with pytest.raises(KeyboardInterrupt):
        numbers(stops)
    (numbers.folder / "shard-00000.jsonl").write_text("[\"\"")
    (numbers.folder / "shard-00001.jsonl").write_text("[1]")
    assert numbers().written == 10 and read_numbers(numbers.folder) == list(range(10))
    lines = (numbers.folder / "sources.jsonl").read_text().splitlines()
    for damage in ("{}", lines[1][:-5], lines[1].replace('"shard": 0', '"shard": "0"')):
        (numbers.folder / "sources.jsonl").write_text("\n".join([lines[0], damage, *lines[2:]]))
        with pytest.raises(ValueError, match=r"line 2 of .*sources\.jsonl"):
            numbers()


def test_what_is_left_out_is_said_every_time_until_it_is_mended(numbers):
    sources = named(0, "x", 1, 2, "xx", 3)
    for written in (4, 0):
        summary = numbers(sources=sources)
        assert (summary.count, summary.written) == (4, written)
        assert "2 left out: x (it has no number), xx (it has no number)." in str(summary)
    numbers.log.clear()
    summary = numbers(sources=named(0, "x", 1, 2, 3))
    assert not numbers.log and "xx is removed" in str(summary) and "1 left out: x " in str(summary)
    assert read_numbers(numbers.folder) == [0, 1, 2, 3]


def test_a_folder_of_which_nothing_can_be_used_names_the_first(numbers):
    for _ in range(2):
        with pytest.raises(ValueError, match="None of the 2 samples for .*numbers could be used; the first, x1: it has no number"):
            numbers(sources=named("x1", "x2"))


def test_other_sources_under_another_name_do_not_replace_a_folder(numbers):
    numbers(facts={"about": {"source": "mine"}})
    with pytest.raises(ValueError, match="Expected the samples of 'mine', from which .*numbers was made, got 'yours', which holds none"):
        numbers(facts={"about": {"source": "yours"}}, sources=named(20, 21))
    assert read_numbers(numbers.folder) == list(range(10))
    assert numbers(facts={"about": {"source": "renamed"}}).written == 0


def test_processes_that_do_not_see_each_other_do_not_start(numbers, monkeypatch):
    """Each would be the first, and write every shard."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("accelerate.PartialState._prepare_backend", lambda *args, **kwargs: (None, "NO"))
    with pytest.raises(ValueError, match="2 processes were started, but accelerate sees 1"):
        numbers()


def test_places_decide_how_far_a_mask_moves_before_its_colour_changes(tmp_path):
    """A square of 8 pixels on 32, its centre at each of 24 columns: 4 places give one for each quarter, 16 one for every second column."""

    def colours(**options):
        found = []
        for left in range(24):
            ids = torch.zeros(1, 32, 32, dtype=torch.long)
            ids[:, 4:12, left : left + 8] = 1
            picture = encode_segmentation(ids, **options)[0][0]
            found.append(tuple(picture[:, 8, left + 4].tolist()))
            assert (picture[:, ids[0] == 1] == picture[:, 8, left + 4, None]).all() and (picture[:, ids[0] == 0] == -1).all()
        return found

    assert len(set(colours(places=4))) == 4 and [len(set(colours(places=4)[start : start + 8])) for start in (5, 13)] == [1, 1]
    assert len(set(colours())) == 13 and colours() == colours(places=16)
    for places in (0, 17):
        with pytest.raises(ValueError, match=f"{places} places along a side"):
            colours(places=places)
