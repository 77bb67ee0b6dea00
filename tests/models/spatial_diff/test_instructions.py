"""Instructions in the grammar that the procedural world's edits are written in."""

from spatialweave.models.spatial_diff import instructions
from spatialweave.models.spatial_diff.grammar import VOCABULARY, WORDS, explain_instruction
from spatialweave.models.world import captions, edits


def test_words_are_those_of_the_training_data():
    assert instructions.DISTANCES == edits.DISTANCES
    assert set(instructions.DIRECTIONS) == set(edits.DIRECTIONS.values())
    assert set(instructions.RELATIONS) == {*captions.RELATION_WORDS.values(), "next to"}


def test_sentences_are_sentences_of_the_training_data():
    """Each written move of the world, but for its verb, can be written here from its parameters."""
    written = 0
    for edit in edits.sample_edits(3, 60, kinds=("move",), max_objects=3):
        verb, rest = edit.instruction.split(" ", 1)
        if verb not in ("move", "put", "place", "shift", "slide"):
            continue
        if "direction" in edit.parameters:
            direction = edits.DIRECTIONS[edit.parameters["direction"]]
            distance = edits.DISTANCES[edit.parameters["metres"]]
            name = rest.removesuffix(f" {distance} {direction}")
            said = instructions.move_along(name, direction, distance)
        else:
            relation = captions.RELATION_WORDS[edit.parameters["relation"]]
            name, reference = rest.split(f" {relation} ")
            said = instructions.move_beside(name, relation, reference)
        assert said == f"move {rest}"
        written += 1
    assert written == 60


def test_the_tiny_editor_understands_every_sentence():
    """No word of them is unknown to its text encoder, and both names are found."""
    red, blue, green = "the red ball", "the blue box", "the green cone"
    sentences = [
        *(
            instructions.move_along(red, direction, distance)
            for direction in instructions.DIRECTIONS
            for distance in instructions.DISTANCES.values()
        ),
        *(instructions.move_beside(red, relation, blue) for relation in instructions.RELATIONS),
        instructions.move_between(red, blue, green),
    ]
    assert len(sentences) == 12 + 5 + 1
    for sentence in sentences:
        assert explain_instruction(sentence) is None, sentence
        assert set(sentence.split()) <= set(VOCABULARY)
        assert len(sentence.split()) <= WORDS
