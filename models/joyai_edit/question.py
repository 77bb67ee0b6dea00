"""A question about several images, as Qwen3-VL's chat template and image processor write it."""

from __future__ import annotations

import math
import re

from torch import Tensor

from ..core.geometry.resize import resize_bicubic

IMAGE_PAD = 151655  # token id of <|image_pad|>, which an image's embeddings replace
TOKEN_SIDE = 32  # pixels a side of one image token: patches of 16, merged 2 x 2
FEWEST_TOKENS, MOST_TOKENS = 64, 16384  # of one image, in the released preprocessor's settings
WIDEST = 200  # aspect ratio at which the image processor of transformers stops
SYSTEM = "You are a helpful assistant."  # of the release's own script for questions
VISION = "<|vision_start|><|image_pad|><|vision_end|>"
MARKER = re.compile(r"<\|[a-z_]+\|>")


def write_chat(question: str, images: int) -> str:
    """The chat text for `images` images before the question, up to where the answer begins."""
    user = f"<|im_start|>user\n{VISION * images}{question}<|im_end|>\n"
    return f"<|im_start|>system\n{SYSTEM}<|im_end|>\n{user}<|im_start|>assistant\n"


def check_question(question: str) -> str:
    """The question without surrounding white space; ValueError for an empty one or one with chat markers."""
    asked = question.strip() if isinstance(question, str) else ""
    if not asked:
        raise ValueError(
            "Expected a question, got an empty text. Write one, like 'Is the ball left of the box?'."
        )
    if marker := MARKER.search(asked):
        raise ValueError(
            f"Expected a question without chat markers, got one with {marker[0]}. Remove it: the node writes "
            "the chat template itself."
        )
    return asked


def fit_size(height: int, width: int, most_tokens: int = MOST_TOKENS) -> tuple[int, int]:
    """Height and width that the vision tower reads: multiples of 32, of at most `most_tokens` tokens."""
    if max(height, width) > WIDEST * min(height, width):
        raise ValueError(
            f"Expected an image with an aspect ratio of at most {WIDEST}, got {width} x {height} pixels. "
            "Crop it."
        )
    rounded = tuple(round(side / TOKEN_SIDE) for side in (height, width))
    tokens, pixels = math.prod(rounded), height * width
    if tokens > most_tokens:
        shrink = math.sqrt(pixels / (most_tokens * TOKEN_SIDE**2)) * TOKEN_SIDE
        rounded = tuple(max(1, math.floor(side / shrink)) for side in (height, width))
    elif tokens < FEWEST_TOKENS:
        enlarge = math.sqrt(FEWEST_TOKENS * TOKEN_SIDE**2 / pixels)
        rounded = tuple(math.ceil(side * enlarge / TOKEN_SIDE) for side in (height, width))
    return rounded[0] * TOKEN_SIDE, rounded[1] * TOKEN_SIDE


def count_image_tokens(height: int, width: int) -> int:
    """Tokens of one image of a fitted size."""
    return (height // TOKEN_SIDE) * (width // TOKEN_SIDE)


def fit_image(image: Tensor, most_tokens: int = MOST_TOKENS) -> Tensor:
    """(1, h, w, 3) in [0, 1] at its fitted size: antialiased bicubic, as the image processor resizes."""
    size = fit_size(*image.shape[1:3], most_tokens)
    if size == tuple(image.shape[1:3]):
        return image
    return resize_bicubic(image.movedim(-1, 1), size).movedim(1, -1)
