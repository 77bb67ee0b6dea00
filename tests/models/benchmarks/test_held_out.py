"""The held-out scenes: fixed, of the test split, independent of the batch."""

import torch

from spatialweave.models.benchmarks.held_out import held_out_batches, hold_out
from spatialweave.models.world.captions import parse_caption
from spatialweave.models.world.scene import sample_scenes


def test_batches_join_to_the_same_scenes_and_captions():
    scenes, captions = hold_out(0, 5)
    batches = list(held_out_batches(5, 2, 16))
    assert [len(batch.scenes) for batch in batches] == [2, 2, 1]
    assert [scene for batch in batches for scene in batch.scenes] == scenes
    assert [caption for batch in batches for caption in batch.captions] == captions
    assert torch.cat([batch.frames.image for batch in batches]).shape == (5, 16, 16, 3)


def test_they_are_of_the_test_split_and_their_captions_name_their_objects():
    scenes, captions = hold_out(3, 4)
    assert scenes == sample_scenes(0, 4, split="test", start=3)
    for scene, caption in zip(scenes, captions, strict=True):
        names = {f"{phrase.color} {phrase.shape}" for phrase in parse_caption(caption).phrases}
        assert names == {item.name for item in scene.objects}


def test_another_seed_has_other_scenes():
    assert hold_out(0, 3)[0] != hold_out(0, 3, seed=7)[0]
