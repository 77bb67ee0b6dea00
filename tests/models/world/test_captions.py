"""Captions say only what the rendered geometry shows, in known words, and can be read back."""

import random

import pytest

from spatialweave.models.world.captions import (
    WORDS,
    Phrase,
    caption,
    mirror_caption,
    parse_caption,
    split_words,
    true_relations,
)
from spatialweave.models.world.render import render
from spatialweave.models.world.scene import sample_scenes


@pytest.fixture(scope="module")
def shown():
    """Scenes with four captions each, and their frames."""
    scenes = sample_scenes(11, 80)
    texts = [[caption(scene, random.Random(f"{i}/{k}")) for k in range(4)] for i, scene in enumerate(scenes)]
    return scenes, texts, render(scenes, 64, 64, samples=1)


def check_relations(text, scene, labels, depth):
    """Sides by the centroids of the labels, depth order by the depth of the ground under each object's
    centre."""
    description = parse_caption(text)
    index = {item.name: i for i, item in enumerate(scene.objects)}
    for relation in description.relations:
        first, second = (
            index[f"{p.color} {p.shape}"]
            for p in (description.phrases[relation.first], description.phrases[relation.second])
        )
        x = [(labels == i + 1).nonzero()[:, 1].float().mean() for i in (first, second)]
        if relation.kind in ("left of", "right of"):
            assert (x[0] < x[1]) == (relation.kind == "left of"), text
        else:
            assert (depth[first] < depth[second]) == (relation.kind == "in front of"), text
    return len(description.relations)


def centre_depths(scene, pose):
    return [float(pose[2, :3] @ pose.new_tensor(item.center) + pose[2, 3]) for item in scene.objects]


def test_relations_hold_in_the_frames_and_in_their_mirror_images(shown):
    scenes, texts, frames = shown
    counted = 0
    for i, (scene, captions) in enumerate(zip(scenes, texts, strict=True)):
        labels, depths = frames.segmentation[i], centre_depths(scene, frames.world_to_cam[i])
        for text in captions:
            counted += check_relations(text, scene, labels, depths)
            check_relations(mirror_caption(text), scene, labels.flip(1), depths)
    assert counted > 150


def test_order_in_depth_shows_in_the_depth_map(shown):
    """What stands clearly in front has the nearer nearest point, unless it is much smaller than what is
    behind."""
    scenes, _, frames = shown
    agree = []
    for i, scene in enumerate(scenes):
        nearest = [
            float(frames.depth[i][frames.segmentation[i] == k + 1].median())
            for k in range(len(scene.objects))
        ]
        for a in range(len(scene.objects)):
            for b in range(a):
                for kind in {"in front of", "behind"} & set(true_relations(scene, a, b)):
                    agree.append((nearest[a] < nearest[b]) == (kind == "in front of"))
    assert len(agree) > 50 and sum(agree) / len(agree) > 0.97


def test_every_word_is_in_the_vocabulary(shown):
    for text in (text for texts in shown[1] for text in texts):
        assert set(split_words(text)) <= WORDS, text
        assert set(split_words(mirror_caption(text))) <= WORDS


def test_parsing_recovers_what_was_said(shown):
    scenes, texts, _ = shown
    for scene, captions in zip(scenes, texts, strict=True):
        by_name = {item.name: item for item in scene.objects}
        for text in captions:
            description = parse_caption(text)
            assert sorted(f"{p.color} {p.shape}" for p in description.phrases) == sorted(by_name)
            for phrase in description.phrases:
                item = by_name[f"{phrase.color} {phrase.shape}"]
                assert phrase.size in (None, item.size)
                assert item.material == "shiny" or not phrase.shiny
                assert phrase.words() in text
            assert description.place in (None, scene.surroundings.floor)


def test_mirroring_twice_gives_the_text_back():
    text = "a red ball to the left of a blue box and a cone, from left to right"
    assert mirror_caption(text) == "a red ball to the right of a blue box and a cone, from right to left"
    assert mirror_caption(mirror_caption(text)) == text


def test_prompts_of_people_are_understood():
    description = parse_caption("A big Red sphere, behind the violet CUBE on a wood floor!")
    assert description.phrases == (Phrase("ball", "red", "large"), Phrase("box", "purple"))
    assert [(r.kind, r.first, r.second) for r in description.relations] == [("behind", 0, 1)]
    assert description.place == "wooden"


def test_what_states_nothing_parses_to_nothing():
    for text in ("", "a photograph of a cat", "to the left of", "red"):
        assert parse_caption(text).phrases == () and parse_caption(text).relations == ()
