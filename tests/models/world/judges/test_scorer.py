"""The scorer reads rendered pictures back: against the scenes themselves, and against facts stated by
hand."""

import random
from collections import Counter

import pytest
import torch
from safetensors.torch import save_file

from spatialweave.models.core.weights.files import WeightsError
from spatialweave.models.world.captions import caption, parse_caption
from spatialweave.models.world.judges.scorer import KINDS, WEIGHTS, Scorer, Seen, SeenObject, judge_facts
from spatialweave.models.world.judges.scorer_evaluation import (
    corrupt_caption,
    scorer_accuracy,
    true_facts,
    turn_relation,
)
from spatialweave.models.world.judges.scorer_training import degrade
from spatialweave.models.world.render import render
from spatialweave.models.world.scene import sample_scenes


@pytest.fixture(scope="module")
def scorer():
    return Scorer.from_pretrained()


@pytest.fixture
def trio(make_scene, make_object):
    return make_scene(
        make_object("ball", "red", (-1.3, 0.4)),
        make_object("box", "blue", (0.3, 1.2), (0.35, 0.35, 0.35), 30.0),
        make_object("cone", "green", (1.1, -0.8), (0.5, 0.65, 0.5)),
        indoors=True,
    )


def seen(*objects, floor="grass"):
    return Seen(
        tuple(
            SeenObject(shape, color, size, x, 0.0, depth, (0, 0, 1, 1), 1.0)
            for color, shape, size, x, depth in objects
        ),
        floor,
    )


def test_what_ships_is_small(scorer):
    assert WEIGHTS.stat().st_size <= 600_000
    assert sum(parameter.numel() for parameter in scorer.network.parameters()) <= 250_000
    assert not scorer.network.training


def test_facts_are_judged_rightly_on_held_out_pictures(scorer):
    figures = scorer_accuracy(scorer, 64, seed=7)
    assert figures["facts"] > 350
    assert figures["accuracy"] >= 0.95, figures
    assert figures["turned"] >= 0.9 and figures["true_captions"] >= 0.9, figures


def test_soft_and_tinted_pictures_are_judged_nearly_as_well(scorer):
    generator = torch.Generator().manual_seed(0)

    def change(image):
        return degrade(image.permute(0, 3, 1, 2), generator).permute(0, 2, 3, 1)

    figures = scorer_accuracy(scorer, 32, seed=7, change=change)
    assert figures["accuracy"] >= 0.9, figures


def test_objects_are_read_where_they_stand(scorer, trio):
    frames = render([trio], 128, 128)
    (found,) = scorer.read(frames.image)
    assert Counter(item.name for item in found) == Counter(item.name for item in trio.objects)
    assert [item.name for item in found] == ["blue box", "red ball", "green cone"], "nearest first"
    for label, item in enumerate(trio.objects, 1):
        (read,) = (other for other in found if other.name == item.name)
        rows, columns = torch.nonzero(frames.segmentation[0] == label, as_tuple=True)
        exact = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert max(abs(a - float(b)) for a, b in zip(read.box, exact, strict=True)) <= 6
        assert abs(64 * (read.x + 1) - float(columns.float().mean()) - 0.5) < 6 and 0.5 < read.confidence <= 1


@pytest.mark.parametrize("height, width", [(128, 192), (200, 150), (256, 256), (100, 100)])
def test_other_sizes_read_the_same(scorer, trio, height, width):
    (found,) = scorer.read(render([trio], height, width).image)
    assert {item.name for item in found} == {"red ball", "blue box", "green cone"}
    for item in found:
        left, top, right, bottom = item.box
        assert -8 < left < right < width + 8 and -8 < top < bottom < height + 8
        assert left < width / 2 + item.x * min(height, width) / 2 < right


def test_a_mirrored_picture_mirrors_the_sides(scorer, trio):
    image = render([trio], 128, 128).image
    plain, mirrored = (
        {item.name: item.x for item in found} for found in scorer.read(torch.cat((image, image.flip(2))))
    )
    assert plain.keys() == mirrored.keys()
    assert all(abs(plain[name] + mirrored[name]) < 0.06 for name in plain)


def test_an_empty_picture_shows_nothing(scorer):
    gray = torch.full((1, 128, 128, 3), 0.5)
    assert scorer.read(gray) == [[]]
    (judgement,) = scorer.judge(gray, ["a red ball"])
    assert judgement.agreement == 0 and judgement.seen.objects == ()


def test_pictures_are_judged_against_prompts(scorer, trio):
    image = render([trio], 128, 128).image.expand(3, -1, -1, -1)
    texts = [
        "a red ball to the left of a blue box",
        "a red ball to the right of a blue box",
        "a yellow ball behind a green cone",
    ]
    right, turned, absent = scorer.judge(image, texts)
    assert [fact.holds for fact in right.facts] == [True, True, True] and right.agreement == 1
    assert [(fact.kind, fact.holds) for fact in turned.facts] == [
        ("object", True),
        ("object", True),
        ("side", False),
    ]
    assert [(fact.kind, fact.holds) for fact in absent.facts] == [
        ("object", False),
        ("object", True),
        ("depth order", False),
    ]
    assert absent.agreement == pytest.approx(1 / 3)


def test_facts_by_hand():
    picture = seen(("red", "ball", "small", -0.5, 4.0), ("blue", "box", "large", 0.3, 6.0))

    def holds(text, kinds=KINDS):
        return [fact.holds for fact in judge_facts(text, picture, kinds)]

    assert holds("a red ball") == [True] and holds("a blue ball") == [False] and holds("a ball") == [True]
    assert holds("a small red ball in front of a large blue box on grass") == [True] * 6
    assert holds("a large red ball behind a blue box on sand") == [True, False, True, False, False]
    assert holds("a large red ball behind a blue box on sand", ("object", "depth order")) == [
        True,
        True,
        False,
    ]
    assert holds("a red ball and a red ball") == [True, False], "one object is not two"
    assert holds("") == [] == holds("a portrait of a dog")


def test_facts_words_say_what_was_judged():
    picture = seen(("red", "ball", "small", -0.5, 4.0), ("blue", "box", "large", 0.3, 6.0))
    facts = judge_facts("an orange ball to the left of a blue box", picture)
    assert [fact.words for fact in facts] == [
        "an orange ball",
        "a blue box",
        "an orange ball to the left of a blue box",
    ]


def test_the_matching_that_makes_most_true_counts():
    picture = seen(
        ("red", "box", "small", 0.6, 4.0),
        ("red", "ball", "small", 0.0, 5.0),
        ("blue", "box", "small", -0.6, 6.0),
    )
    assert all(fact.holds for fact in judge_facts("a box to the left of a ball", picture))
    assert all(fact.holds for fact in judge_facts("a box to the right of a ball", picture))
    assert not all(fact.holds for fact in judge_facts("a red box to the left of a ball", picture))


def test_things_too_near_to_tell_stand_in_no_relation():
    picture = seen(("red", "ball", "small", 0.0, 5.0), ("blue", "box", "small", 0.01, 5.05))
    for kind in ("to the left of", "to the right of", "in front of", "behind"):
        assert [fact.holds for fact in judge_facts(f"a red ball {kind} a blue box", picture)] == [
            True,
            True,
            False,
        ]


def test_a_prompt_of_many_equal_words_ends():
    crowd = seen(*[("red", "ball", "small", x / 5, 5.0) for x in range(5)])
    facts = judge_facts(" ".join(["ball"] * 40), crowd)
    assert [fact.holds for fact in facts] == [True] * 5 + [False] * 35
    with pytest.raises(ValueError, match="at most 50 objects, got 51"):
        judge_facts("ball " * 51, crowd)


def test_true_captions_are_true_and_corrupted_ones_are_not():
    for i, scene in enumerate(sample_scenes(31, 150, split="test")):
        rng = random.Random(i)
        text = caption(scene, rng)
        wrong = corrupt_caption(scene, text, rng)
        assert all(true_facts(scene, text)), text
        assert not all(true_facts(scene, wrong)), (text, wrong)
        assert len(parse_caption(text).phrases) == len(parse_caption(wrong).phrases)


def test_turned_relations():
    assert turn_relation("a red ball behind a box") == "a red ball in front of a box"
    assert turn_relation("a red ball in front of a box") == "a red ball behind a box"
    assert turn_relation("a cone to the left of a box") == "a cone to the right of a box"
    assert turn_relation("a cone and a box from front to back") == "a cone and a box from back to front"


def test_bad_pictures_and_counts_are_refused(scorer):
    with pytest.raises(
        ValueError,
        match=r"Expected images \(b, h, w, 3\) of at least 8 x 8 pixels in \[0, 1\], got \(1, 3, 64, 64\)",
    ):
        scorer.read(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="a text for each of 2 images, got 1"):
        scorer.judge(torch.zeros(2, 64, 64, 3), ["a ball"])
    with pytest.raises(ValueError, match="at least 1 scene for the scorer's evaluation, got 0"):
        scorer_accuracy(scorer, 0)


def test_bad_weights_are_named(tmp_path):
    damaged, foreign = tmp_path / "damaged.safetensors", tmp_path / "foreign.safetensors"
    damaged.write_bytes(WEIGHTS.read_bytes()[:1000])
    words = {"words.weight": torch.zeros(3, 2), "places.weight": torch.zeros(3, 2)}
    save_file(words, foreign, metadata={"spatialweave": "tiny text encoder"})
    with pytest.raises(WeightsError, match="got no file of this name. Check the path"):
        Scorer.from_pretrained(tmp_path / "none.safetensors")
    with pytest.raises(WeightsError, match="damaged"):
        Scorer.from_pretrained(damaged)
    with pytest.raises(
        WeightsError, match="for the world's scorer, which is SpatialWeave's tiny text encoder, got others"
    ):
        Scorer.from_pretrained(foreign)
