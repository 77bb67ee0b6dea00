"""The figures of the depth adapter's evaluation, of images whose faults are known."""

import dataclasses

import pytest
import torch

from spatialweave.models.benchmarks.held_out import held_out_batches
from spatialweave.models.benchmarks.spatial_fusion import (
    VARIANTS,
    AdapterPlan,
    describe_variant,
    evaluate_depth_adapter,
    judge_images,
    sample_image,
)
from spatialweave.models.spatial_fusion.config import find_preset
from spatialweave.models.spatial_fusion.network import AdapterNetwork
from spatialweave.models.spatial_fusion.weights import save_adapter
from spatialweave.models.world.judges.predictor import Predictor
from spatialweave.models.world.judges.scorer import Scorer

pytest.importorskip("diffusers", reason="the trainer's extra is not installed")


@pytest.fixture(scope="module")
def scenes():
    return next(held_out_batches(6, 6, 128))


@pytest.fixture(scope="module")
def judges():
    return Scorer.from_pretrained(), Predictor.from_pretrained()


def figures_of(image, name, scenes, judges):
    counts, maps = {"relation": [], "objects": []}, {}
    judge_images(image, name, scenes, judges, counts, maps)
    return describe_variant(counts, {0: maps})


def test_renderings_hold_and_other_scenes_renderings_do_not(scenes, judges):
    right = figures_of(scenes.frames.image, "rendered", scenes, judges)
    wrong = figures_of(scenes.frames.image.roll(1, 0), "rendered", scenes, judges)
    assert right["objects"]["share"] > 0.85 and right["objects"]["share"] > wrong["objects"]["share"] + 0.2
    assert right["depth_absrel"]["mean"] < 0.5 * wrong["depth_absrel"]["mean"]
    assert right["segmentation_miou"]["mean"] > wrong["segmentation_miou"]["mean"] + 0.3
    low, high = right["objects"]["interval"]
    assert low < right["objects"]["share"] <= high and right["objects"]["of"] >= 6


def test_other_depth_is_judged_against_the_depth_that_was_given(scenes, judges):
    moved = figures_of(scenes.frames.image.roll(-1, 0), "other_depth", scenes, judges)
    right = figures_of(scenes.frames.image, "rendered", scenes, judges)
    for name in ("depth_absrel", "segmentation_miou"):
        # the same numbers in another order, averaged in float32
        assert moved[name]["mean"] == pytest.approx(right[name]["mean"], rel=1e-6)


def test_an_adapter_of_zeros_samples_the_base_to_the_last_bit(scenes):
    from spatialweave.models.intrinsic_ldm.backbones import load_tiny

    base, plan = load_tiny(), AdapterPlan(count=2, batch=2, steps=2)
    plain = sample_image(base, scenes.captions[:2], plan, 3, None)
    zero = sample_image(base, scenes.captions[:2], plan, 3, torch.zeros(2, 8, 16, 16))
    late = sample_image(
        base, scenes.captions[:2], dataclasses.replace(plan, end=0.0), 3, torch.ones(2, 8, 16, 16)
    )
    some = sample_image(base, scenes.captions[:2], plan, 3, torch.ones(2, 8, 16, 16))
    assert torch.equal(plain, zero) and torch.equal(plain, late) and not torch.equal(plain, some)


def test_evaluation_reports_every_variant(tmp_path):
    adapter = AdapterNetwork(find_preset("tiny"))
    torch.nn.init.normal_(adapter.out.weight, std=0.02, generator=torch.Generator().manual_seed(0))
    path = save_adapter(tmp_path / "a.safetensors", adapter)
    figures = evaluate_depth_adapter(path, plan=AdapterPlan(count=2, batch=2, steps=2))
    assert tuple(figures["variants"]) == VARIANTS and figures["overhead"] > 0
    for variant in figures["variants"].values():
        assert set(variant) == {"relation", "objects", "depth_absrel", "segmentation_miou"}
    assert figures["settings"]["count"] == 2


def test_a_plan_is_checked():
    with pytest.raises(ValueError, match="end from 0 to 1"):
        AdapterPlan(end=1.5)
