"""What the tiny networks train on: the same scenes as the renderer's, mirrored with their words, sky at 2."""

import json
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from spatialweave.models.core.training.data import FolderDataset, collate
from spatialweave.models.tiny.codec import TinyCodec
from spatialweave.models.tiny.text import TOKENS, explain_prompt, tokenize
from spatialweave.models.tiny.vocabulary import VOCABULARY
from spatialweave.models.trainers.world_samples import WorldImages, WorldLatents
from spatialweave.models.world.captions import caption
from spatialweave.models.world.export.dataset import open_world
from spatialweave.models.world.render import render
from spatialweave.models.world.scene import COLORS, SHAPES, sample_scenes


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(folder with four scenes, their frames)."""
    folder = tmp_path_factory.mktemp("world")
    scenes = sample_scenes(5, 4)
    frames = render(scenes, 32, 32, samples=1)
    tensors = {
        "image": (frames.image * 255).round().byte(),
        "depth": frames.depth,
        "segmentation": frames.segmentation.to(torch.int16),
    }
    save_file(tensors, folder / "shard-00000.safetensors")
    lines = []
    for row, scene in enumerate(scenes):
        captions = [caption(scene, random.Random(k)) for k in range(3)]
        words = {
            "caption": captions[0],
            "captions": captions,
            "objects": [item.name for item in scene.objects],
        }
        lines.append(json.dumps({"shard": "shard-00000.safetensors", "row": row, **words}))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return folder, frames


def test_pictures_come_as_they_are_and_mirrored(world):
    folder, frames = world
    pictures = WorldImages(FolderDataset(folder))
    assert len(pictures) == 8
    exact = frames.image[2].permute(2, 0, 1) * 2 - 1
    assert (pictures[4]["image"] - exact).abs().max() < 1 / 127
    assert torch.equal(pictures[5]["image"], pictures[4]["image"].flip(-1))


def test_latents_are_the_codecs_and_depth_is_contracted_with_sky_at_two(world):
    folder, frames = world
    codec = TinyCodec().train(False)
    samples = WorldLatents(FolderDataset(folder), codec, batch=3)
    for scene in range(4):
        sample, mirrored = samples[2 * scene], samples[2 * scene + 1]
        image = ((frames.image[scene] * 255).round() / 127.5 - 1).permute(2, 0, 1)[None]
        with torch.no_grad():
            assert torch.allclose(sample["latent"], codec.encode(image)[0], atol=2e-3)
            assert torch.allclose(mirrored["latent"], codec.encode(image.flip(-1))[0], atol=2e-3)
        depth = frames.depth[scene].double()
        sky = torch.isinf(depth)
        ratio = depth / depth[~sky].mean()
        exact = torch.where(sky, 2.0, torch.where(ratio <= 1, ratio, 2 - 1 / ratio))
        assert (sample["depth_net"][0].double() - exact).abs().max() < 1e-3  # float16
        assert torch.equal(mirrored["depth_net"], sample["depth_net"].flip(-1))
        assert sample["mask"].all()


def test_a_batch_is_its_samples_side_by_side(world):
    folder, _ = world
    pictures = WorldImages(FolderDataset(folder))
    latents = WorldLatents(FolderDataset(folder), TinyCodec().train(False))
    order = [5, 0, 3, 3, 6]
    for samples in (pictures, latents):
        batch = collate(samples.__getitems__(order))
        each = collate([samples[index] for index in order])
        assert batch.keys() == each.keys() and all(torch.equal(batch[name], each[name]) for name in each)
    plain = WorldLatents(FolderDataset(folder), TinyCodec().train(False), depth=False)
    assert plain[0].keys() == {"latent", "tokens", "cells"} and torch.equal(
        plain[3]["tokens"], latents[3]["tokens"]
    )


def test_cells_say_what_the_middle_of_each_shows(world):
    folder, frames = world
    scenes = sample_scenes(5, 4)
    pictures, latents = (
        WorldImages(FolderDataset(folder)),
        WorldLatents(FolderDataset(folder), TinyCodec().train(False)),
    )
    for i, scene in enumerate(scenes):
        cells = pictures[2 * i]["cells"]
        assert cells.shape == (2, 8, 8) and torch.equal(cells, latents[2 * i]["cells"])
        for y in range(8):
            for x in range(8):
                shown, (shape, color) = (
                    int(frames.segmentation[i, 4 * y + 2, 4 * x + 2]),
                    cells[:, y, x].tolist(),
                )
                if shown < 1:
                    assert (shape, color) == (1 if shown < 0 else 0, -1)
                else:
                    item = scene.objects[shown - 1]
                    assert f"{list(COLORS)[color]} {SHAPES[shape - 2]}" == item.name
        for samples in (pictures, latents):
            assert torch.equal(samples[2 * i + 1]["cells"], cells.flip(-1))


def test_latents_are_kept_beside_the_dataset_until_codec_or_dataset_change(world, tmp_path):
    folder = shutil.copytree(world[0], tmp_path / "world", ignore=shutil.ignore_patterns("latents-*"))
    torch.manual_seed(0)
    codec = TinyCodec().train(False)
    first = WorldLatents(FolderDataset(folder), codec)
    (kept,) = folder.glob("latents-*")
    written = kept.stat().st_mtime_ns
    again = WorldLatents(FolderDataset(folder), codec)
    assert kept.stat().st_mtime_ns == written
    for i in range(len(first)):
        assert all(torch.equal(value, again[i][key]) for key, value in first[i].items())

    with torch.no_grad():
        codec.encoder[1].weight.add_(0.01)
    assert not torch.equal(WorldLatents(FolderDataset(folder), codec)[0]["latent"], first[0]["latent"])
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    (folder / "manifest.jsonl").write_text("\n".join(lines[::-1]) + "\n")
    WorldLatents(FolderDataset(folder), codec)
    assert len(list(folder.glob("latents-*"))) == 3

    (shard,) = folder.glob("shard-*.safetensors")
    tensors = load_file(shard)
    save_file(tensors | {"image": 255 - tensors["image"]}, shard)
    assert not torch.equal(WorldLatents(FolderDataset(folder), codec)[0]["latent"], first[0]["latent"])
    assert len(list(folder.glob("latents-*"))) == 4, "pictures replaced under the same manifest"


def test_mirrored_captions_swap_left_and_right(world):
    folder, _ = world
    samples = WorldLatents(FolderDataset(folder), TinyCodec().train(False))
    left, right = (VOCABULARY.index(word) + 2 for word in ("left", "right"))
    for scene in range(4):
        plain, mirrored = samples[2 * scene]["tokens"], samples[2 * scene + 1]["tokens"]
        assert plain.shape == (3, TOKENS)
        swapped = torch.where(plain == left, right, torch.where(plain == right, left, plain))
        assert torch.equal(mirrored, swapped)


def test_a_missing_folder_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(ValueError, match="spatialweave world .*nothing --scenes 12 --size 64"):
        open_world({"folder": str(tmp_path / "nothing"), "scenes": 12, "size": 64})


def test_words_are_numbered_padded_and_cut():
    ids = tokenize(["", "a red ball", "a " * 40])
    assert ids.shape == (3, TOKENS)
    assert (ids[0] == 0).all()
    assert (ids[1, :3] > 1).all() and (ids[1, 3:] == 0).all()
    assert (ids[2] > 1).all()
    assert torch.equal(tokenize(["A RED sphere!"]), tokenize(["a red ball"]))


def test_prompt_faults_are_said_in_words():
    assert explain_prompt("a red ball") is None
    assert "'bleu' (nearest: 'blue')" in explain_prompt("a bleu ball")
    assert "did not see 'ball'" in explain_prompt("a " * TOKENS + "ball")
