"""Ask about Views in a real ComfyUI: a small random Joy encoder,
beside transformers' Qwen3-VL on the same weights.
"""

import pytest

pytestmark = pytest.mark.comfyui
FILE = "inside_joyai_ask.py"
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
CHAT = (  # as the released chat template writes the release's own conversation
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n{}Is the ball left of the box (yes/no)?\n"
    "\u7403\u5728\u54ea\u91cc\uff1f<|im_end|>\n<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def asking(inside, tiny_weights):
    inside("inside_sampling.py", "start", weights=tiny_weights)
    return lambda function, **kwargs: inside(FILE, function, **kwargs)


@pytest.mark.parametrize("views", [1, 2, 3, 4])
def test_greedy_answers_equal_those_of_transformers(asking, views):
    """Images of four sizes, three of them no multiple of 32; theirs are resized in 8 bits,
    ours in float, hence the tolerance.
    """
    seen = asking("against_transformers", views=views, chat=CHAT.format(IMAGE * views))
    assert seen["tokens"] == seen["want"] and len(set(seen["tokens"])) > 6
    assert seen["text"] == seen["wanted"] and seen["prompt"][0] == seen["prompt"][1]
    gap, deviation = seen["logits"]
    assert deviation > 1 and gap < (2e-5 if views == 1 else 0.01), seen["logits"]


def test_cores_generate_text_answers_otherwise(asking):
    """What the node is for: without M-RoPE and DeepStack the same weights,
    picture and prompt give another text.
    """
    assert asking("generate_text") != asking("ask")


def test_cores_plain_class_with_the_same_weights_answers_the_same(asking):
    plain, joy = asking("plain_class")
    assert plain == joy and joy


def test_a_batch_counts_as_several_views_in_its_order(asking):
    batch, sockets, swapped = asking("batch")
    assert batch == sockets != swapped


def test_every_sampling_parameter_acts(asking):
    assert asking("sampled") == {"same": True, "different": 4, "greedy": [True, True, True]}


def test_what_was_done_is_said(asking):
    alpha, scaled, cut = asking("notes")
    assert alpha.startswith("image0: ") and "alpha is left out" in alpha
    assert "2000 x 1000 pixels" in scaled and "512 x 256 (128 tokens)" in scaled
    assert "cut off after 2 tokens" in cut and "max_tokens" in cut


def test_a_question_leaves_encoding_as_it_was(asking):
    assert asking("encodes_as_before")


def test_cancel_stops_within_a_token(asking):
    """Between two layers, in the vision tower as well; the next answer is the same, and no hook stays."""
    seen = asking("cancelled")
    assert seen["checks"] > 12 * 4 and all(seen["stopped"]) and all(seen["same"])
    assert seen["bar"][-1] == [12, 12] and seen["hooks"] == 0


def test_a_file_with_its_head_answers(asking):
    loaded, made = asking("from_file", head=True)
    assert loaded == made


def test_a_file_without_its_head_is_refused_by_name(asking):
    sentence = asking("from_file", head=False)
    assert "joy_encoder.safetensors without one" in sentence and "language head (lm_head.weight)" in sentence
    assert "Load the whole" in sentence


def test_it_runs_in_a_graph(asking):
    seen = asking("graph")
    assert seen["failed"] == [] and seen["text"] == [[seen["want"]]]
    drawn = {
        "decoding": "sample", "decoding.temperature": 1.0, "decoding.top_k": 3, "decoding.top_p": 0.9,
        "decoding.seed": 3,
    }
    seen = asking("graph", **drawn)
    assert seen["failed"] == [] and seen["text"] != [[seen["want"]]]
    seen = asking("graph", **{"images.image0": None, "images.image1": None})
    assert seen["text"] == [] and "Expected at least one image" in seen["failed"][0]


REFUSALS = {
    "empty question": ["Expected a question, got an empty text"],
    "chat marker": ["<|image_pad|>", "Remove it"],
    "no image": ["at least one image, got none", "images"],
    "unwired": ["at least one image, got none", "images"],
    "empty batch": ["image0", "empty batch (0, 64, 64, 3)"],
    "not an image": ["IMAGE at image1, got dict"],
    "nan": ["finite values in image1, got 3", "of 12288"],
    "video": ["image0", "(1, 1, 64, 64, 3)"],
    "band": ["at most 200", "500 x 2 pixels"],
    "another encoder": ["Qwen3-VL with vision, got T5", "type joyimage"],
    "tiny encoder": ["Qwen3-VL with vision, got TinyCondModel", "type joyimage"],
    "too many tokens": ["at most 120 tokens, got 127", "tokens_per_image", "max_tokens"],
    "headless class": ["language head", "Qwen3VL8B_JoyImage without one"],
}


@pytest.mark.parametrize("case", REFUSALS)
def test_wrong_input_is_refused_with_the_remedy(asking, case):
    sentence = asking("refused", case=case)
    assert sentence and "\n" not in sentence and "not foreseen" not in sentence
    assert not [part for part in REFUSALS[case] if part not in sentence], sentence
