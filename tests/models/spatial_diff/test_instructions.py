"""Instructions in the grammar that the procedural world's edits are written in."""

from spatialweave.models.spatial_diff import instructions
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
