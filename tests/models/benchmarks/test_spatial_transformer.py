"""The figures of the spatial transformer's evaluation, of depths whose faults are known."""

import dataclasses
import json

import pytest
import torch

from spatialweave.models.benchmarks import spatial_transformer as benchmark
from spatialweave.models.benchmarks.held_out import HELD_OUT_SEED
from spatialweave.models.benchmarks.report import write_figures
from spatialweave.models.spatial_fusion.config import find_transformer_preset
from spatialweave.models.spatial_fusion.language import make_language, save_language, size_language
from spatialweave.models.spatial_fusion.network import DepthPlan, SpatialTransformer
from spatialweave.models.spatial_fusion.training import init_spatial_weights
from spatialweave.models.spatial_fusion.weights import save_spatial_transformer
from spatialweave.models.world.captions import parse_caption
from spatialweave.models.world.render import render_geometry
from spatialweave.models.world.scene import sample_scenes

PLAN = benchmark.InferencePlan(count=10, seeds=2, training=24, batch=4)
SIZE = DepthPlan((8, 8), (32, 32))


def held_out(count):
    return sample_scenes(HELD_OUT_SEED, count, split="test")


@pytest.fixture(scope="module")
def exact():
    """The figures of depth that is each scene's rendering, in another unit, with the sky at 100."""
    depth = render_geometry(held_out(PLAN.count), *SIZE.size)[0] * 7
    rows = torch.arange(PLAN.count).split(PLAN.batch)
    calls = iter([part for part in rows for _ in range(PLAN.seeds)])
    return benchmark.compare_depths(lambda captions: depth[next(calls)].clamp(max=700), SIZE, PLAN)


def test_a_rendering_is_without_a_fault_and_another_scenes_is_not(exact):
    found = exact["inferred"]
    assert found["absrel"]["mean"] < 1e-6 and found["absrel"]["of"] == PLAN.count
    for name in ("delta1", "order", "order_stated"):
        assert found[name]["mean"] == 1 and found[name]["interval"] == [1, 1], name
    assert 2 <= found["order_stated"]["of"] <= found["order"]["of"] < PLAN.count
    gain = found["absrel.against_median"]
    assert gain["mean"] == pytest.approx(-exact["median"]["absrel"]["mean"], abs=1e-6)
    assert gain["interval"][0] <= gain["mean"] <= gain["interval"][1] < 0
    assert exact["other_caption"]["absrel"]["mean"] > 0.1 and exact["other_caption"]["delta1"]["mean"] < 0.9


def test_the_oracle_errs_less_than_the_median_scenes(exact):
    for other in ("median", "median_floor", "other_caption"):
        errors = [exact[name]["absrel"]["mean"] for name in ("inferred", "rendered", other)]
        assert errors == sorted(errors) and errors[1] > 0.005, other
    assert exact["median"]["absrel.against_median"]["interval"] == [0, 0]


def test_the_median_scene_is_that_of_the_training_scenes_with_their_mirror_images():
    median = benchmark.find_median_scene(PLAN, SIZE.size)
    depth = render_geometry(sample_scenes(HELD_OUT_SEED, PLAN.training, split="train"), *SIZE.size)[0]
    units = [row / row[row.isfinite()].mean() for row in depth]
    column = torch.stack([unit[20, x] for unit in units for x in (5, 26)])
    assert float(median.whole[20, 5]) == float(column.sort().values[(len(column) - 1) // 2])
    assert torch.equal(median.whole, median.whole.flip(-1)) and not median.whole.isnan().any()
    scene = held_out(1)[0]
    strange = dataclasses.replace(scene, surroundings=dataclasses.replace(scene.surroundings, floor="ice"))
    assert torch.equal(median.of(strange), median.whole) and len(median.by_floor) > 3


def test_the_order_that_a_caption_states_is_between_the_scenes_own_objects():
    stated = 0
    for index, scene in enumerate(held_out(40)):
        pairs = {frozenset(pair): sign for pair, sign in benchmark.clear_pairs(scene)}
        names = [item.name for item in scene.objects]
        for text in benchmark.draw_scene_captions(scene, index, 2):
            described = parse_caption(text)
            for relation in described.relations:
                ends = [described.phrases[i] for i in (relation.first, relation.second)]
                first, second = (names.index(f"{phrase.color} {phrase.shape}") for phrase in ends)
                among = frozenset((first, second)) in benchmark.state_pairs(scene, text)
                assert among == (relation.kind in benchmark.BEHIND)
                if among:
                    stated += 1
                    farther = relation.kind == "behind"
                    assert (pairs[frozenset((first, second))] > 0) == (farther == (first < second))
    assert stated > 5


def test_files_of_both_trainings_give_figures(tmp_path):
    pytest.importorskip("transformers", reason="the trainer's extra is not installed")
    config = dataclasses.replace(
        find_transformer_preset("tiny"), patch=4, dpt_features=8, dpt_out_channels=(8, 8, 8, 8)
    )
    network = SpatialTransformer(config)
    init_spatial_weights(network, torch.Generator().manual_seed(0))
    sizes = size_language(config)
    weights = save_spatial_transformer(tmp_path / "spatial.safetensors", network)
    language = save_language(tmp_path / "lm.safetensors", sizes, make_language(sizes).state_dict())
    plan = benchmark.InferencePlan(count=3, seeds=1, training=4, batch=2)
    report = benchmark.evaluate_spatial_transformer(weights, language, plan=plan)
    write_figures(tmp_path / "figures.json", report)
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["settings"]["count"] == 3 and set(found["variants"]) == {
        "inferred", "other_caption", "median", "median_floor", "rendered",
    }  # fmt: skip
    assert found["variants"]["inferred"]["absrel"]["mean"] > found["variants"]["rendered"]["absrel"]["mean"]
    with pytest.raises(ValueError, match="Expected at least 2 scenes"):
        benchmark.InferencePlan(count=1)
