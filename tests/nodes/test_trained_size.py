"""A size far from the trained one is named under the node, and an image's depth can be sampled at that size
and brought back.
"""

import pytest

pytestmark = pytest.mark.comfyui


@pytest.fixture(scope="module")
def sizes(inside, tiny_weights):
    inside("inside_sampling.py", "start", weights=tiny_weights)
    return lambda function, **kwargs: inside("inside_trained_size.py", function, **kwargs)


def test_a_file_says_what_it_was_trained_at_else_its_preset_does(sizes, tmp_path):
    assert sizes("stated", folder=str(tmp_path), size="96") == 96
    assert sizes("stated", folder=str(tmp_path), size=None) == 128
    assert sizes("stated", folder=str(tmp_path), size="many") == 128


def test_larger_sizes_are_named_with_the_remedy_of_each_node(sizes):
    told = sizes("notes", width=64, height=32)
    sentence = (
        "This model was trained at 32 x 32 pixels; larger sizes, like this 32 x 64 (height x width), repeat "
        "objects and distort the depth. "
    )
    remedies = (
        "Sample at that size and enlarge the image, then the depth with Upscale Depth.",
        "Set sample_at to trained size.",
        "Set sample_at to trained size.",
        "Scale the inputs to that size.",
    )
    assert told == [[sentence + remedy] for remedy in remedies]


def test_where_nothing_happened_nothing_is_said(sizes):
    assert sizes("notes", width=48, height=32) == [[], [], [], []]


def test_an_image_is_sampled_at_the_trained_size_and_its_depth_is_brought_back(sizes, tmp_path):
    result = sizes("guided", folder=str(tmp_path))
    assert result["said"] == [
        "Sampled at 43 x 64 (height x width), the trained size; Decode Joint Latent brings the depth back to "
        "128 x 192, guided by the image.",
        "43 x 64 (height x width) is not a multiple of 16: it was sampled at 48 x 64, with the edges of the "
        "inputs replicated, and the result cropped back.",
    ]
    assert result["sampled"] == [[1, 32, 3, 4], [1, 1, 48, 64]]
    assert result["image"] and result["view"] == [[1, 128, 192], True]
    # the step of depth lies between the two columns between which the image's edge lies; bilinear scaling by
    # three would share it out among three or four columns
    assert max(range(5), key=result["edge"].__getitem__) == 2
    assert result["edge"][2] > 5 * max(result["edge"][:2] + result["edge"][3:])
    assert result["others"] == [True, True]
    assert result["grown"] == [1, 128, 128]


def test_what_is_small_stays_as_it_is_without_a_word(sizes):
    assert sizes("small_ones_stay") == [[1, 1, 48, 48], "", False]


def test_a_given_depth_is_scaled_too(sizes):
    shapes, said = sizes("depth_scaled")
    assert shapes == [[1, 32, 2, 4], [1, 1, 32, 64]]
    assert said == "The depth was resized from 96 x 192 to 32 x 64 (height x width)."


def test_another_choice_is_refused(sizes):
    assert sizes("other_choice") == (
        "Expected sample_at as one of input's size, trained size, got 'any'. Choose one of them."
    )
