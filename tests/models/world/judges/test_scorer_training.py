"""The scorer's training: targets, augmentation, and a recipe that learns and exports."""

import math

import pytest
import torch

from spatialweave.models.core.training.data import collate
from spatialweave.models.core.training.loop import run_recipe
from spatialweave.models.core.training.recipe import Recipe
from spatialweave.models.world.export.dataset import export_dataset
from spatialweave.models.world.judges.scorer import Scorer
from spatialweave.models.world.judges.scorer_network import (
    MEAN_LOG_DEPTH,
    OFFSET_CELLS,
    STRIDE,
    ScorerNetwork,
)
from spatialweave.models.world.judges.scorer_task import build
from spatialweave.models.world.judges.scorer_training import (
    blur,
    degrade,
    loss,
    make_sample,
    mirror,
    quantize_blocks,
    scatter_targets,
    turn_hue,
)
from spatialweave.models.world.render import render
from spatialweave.models.world.scene import COLORS, SHAPES, apparent_circle, sample_scenes


@pytest.fixture(scope="module")
def batch():
    scenes = sample_scenes(0, 4)
    frames = render(scenes, 64, 64, samples=1)
    images = (frames.image * 255).to(torch.uint8)
    return scenes, collate([make_sample(images[i], frames.segmentation[i], scenes[i]) for i in range(4)])


def test_targets_name_each_cells_object(batch):
    scenes, samples = batch
    target = scatter_targets(samples["objects"], samples["cells"])
    for i, scene in enumerate(scenes):
        for label, item in enumerate(scene.objects, 1):
            rows, columns = torch.nonzero(samples["cells"][i] == label, as_tuple=True)
            assert len(rows)
            assert (target["shape"][i, rows, columns] == 1 + SHAPES.index(item.shape)).all()
            assert (target["color"][i, rows, columns] == 1 + list(COLORS).index(item.color)).all()
            x, y, depth, _ = apparent_circle(item, scene.camera)
            assert torch.allclose(
                target["log_depth"][i, 0, rows, columns], torch.tensor(math.log(depth) - MEAN_LOG_DEPTH)
            )
            votes = OFFSET_CELLS * target["offset"][i, :, rows, columns] + torch.stack((columns, rows)) + 0.5
            assert torch.allclose(votes.T * STRIDE, torch.tensor([32 * (x + 1), 32 * (y + 1)]), atol=1e-3)
        nothing = samples["cells"][i] == 0
        assert (target["shape"][i][nothing] == 0).all() and (target["color"][i][nothing] == 0).all()


def test_mirrored_targets_fit_mirrored_pictures(batch):
    samples = batch[1]
    image = samples["image"].float() / 255
    for seed in range(8):
        flipped, cells, objects = mirror(
            image, samples["cells"], samples["objects"], torch.Generator().manual_seed(seed)
        )
        plain, turned = scatter_targets(samples["objects"], samples["cells"]), scatter_targets(objects, cells)
        for i in range(len(image)):
            if torch.equal(flipped[i], image[i]):
                assert torch.equal(turned["offset"][i], plain["offset"][i])
            else:
                assert torch.equal(flipped[i], image[i].flip(2))
                inside = cells[i] > 0
                assert torch.allclose(
                    turned["offset"][i, 0][inside], -plain["offset"][i, 0].flip(1)[inside], atol=1e-5
                )
                assert torch.allclose(
                    turned["offset"][i, 1][inside], plain["offset"][i, 1].flip(1)[inside], atol=1e-5
                )


def test_softened_pictures_stay_pictures_and_repeat_by_seed(batch):
    image = batch[1]["image"].float() / 255
    one, two = (degrade(image, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two) and one.min() >= 0 and one.max() <= 1
    assert 0.003 < (one - image).abs().mean() < 0.15


def test_hue_turns_about_gray():
    gray = torch.full((1, 3, 8, 8), 0.4)
    assert torch.allclose(turn_hue(gray, torch.tensor([1.0])), gray, atol=1e-6)
    red = torch.tensor([1.0, 0, 0]).reshape(1, 3, 1, 1)
    third = turn_hue(red, torch.tensor([2 * math.pi / 3])).flatten()
    assert torch.allclose(third, torch.tensor([0.0, 1, 0]), atol=1e-6)


def test_blur_keeps_the_mean_and_spreads_a_point_by_its_sigma():
    point = torch.zeros(1, 3, 33, 33)
    point[..., 16, 16] = 1
    spot = blur(point, torch.tensor([1.2]))[0, 0]
    place = torch.arange(33.0) - 16
    assert spot.sum() == pytest.approx(1, abs=1e-5)
    assert float((spot.sum(0) * place**2).sum()) ** 0.5 == pytest.approx(1.2, rel=0.02)


def test_block_quantisation_rounds_cosine_coefficients():
    from scipy.fft import dctn

    image = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(quantize_blocks(image, torch.tensor([1e-5, 1e-5])), image, atol=1e-4)
    rough = quantize_blocks(image, torch.tensor([0.2, 0.2]))
    coefficients = dctn(rough[0, 0, :8, 8:16].double().numpy(), norm="ortho")
    assert abs(coefficients[0, 0] / 0.2 - round(coefficients[0, 0] / 0.2)) < 1e-4
    assert abs(coefficients[2, 4] / 0.8 - round(coefficients[2, 4] / 0.8)) < 1e-4


def test_one_batch_can_be_learned_by_heart(batch):
    torch.manual_seed(0)
    network, generator = ScorerNetwork(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        value, parts = loss(network, batch[1], generator)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    assert set(parts) == {"shape", "color", "size", "offset", "log_depth", "floor"}
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5]), losses


def test_a_recipe_trains_and_exports_what_the_scorer_loads(tmp_path):
    export_dataset(tmp_path / "world", 6, size=64, samples=1)
    recipe = Recipe(
        "scorer", 2, batch_size=2, data={"folder": str(tmp_path / "world")}, output=str(tmp_path / "run")
    )
    outcome = run_recipe(recipe, {"scorer": build})
    assert outcome.step == 2 and math.isfinite(outcome.loss)
    scorer = Scorer.from_pretrained(tmp_path / "run" / "scorer.safetensors")
    assert isinstance(scorer.read(torch.rand(1, 64, 64, 3))[0], list)


def test_a_missing_folder_says_how_to_make_it(tmp_path):
    data = {"folder": str(tmp_path / "none"), "scenes": 70, "size": 64}
    with pytest.raises(
        ValueError,
        match="Expected a dataset to train on in .*none, got none. Write it with: spatialweave "
        "world .*none --scenes 70 --size 64 --workers 2",
    ):
        build(Recipe("scorer", 1, data=data))
    with pytest.raises(ValueError, match="'foldr'"):
        build(Recipe("scorer", 1, data={"foldr": "x"}))


def test_loose_pictures_train_as_shards_do(tmp_path):
    tasks = []
    for layout in ("files", "shards"):
        export_dataset(tmp_path / layout, 2, size=16, layout=layout)
        tasks.append(build(Recipe("scorer", 1, data={"folder": str(tmp_path / layout)})))
    for index in range(2):
        loose, packed = (task.dataset[index] for task in tasks)
        assert loose.keys() == packed.keys() and all(torch.equal(loose[key], packed[key]) for key in packed)


def test_a_folder_without_labels_is_refused(tmp_path):
    export_dataset(tmp_path, 1, size=16, layout="files")
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace('"segmentation": ', '"labels": '))
    with pytest.raises(
        ValueError, match="got no segmentation. Train the scorer on shards that `spatialweave world` wrote"
    ):
        build(Recipe("scorer", 1, data={"folder": str(tmp_path)}))
