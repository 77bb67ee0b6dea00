"""Spatial Depth in a real ComfyUI, over small random text encoders of core's classes."""

import functools

import pytest

pytestmark = pytest.mark.comfyui
FILE = "inside_spatial_depth.py"


@pytest.mark.parametrize("pairing", ["uniform", "shallow", "deep"])
def test_depth_over_core_is_that_over_transformers(inside, pairing):
    seen = inside(FILE, "two_hosts", pairing=pairing)
    limit = 1e-4 * max(1, seen["size"])
    assert seen["gap"] < limit and seen["edit gap"] < limit and seen["confidence"] < limit, seen
    assert seen["shapes"] == [[2, 42, 56], [2, 35, 56]] and seen["lengths"][0] > seen["lengths"][1]
    assert seen["prompts"] > 100 * limit and seen["source"] > 10 * limit and seen["spread"] > 0.01, seen


def test_positions_are_those_of_an_image_behind_its_text(inside):
    seen = inside(FILE, "positions")
    assert seen["core"] < 1e-4 and seen["transformers"] < 1e-4 and seen["moved"] > 1, seen


def test_training_puts_prompts_into_cores_template(inside):
    trained, core = inside(FILE, "templates")
    assert trained == core and "{}" in core


def test_the_pairings_give_other_depth(inside):
    assert min(inside(FILE, "pairings_differ")) > 1e-3


@pytest.fixture(scope="module")
def recording(inside):
    """What is seen of each kind, once for both tests."""
    return functools.cache(lambda kind: inside(FILE, "recording", kind=kind))


@pytest.mark.parametrize("kind", ["omnigen2", "z_image"])
def test_the_encoding_is_bit_equal_while_recorded(recording, kind):
    seen = recording(kind)
    assert seen["during"] and seen["after"] and seen["hooks"] == [12, 0], seen
    assert seen["shape"] == [1, 1, seen["tokens"], 128]


@pytest.mark.parametrize("kind", ["omnigen2", "z_image"])
def test_keys_are_computed_again_where_the_attention_returns_none(recording, kind):
    seen = recording(kind)
    assert seen["projected"] < 1e-5 * seen["size"] and seen["size"] > 0.5


def test_recorded_keys_and_values_are_those_of_the_layers_attention(inside):
    seen = inside(FILE, "attention_again")
    assert seen["gap"] < 1e-5 * max(1, seen["size"]) and seen["size"] > 0.1


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ("an error in the encoding", "RuntimeError"),
        ("an error in the spatial transformer", "RuntimeError"),
        ("Cancel in the encoding", "InterruptProcessingException"),
        ("Cancel in the spatial transformer", "InterruptProcessingException"),
    ],
)
def test_nothing_stays_after_a_run_that_ended(inside, how, kind):
    seen = inside(FILE, "ended", how=how)
    assert seen["kind"] == kind and seen["hooks"] == [0, 0] and seen["encoding"] and seen["depth"], seen


def test_cancel_ends_the_encoding_and_the_spatial_transformer_between_layers(inside):
    assert inside(FILE, "cancel_is_seen") == [[], []]


def test_weights_of_words_do_not_act_and_this_is_said(inside):
    seen = inside(FILE, "weighted")
    assert seen["same tokens"] and seen["gap"] < 1e-5 * seen["size"]
    assert any("(red:1.4)" in note and "count alike" in note for note in seen["notes"])
    assert len(seen["silent"]) == 1 and "56 x 42 pixels" in seen["silent"][0]


def test_another_language_model_of_the_same_attention_serves(inside):
    seen = inside(FILE, "another_encoder")
    assert seen["shape"] == [1, 42, 56] and seen["gap"] > 1e-3


def test_prompts_and_images_as_lists_and_batches(inside):
    seen = inside(FILE, "many")
    assert seen["rows"] == [2, 2, 3] and seen["lists"] < 1e-5 * seen["size"]
    assert seen["row"] < 1e-4 * seen["size"], seen


SENTENCES = {
    "empty": "Expected a prompt, got an empty one. Describe",
    "second empty": "Expected a prompt, got an empty one as prompt 2 of 2. Describe",
    "three for two": "Expected as many prompts as source images, or one of either, got 3 prompts and 2",
    "two sizes": "Expected source images of one size, got 64 x 30 and 64 x 40. Resize",
    "flat": "Expected IMAGE (b, h, w, 3) at image, got (40, 64, 3) float32.",
    "the tiny": "of ComfyUI's Llama class, got none in TinyCondModel. Load OmniGen2's",
    "qwen35": "got Qwen35TransformerBlock in layer 0 of Qwen35Transformer, whose keys cannot be read.",
    "two": "Expected a CLIP with one language model of ComfyUI's Llama class, got 2 in ModuleList.",
    "five layers": "6 layers of width 256, 1 key heads of 128), as the spatial transformer, got "
    "Omnigen2TEModel_ with 5 layers of width 256",
    "narrow": "got Omnigen2TEModel_ with 6 layers of width 128, 1 key heads of 128. Load the",
    "a number": "Expected a CLIP with a language model, got 3. Load OmniGen2's",
    "no transformer": "Expected a spatial transformer, got 3. Wire that of Load Spatial Transformer.",
    "two widths": "Expected one width for all prompts, got a list of 2. Use",
}  # fmt: skip


def test_bad_input_is_refused_in_a_sentence(inside):
    said = inside(FILE, "refusals")
    assert set(said) == set(SENTENCES)
    for name, words in SENTENCES.items():
        assert said[name] and words in said[name], (name, said[name])


def test_core_loads_checks_and_runs_the_two_nodes(inside):
    seen = inside(FILE, "graph")
    assert seen == {
        "errors": [], "shape": [1, 42, 56], "gap": 0.0, "units": "relative", "valid": True,
    }, seen  # fmt: skip


def test_wrong_and_missing_files_are_refused_by_what_they_are(inside):
    seen = inside(FILE, "graph", kind="adapter")
    assert "Expected a spatial transformer of SpatialWeave" in seen["errors"][0]
    assert "got SpatialWeave's depth adapter" in seen["errors"][0]
    seen = inside(FILE, "graph", kind="missing")
    assert "Expected missing.safetensors in ComfyUI's models/model_patches, got no such" in seen["invalid"]


def test_depth_adapter_takes_the_inferred_view(inside):
    seen = inside(FILE, "follows")
    assert seen["change"] > 0.01 and seen["shape"] == [2, 16, 8, 12]
