"""The tiny text encoder's words: those of the world's captions, in the order of the shipped embedding."""

import random

from safetensors import safe_open

from spatialweave.models.tiny import vocabulary
from spatialweave.models.tiny.text import UNKNOWN, explain_unknown, tokenize
from spatialweave.models.tiny.weights import TEXT_FILE
from spatialweave.models.world import captions
from spatialweave.models.world.scene import sample_scenes


def test_it_is_that_of_the_captions():
    assert set(vocabulary.VOCABULARY) == captions.WORDS and captions.WORDS.isdisjoint(vocabulary.SYNONYMS)
    assert vocabulary.SYNONYMS == captions._SYNONYMS


def test_text_is_read_as_the_captions_read_it():
    texts = [
        "",
        "A big Red sphere, behind the violet CUBE on a wood floor!",
        "tiles; Teal/turquoise 3 \u00e9 -- an",
    ]
    for text in texts:
        assert vocabulary.normalize_words(text) == captions.split_words(text)


def test_no_caption_has_an_unknown_word():
    texts = [captions.caption(scene, random.Random(i)) for i, scene in enumerate(sample_scenes(4, 300))]
    assert not (tokenize(texts) == UNKNOWN).any() and not any(explain_unknown(text) for text in texts)


def test_the_order_is_that_of_the_shipped_embedding():
    """Row i + 2 of the embedding is word i: sorted, as when it was trained."""
    assert list(vocabulary.VOCABULARY) == sorted(set(vocabulary.VOCABULARY))
    with safe_open(TEXT_FILE, "pt") as file:
        assert file.get_slice("words.weight").get_shape()[0] == len(vocabulary.VOCABULARY) + 2
