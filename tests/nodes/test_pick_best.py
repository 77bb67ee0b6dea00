"""The best of several candidates in a real ComfyUI, where the truth says which it is."""

import pytest

pytestmark = pytest.mark.comfyui


@pytest.fixture(scope="module")
def picking(inside, tiny_weights):
    inside("inside_sampling.py", "start", weights=tiny_weights)
    return lambda function, **kwargs: inside("inside_pick_best.py", function, **kwargs)


def test_the_depth_nearest_to_the_second_estimate_is_kept_with_its_image_and_latent(picking):
    """At any scale; one without a pixel in common is never kept."""
    found = picking("by_agreement")
    assert found["index"] == 1 and found["under"]
    assert found["image"] and found["view"] and found["latent"] and found["kind"] == "JointSamples"
    head, *lines = found["text"]
    assert head == "AbsRel against the second estimate, aligned by scale, smaller is better"
    values = [float(line.split(": ")[1].split(" ")[0]) for line in lines]
    assert values[:3] == pytest.approx([0.1, 0.02, 0.2], rel=0.15) and values[3] != values[3]
    assert [line.endswith("(kept)") for line in lines] == [False, True, False, False]


@pytest.mark.parametrize(
    ("scores", "order", "index"),
    [
        ([0.1, 0.9, 0.9], "larger is better", 1),
        ([0.1, 0.9, 0.05], "smaller is better", 2),
        ([float("nan"), 1.0, float("inf")], "larger is better", 1),
    ],
)
@pytest.mark.parametrize("plain", [True, False], ids=["a mask each", "one mask"])
def test_any_scores_choose(picking, scores, order, index, plain):
    found = picking("by_scores", scores=scores, order=order, plain=plain)
    assert found.pop("index") == index and found.pop("batch_index") == [5 + index]
    assert all(found.values()), found


REFUSALS = {
    "neither": "Expected a reference or scores, got neither. Connect one of them.",
    "both": "Expected a reference or scores, got both. Connect one of them.",
    "a reference alone": "Expected a view to compare the reference with, got none.",
    "another count": "Expected 1 or 4 depth maps in the second estimate of 4 candidates, got 2.",
    "too few scores": "Expected 2 candidates, one for each score, got 3 at image.",
    "nothing to pick from": "Expected 2 candidates, one for each score, got none.",
    "no number": "Expected a finite score among the candidates, got [nan, nan, nan, nan].",
    "another size": "Expected",
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_ranked_is_refused(picking, case):
    said = picking("refused", case=case)
    assert said and said.startswith(REFUSALS[case]) and "\n" not in said


def test_comfyui_takes_it_with_nothing_connected(picking):
    """So that our own sentence says what to connect."""
    assert picking("in_a_graph")
