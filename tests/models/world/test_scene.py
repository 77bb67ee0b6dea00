"""Scenes as data: reproducible, apart by split, whole after a trip through JSON, and as their captions need
them."""

import json
import math

import pytest

from spatialweave.models.world.scene import is_placeable, sample_scenes, scene_from_json


def test_same_seed_same_scenes_and_a_scene_is_independent_of_the_batch():
    assert sample_scenes(5, 6) == sample_scenes(5, 6)
    assert sample_scenes(5, 6)[4:] == sample_scenes(5, 2, start=4)
    assert sample_scenes(5, 6) != sample_scenes(6, 6)


def test_splits_share_no_scene():
    train, test = (
        {json.dumps(scene.to_json()) for scene in sample_scenes(0, 200, split=split)}
        for split in ("train", "test")
    )
    assert len(train) == len(test) == 200 and not train & test


def test_json_round_trip():
    for scene in sample_scenes(1, 20, max_objects=6):
        assert scene_from_json(json.loads(json.dumps(scene.to_json()))) == scene


def test_objects_are_named_apart_stand_free_and_lie_in_the_picture():
    for scene in sample_scenes(2, 100):
        assert len({item.name for item in scene.objects}) == len(scene.objects)
        for i, item in enumerate(scene.objects):
            assert is_placeable(item, scene.objects[:i], scene.camera)
            for other in scene.objects[:i]:
                assert math.dist(item.position, other.position) > item.footprint + other.footprint


def test_foreign_splits_and_counts_are_refused():
    with pytest.raises(ValueError, match="Expected a split of the world, train or test, got 'val'"):
        sample_scenes(0, 1, split="val")
    with pytest.raises(ValueError, match="Expected max_objects from 1 to 6, got 9"):
        sample_scenes(0, 1, max_objects=9)
