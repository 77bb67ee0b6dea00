"""Dataset folders with intrinsic maps: both layouts, what is missing, sizes."""

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from spatialweave.models.intrinsic_ldm.data.dataset import IntrinsicSamples
from spatialweave.models.intrinsic_ldm.maps.channels import encode_segmentation
from spatialweave.models.intrinsic_ldm.vae import map_slices, split_maps
from spatialweave.models.world.export.dataset import export_dataset


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    for layout in ("shards", "files"):
        export_dataset(
            folder / layout, count=3, size=32, seed=1, layout=layout, normals=True, depth_type="float32"
        )
    return folder


def copy_folder(source, target):
    shutil.copytree(source, target)
    return target


def test_both_layouts_of_the_world_give_the_same_maps(world):
    shards, files = (IntrinsicSamples(world / layout, image=True) for layout in ("shards", "files"))
    assert len(shards) == len(files) == 3
    for index in range(3):
        one, two = shards[index], files[index]
        assert (
            one["maps"].shape == (8, 32, 32)
            and one["present"].tolist() == two["present"].tolist() == [True] * 4
        )
        assert one["caption"] == two["caption"] != "" and torch.equal(one["image"], two["image"])
        assert one["maps"].abs().max() <= 1.001
        (a, b) = (split_maps(sample["maps"][None]) for sample in (one, two))
        assert torch.equal(a["line"], b["line"]) and torch.equal(a["segmentation"], b["segmentation"])
        torch.testing.assert_close(a["depth"], b["depth"], atol=0.01, rtol=0)  # half a millimetre a step
        torch.testing.assert_close(a["normals"], b["normals"], atol=0.02, rtol=0)  # 8 bits a component


def test_maps_are_those_of_the_scene(world):
    """Line is 1 where the shard's is, the surroundings are black, nearer is greater,
    normals of a picture's normal map.
    """
    raw = load_file(world / "shards" / "shard-00000.safetensors")
    for index in range(3):
        maps = {
            name: part[0]
            for name, part in split_maps(IntrinsicSamples(world / "shards")[index]["maps"][None]).items()
        }
        assert torch.equal(maps["line"][0], raw["line"][index].float() * 2 - 1)
        assert torch.equal((maps["segmentation"] == -1).all(0), raw["segmentation"][index] <= 0)
        known = raw["depth"][index].isfinite()
        near, far = raw["depth"][index][known].min(), raw["depth"][index][known].max()
        assert (
            maps["depth"][0][raw["depth"][index] == near].mean() == 1
            and maps["depth"][0][raw["depth"][index] == far].mean() == -1
        )
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
    small, whole = (
        IntrinsicSamples(world / "shards", size=(16, 24), image=True),
        IntrinsicSamples(world / "shards", image=True),
    )
    sample = small[0]
    assert sample["maps"].shape == (8, 16, 24) and sample["image"].shape == (3, 16, 24)
    steps = (sample["maps"][map_slices()["segmentation"]] + 1) * 1.5
    torch.testing.assert_close(steps, steps.round())  # no color between two masks
    assert (
        len(steps.flatten(1).unique(dim=1).T)
        <= len(whole[0]["maps"][map_slices()["segmentation"]].flatten(1).unique(dim=1).T)
    )


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
    (lambda line: line.update(segmentation=line["image"]), "Expected one gray channel of whole numbers in "),
    (lambda line: line.update(line="gone.png"), "gone.png"),
    (
        lambda line: [line.pop(name) for name in ("depth", "normals", "segmentation", "line")],
        "Expected maps of depth, normals, segmentation, line, got none",
    ),
])  # fmt: skip
def test_a_sample_that_cannot_be_used_is_named(world, tmp_path, spoil, words):
    folder = copy_folder(world / "files", tmp_path / "files")
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    spoil(lines[1])
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match=r"Sample 1 \(line 2 of ") as error:
        IntrinsicSamples(folder)[1]
    assert words in str(error.value)


def test_grid_cells_decide_how_far_a_mask_moves_before_its_color_changes(tmp_path):
    """A square of 8 pixels on 32, its center at each of 24 columns: 4 cells a side give one for each quarter,
    16 one for every second column.
    """

    def colors(**options):
        found = []
        for left in range(24):
            ids = torch.zeros(1, 32, 32, dtype=torch.long)
            ids[:, 4:12, left : left + 8] = 1
            picture = encode_segmentation(ids, **options)[0][0]
            found.append(tuple(picture[:, 8, left + 4].tolist()))
            assert (
                (picture[:, ids[0] == 1] == picture[:, 8, left + 4, None]).all()
                and (picture[:, ids[0] == 0] == -1).all()
            )
        return found

    assert (
        len(set(colors(grid=4))) == 4
        and [len(set(colors(grid=4)[start : start + 8])) for start in (5, 13)] == [1, 1]
    )
    assert len(set(colors())) == 13 and colors() == colors(grid=16)
    for grid in (0, 17):
        with pytest.raises(ValueError, match=f"Expected 1 to 16 grid cells per side .* got {grid}"):
            colors(grid=grid)
