"""Chinese prompts give the facts that their authors state, read by the captions' own parser."""

import json
from pathlib import Path

import pytest

from spatialweave.models.tiny.chinese import has_chinese, read_words, translate_chinese
from spatialweave.models.tiny.text import UNKNOWN, explain_prompt, tokenize
from spatialweave.models.tiny.vocabulary import normalize_words
from spatialweave.models.world import captions
from spatialweave.models.world.scene import COLORS, SHAPES

PROMPTS = json.loads(Path(__file__).with_name("chinese_prompts.json").read_text(encoding="utf-8"))
BALL_AND_BOX = "\u7ea2\u7403\u5728\u84dd\u76d2\u5b50{}"  # the red ball is {} the blue box
BOX_AND_BALL = "\u84dd\u76d2\u5b50{}\u7684\u7ea2\u7403"  # the red ball {} the blue box
SIDES = {"\u5de6\u8fb9": "left of", "\u53f3\u8fb9": "right of", "\u524d\u9762": "in front of"}
CAT = "\u732b"


@pytest.mark.parametrize("chinese", PROMPTS)
def test_a_prompt_of_the_grammar_is_the_english_caption(chinese):
    english = PROMPTS[chinese]
    assert translate_chinese(chinese) == (english, [])
    assert normalize_words(chinese) == captions.split_words(english)
    assert not (tokenize([chinese]) == UNKNOWN).any()
    assert explain_prompt(chinese) == f"The tiny model reads '{english}'."


def test_every_word_of_the_grammar_has_a_chinese_one():
    words = {}
    for kind, english in read_words().values():
        words.setdefault(kind, set()).add(english)
    assert words["color"] == set(COLORS) and words["shape"] == set(SHAPES)
    assert words["place"] == set(captions._PLACES.values()) and words["chain"] == set(captions._CHAINS)
    assert words["relation"] == {*captions.RELATION_WORDS.values(), "next to"}
    assert words["size"] == {"small", "large"} and words["shiny"] == {"shiny"}


def test_left_and_right_are_not_exchanged():
    """The relation, its subject and its reference, by the parser that the scorer uses."""
    for words, kind in (SIDES | {"\u540e\u9762": "behind"}).items():
        for text in (BALL_AND_BOX, BOX_AND_BALL):
            facts = captions.parse_caption(translate_chinese(text.format(words))[0])
            (relation,) = facts.relations
            assert relation.kind == kind
            assert facts.phrases[relation.first].color == "red"
            assert facts.phrases[relation.second].color == "blue"


def test_what_is_outside_the_grammar_is_named():
    behind = "\u540e\u9762"
    assert translate_chinese(f"{CAT}\u5728\u7ea2\u7403{behind}") == ("a red ball", [CAT, behind])
    said = explain_prompt(CAT)
    assert said.startswith(f"The tiny model does not know '{CAT}'; it knows a, and,")
    assert said.endswith("It reads the prompt as an empty one.")


def test_english_text_and_chinese_parts_of_it():
    assert not has_chinese("a red ball, \u041a\u0440\u0430\u0441\u043d\u044b\u0439 \u30dc\u30fc\u30eb?")
    assert translate_chinese("a red ball") == ("a red ball", [])
    assert translate_chinese("a red ball and \u84dd\u76d2\u5b50!") == ("a red ball and a blue box !", [])


RED, BALL = "\u043a\u0440\u0430\u0441\u043d\u044b\u0439", "\u0448\u0430\u0440"  # Russian
CIRCLE, SIZE, SPHERE, THREE = "\U0001f534", "gr\u00f6\u00dfe", "sph\u00e9re", "\u0663"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (f"a redd ball {CIRCLE}", ["'redd' (nearest: 'red')", f"'{CIRCLE}'"]),
        (f"{RED} {BALL}", [f"'{RED}'", f"'{BALL}'", "as an empty one"]),
        (f"a box of {SIZE}", [f"'{SIZE}'"]),
        (f"a bleu {SPHERE}", ["'bleu' (nearest: 'blue')", f"'{SPHERE}' (nearest: 'ball')"]),
        (f"boule {THREE}", [f"'{THREE}'"]),
    ],
)
def test_words_of_any_script_are_named(text, named):
    said = explain_prompt(text)
    assert all(part in said for part in named), said


def test_what_is_known_is_not_named():
    for text in ("", "A red ball, next to a BLUE box!", "a sphere + a cube", "a\u3000cone"):
        assert explain_prompt(text) is None
