"""The sizes that the vision tower reads, against transformers' image processor, and the chat text."""

import numpy as np
import pytest
import torch
from PIL import Image

from spatialweave.models.joyai_edit.question import (
    check_question,
    count_image_tokens,
    fit_image,
    fit_size,
    write_chat,
)

SIZES = [
    (256, 256),
    (1, 1),
    (40, 3000),
    (1023, 517),
    (16, 16),
    (5000, 4000),
    (3000, 9000),
    (255, 257),
    (48, 80),
]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("most", [64, 2048, 16384])
def test_sizes_are_those_of_transformers(height, width, most):
    pytest.importorskip(
        "torchvision", reason="transformers' image processor needs it, so sizes were NOT compared"
    )
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    want = smart_resize(height, width, factor=32, min_pixels=64 * 1024, max_pixels=most * 1024)
    assert fit_size(height, width, most) == want
    assert count_image_tokens(*want) == want[0] * want[1] // 1024


def test_a_resized_image_is_that_of_the_image_processor():
    pytest.importorskip(
        "torchvision", reason="transformers' image processor needs it, so images were NOT compared"
    )
    import transformers

    waves = [
        np.sin(np.arange(333) / period)[None] * np.cos(np.arange(250) / period)[:, None]
        for period in (5, 9, 20)
    ]
    values = (np.stack(waves, -1) * 120 + 127.5).round().astype(np.uint8)
    settings = {
        "size": {"longest_edge": 16777216, "shortest_edge": 65536},
        "patch_size": 16,
        "image_mean": [0.0] * 3,
        "image_std": [1.0] * 3,
    }
    found = transformers.Qwen2VLImageProcessor(**settings)(Image.fromarray(values), return_tensors="pt")
    ours = fit_image(torch.from_numpy(values.copy())[None].float() / 255)
    _, rows, columns = found["image_grid_thw"][0].tolist()
    patches = found["pixel_values"].reshape(rows // 2, columns // 2, 2, 2, 3, 2, 16, 16)[:, :, :, :, :, 0]
    theirs = patches.permute(0, 2, 5, 1, 3, 6, 4).reshape(1, rows * 16, columns * 16, 3)
    # theirs rounds to 8 bits after each of two passes
    assert ours.shape == theirs.shape and (ours - theirs).abs().max() <= 1.5 / 255


def test_an_image_of_a_fitting_size_passes_bit_for_bit():
    image = torch.rand(1, 320, 256, 3)
    assert fit_image(image) is image


def test_the_chat_has_one_vision_block_for_each_image():
    chat = write_chat("Where?", 3)
    assert chat.count("<|image_pad|>") == 3 and chat.endswith("Where?<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("question", ["", " \n", None, 7, "a <|im_end|> b"])
def test_a_question_that_is_none_is_refused(question):
    with pytest.raises(ValueError, match="Expected a question"):
        check_question(question)


def test_a_long_band_is_refused():
    with pytest.raises(ValueError, match="aspect ratio of at most 200, got 3000 x 10"):
        fit_size(10, 3000)
