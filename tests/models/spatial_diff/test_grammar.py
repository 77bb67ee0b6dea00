"""The tiny editor's words: those of the world's moves and of the instruction builder."""

import pytest
import torch

from spatialweave.models.spatial_diff import grammar, instructions
from spatialweave.models.tiny.text import PAD, UNKNOWN
from spatialweave.models.world.moves import sample_moves
from spatialweave.models.world.scene import COLORS, SHAPES


def test_words_are_those_of_the_worlds_moves():
    texts = [edit.instruction for edit in sample_moves(5, 600)]
    assert {word for text in texts for word in text.split()} == set(grammar.VOCABULARY)
    assert list(grammar.VOCABULARY) == sorted(grammar.VOCABULARY)
    assert max(len(text.split()) for text in texts) <= grammar.WORDS
    assert grammar.COLORS == tuple(COLORS) and grammar.SHAPES == SHAPES


def test_every_instruction_of_the_builder_can_be_read():
    built = [
        instructions.move_along("red ball", direction, distance)
        for direction in instructions.DIRECTIONS
        for distance in instructions.DISTANCES.values()
    ]
    built += [instructions.move_beside("red ball", each, "blue box") for each in instructions.RELATIONS]
    built.append(instructions.move_between("red ball", "blue box", "green cone"))
    assert [grammar.explain_instruction(text) for text in built] == [None] * len(built)


def test_ids_are_the_words_rows():
    ids = grammar.tokenize_instructions(["Move the RED sphere, 3 meters", ""])
    expected = [2 + grammar.VOCABULARY.index(word) for word in ("move", "the", "red", "ball")]
    assert ids[0, :4].tolist() == expected and ids[0, 4] == UNKNOWN
    assert ids[0, 5] == 2 + grammar.VOCABULARY.index("metres")
    assert torch.equal(ids[1], torch.full((grammar.WORDS,), PAD))


def test_objects_are_found_in_their_order():
    found = grammar.find_objects("Put the red sphere between the cube and the teal cone")
    assert [str(each) for each in found] == ["red ball", "box", "cyan cone"]


def test_mirrored_words_exchange_left_and_right():
    text = "move the ball to the left of the box"
    assert grammar.mirror_instruction(text) == "move the ball to the right of the box"
    assert grammar.mirror_instruction(grammar.mirror_instruction(text)) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("move the red bal to the left", "'bal' (nearest: 'ball')"),
        ("move to the left", "names an object"),
        ("", "names an object"),
        ("move " + "the " * 20 + "ball", "at most 16 words, got 22"),
    ],
)
def test_what_cannot_be_read_gets_a_sentence(text, words):
    assert words in grammar.explain_instruction(text)
