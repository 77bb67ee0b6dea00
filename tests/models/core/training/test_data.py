"""Dataset folders: both layouts, bad folders, workers, and the order of a run."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from spatialweave.models.core.training.data import FolderDataset, OrderedBatches, collate

H, W = 6, 8


def write_manifest(folder, lines):
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def shards(tmp_path):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, H, W, 3), generator=generator, dtype=torch.uint8)
    depth = torch.rand(3, H, W, generator=generator).add(0.5).half()
    depth[0, 0, :4] = torch.tensor([math.inf, math.nan, 0, -1])
    save_file(
        {"image": image, "depth": depth, "latent": torch.ones(3, 2, 1, 1)},
        tmp_path / "shard-00000.safetensors",
    )
    write_manifest(
        tmp_path,
        [
            {"shard": "shard-00000.safetensors", "row": i, "caption": f"picture {i}", "fx": 70.0}
            for i in (2, 0)
        ],
    )
    return tmp_path, image, depth


def test_shard_rows_come_back_with_their_mask(shards):
    folder, image, depth = shards
    dataset = FolderDataset(folder)
    assert len(dataset) == 2 and dataset.entry(0)["fx"] == 70.0
    sample = dataset[1]
    assert set(sample) == {"image", "depth", "mask", "latent", "caption"} and sample["caption"] == "picture 0"
    assert torch.equal(sample["image"], image[0])
    assert sample["mask"][0].tolist() == [False] * 4 + [True] * 4 and sample["mask"][1:].all()
    assert sample["depth"].dtype == torch.float32 and torch.equal(
        sample["depth"][sample["mask"]], depth[0][sample["mask"]].float()
    )
    assert (sample["depth"][~sample["mask"]] == 0).all()
    assert set(FolderDataset(folder, keys=["latent"])[0]) == {"latent", "caption"}


def test_a_sample_that_is_written_to_does_not_change_the_dataset(shards):
    folder, image, _ = shards
    dataset = FolderDataset(folder)
    dataset[1]["image"].zero_()
    assert torch.equal(dataset[1]["image"], image[0])


@pytest.mark.parametrize("depth_file", ["depth.png", "depth.npz", "depth.npy"])
def test_loose_files_hold_the_same_sample(tmp_path, depth_file):
    image = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
    millimetres = np.random.default_rng(1).integers(1, 60000, (H, W)).astype(np.uint16)
    millimetres[2, 3] = 0
    Image.fromarray(image).save(tmp_path / "image.png")
    mask = np.full((H, W), 255, np.uint8)
    mask[4, 5] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    if depth_file.endswith("png"):
        Image.fromarray(millimetres).save(tmp_path / depth_file)
    elif depth_file.endswith("npz"):
        np.savez(tmp_path / depth_file, depth=millimetres)
    else:
        np.save(tmp_path / depth_file, millimetres)
    write_manifest(
        tmp_path,
        [
            {
                "image": "image.png",
                "depth": depth_file,
                "depth_scale": 0.001,
                "mask": "mask.png",
                "caption": "x",
            }
        ],
    )
    sample = FolderDataset(tmp_path)[0]
    assert np.array_equal(sample["image"].numpy(), image)
    unknown = [tuple(index) for index in (~sample["mask"]).nonzero().tolist()]
    assert unknown == [(2, 3), (4, 5)]
    expected = np.where(sample["mask"].numpy(), millimetres / 1000, 0)
    np.testing.assert_allclose(sample["depth"].numpy(), expected, rtol=1e-6)


def test_size_scales_to_cover_and_crops_the_middle(shards):
    folder, _, _ = shards
    dataset = FolderDataset(folder, size=(3, 3), keys=["image", "depth", "mask"])
    sample = dataset[0]
    assert (
        sample["image"].shape == (3, 3, 3)
        and sample["depth"].shape == (3, 3)
        and sample["mask"].dtype == torch.bool
    )
    source = FolderDataset(folder, keys=["image", "depth", "mask"])[0]["depth"]
    assert set(sample["depth"].flatten().tolist()) <= set(
        source.flatten().tolist()
    )  # nearest: no depth between two surfaces
    same = FolderDataset(folder, size=(H, W), keys=["image"])[0]["image"]
    assert torch.equal(same, FolderDataset(folder)[0]["image"])
    with pytest.raises(ValueError, match="Expected maps that can be resized, got latent in sample"):
        FolderDataset(folder, size=(3, 3))[0]


def test_workers_read_what_the_process_reads(shards):
    folder, _, _ = shards
    dataset = FolderDataset(folder)
    before = collate([dataset[0], dataset[1]])
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=2, num_workers=1, multiprocessing_context="spawn", collate_fn=collate
    )
    (after,) = list(loader)
    assert after["caption"] == before["caption"] == ["picture 2", "picture 0"]
    assert all(torch.equal(after[key], before[key]) for key in ("image", "depth", "mask", "latent"))


def bad_folders():
    yield "no_manifest", None, "Expected a dataset folder with manifest.jsonl"
    yield "empty", "\n", "Expected at least one sample in .*, got an empty file"
    yield (
        "not_json",
        '{"image": "a.png"}\n{oops\n',
        "Expected JSON in line 2 of .*manifest.jsonl, got text that is not JSON",
    )
    yield (
        "no_sample",
        '{"caption": "a"}\n',
        'Expected "shard" and "row", or "image" and "depth" files, in line 1 of ',
    )
    yield (
        "lost_shard",
        '{"shard": "gone.safetensors", "row": 0}\n',
        "Expected the shards that .* names, got none of these: gone.safetensors",
    )


@pytest.mark.parametrize(
    ("text", "sentence"), [pytest.param(*case[1:], id=case[0]) for case in bad_folders()]
)
def test_bad_folders_are_said_in_a_sentence(tmp_path, text, sentence):
    if text is not None:
        (tmp_path / "manifest.jsonl").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        FolderDataset(tmp_path)


def test_bad_samples_are_named_with_their_line(tmp_path):
    Image.fromarray(np.zeros((H, W, 3), np.uint8)).save(tmp_path / "colour.png")
    Image.fromarray(np.ones((H, W), np.uint16)).save(tmp_path / "depth.png")
    write_manifest(
        tmp_path,
        [{"image": "gone.png"}, {"depth": "depth.png"}, {"depth": "colour.png", "depth_scale": 1}],
    )
    dataset = FolderDataset(tmp_path)
    with pytest.raises(ValueError, match=r"Sample 0 \(line 1 of .*No such file"):
        dataset[0]
    with pytest.raises(
        ValueError, match='Sample 1 .*Expected "depth_scale" in the line, as .*depth.png holds whole numbers'
    ):
        dataset[1]
    with pytest.raises(ValueError, match="Sample 2 .*colour.png, which is a color image"):
        dataset[2]


def test_batches_of_unlike_samples_are_refused():
    with pytest.raises(
        ValueError, match=r"Expected samples of one size in a batch, got x \(2,\) and x \(3,\). Set data.size"
    ):
        collate([{"x": torch.zeros(2)}, {"x": torch.zeros(3)}])


def take(batches, count):
    return [batch for batch, _ in zip(batches, range(count), strict=False)]


def test_every_epoch_is_a_new_permutation():
    flat = sum(take(OrderedBatches(10, 4, seed=3), 5), [])
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10)) and flat[:10] != flat[10:]
    assert flat != sum(take(OrderedBatches(10, 4, seed=4), 5), [])


def test_order_resumes_at_any_step():
    assert take(OrderedBatches(7, 3, seed=0, first_step=4), 3) == take(OrderedBatches(7, 3, seed=0), 7)[4:]


def test_processes_share_a_batch_without_overlap():
    whole = take(OrderedBatches(11, 4, seed=1), 3)
    slices = [take(OrderedBatches(11, 4, seed=1, slices=4, processes=2, process=p), 6) for p in (0, 1)]
    for step in range(3):
        mine, other = slices[0][2 * step : 2 * step + 2], slices[1][2 * step : 2 * step + 2]
        assert mine[0] + other[0] + mine[1] + other[1] == whole[step]


def test_empty_datasets_are_refused():
    with pytest.raises(ValueError, match="Expected at least one sample to train on, got an empty dataset"):
        OrderedBatches(0, 1, 0)
