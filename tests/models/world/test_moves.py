"""Moves to definite positions: what their sentences say holds, in the scenes and in the renders."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from spatialweave.models.world.captions import true_relations
from spatialweave.models.world.edits import ground_axes
from spatialweave.models.world.moves import (
    DEPTH_GAP,
    EDITS,
    SIDE_GAP,
    STRATA,
    find_stratum,
    sample_moves,
    visible_share,
)
from spatialweave.models.world.render import render
from spatialweave.models.world.scene import with_objects


@pytest.fixture(scope="module")
def moves():
    return sample_moves(11, 240)


def along_axes(edit, shift):
    (rx, rz), (fx, fz) = ground_axes(edit.source.camera)
    return shift[0] * rx + shift[1] * rz, shift[0] * fx + shift[1] * fz


def test_a_move_is_a_function_of_its_index(moves):
    assert sample_moves(11, 7, start=100) == moves[100:107]
    assert sample_moves(11, 3, split="test") != moves[:3] and sample_moves(12, 3) != moves[:3]


def test_only_one_object_moves(moves):
    for edit in moves:
        a, b = edit.source, edit.target
        assert (a.camera, a.light, a.surroundings) == (b.camera, b.light, b.surroundings)
        assert [x == y for x, y in zip(a.objects, b.objects, strict=True)].count(False) == 1
        old, new = a.objects[edit.object], b.objects[edit.object]
        assert replace(old, position=new.position) == new
        assert edit.parameters["shift"] == pytest.approx(
            [n - o for n, o in zip(new.position, old.position, strict=True)]
        )


def test_directions_are_the_viewers_and_one_metre_is_left_out(moves):
    seen = set()
    for edit in moves:
        if "direction" not in edit.parameters:
            continue
        right, forward = along_axes(edit, edit.parameters["shift"])
        metres = edit.parameters["metres"]
        expected = {
            "left": (-metres, 0), "right": (metres, 0), "near": (0, -metres), "far": (0, metres),
        }  # fmt: skip
        assert (right, forward) == pytest.approx(expected[edit.parameters["direction"]], abs=1e-9)
        said = [
            words
            for words in ("one and a half metres", "half a metre", "one metre")
            if words in edit.instruction
        ]
        if not said:
            assert metres == 1.0
        seen.add((metres, bool(said)))
    assert seen == {(0.5, True), (1.0, True), (1.0, False), (1.5, True)}


def test_relations_hold_at_the_stated_gap(moves):
    counts = Counter()
    for edit in moves:
        kind = edit.parameters.get("relation")
        if kind is None or kind == "between":
            continue
        item, other = (edit.target.objects[i] for i in (edit.object, edit.parameters["reference"]))
        assert kind in true_relations(edit.target, edit.object, edit.parameters["reference"])
        apart = math.dist(item.position, other.position) - item.footprint - other.footprint
        assert apart == pytest.approx(SIDE_GAP if kind in ("left of", "right of") else DEPTH_GAP)
        words = "next to" if "next to" in edit.instruction else kind
        assert words in edit.instruction and edit.instruction.count("the ") >= 2
        counts[words] += 1
    assert set(counts) == {"left of", "right of", "in front of", "behind", "next to"}


def test_between_is_the_middle(moves):
    found = [edit for edit in moves if edit.parameters.get("relation") == "between"]
    assert found
    for edit in found:
        first, second = (edit.target.objects[i].position for i in edit.parameters["references"])
        middle = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
        assert edit.target.objects[edit.object].position == pytest.approx(middle)


def test_every_stratum_occurs_and_is_as_named(moves):
    counts = Counter(edit.parameters["stratum"] for edit in moves)
    assert set(counts) == set(STRATA) and min(counts.values()) >= 2 * EDITS
    assert all(find_stratum(edit) == edit.parameters["stratum"] for edit in moves)
    for stratum in STRATA:
        assert all(
            e.parameters["stratum"] == stratum for e in sample_moves(3, 6, stratum=stratum, split="test")
        )


def test_visible_share_follows_the_renders(moves):
    """Against the pixels that an object has alone, and those that it keeps beside the others."""
    occluded = [edit for edit in moves if edit.parameters["stratum"] == "occlusion"][:8]
    pairs = []
    for edit in occluded:
        together = render([edit.target], 96, 96).segmentation[0]
        for i, item in enumerate(edit.target.objects):
            alone = render([with_objects(edit.target, (item,))], 96, 96).segmentation[0]
            pairs.append(
                (visible_share(edit.target, i), float((together == i + 1).sum() / (alone == 1).sum()))
            )
    ours, true = torch.tensor(pairs).T
    # discs are coarse: what matters is that all is seen of what counts as whole, and something of the rest
    assert (ours - true).abs().mean() < 0.15 and true.min() > 0.1
    assert true[ours >= 0.92].min() > 0.7 and true[ours < 0.92].mean() < 0.9


def test_other_strata_are_refused():
    with pytest.raises(ValueError, match="stratum of moves"):
        sample_moves(0, 1, stratum="two")
    with pytest.raises(ValueError, match="max_objects of at least 2"):
        sample_moves(0, 1, max_objects=1)
