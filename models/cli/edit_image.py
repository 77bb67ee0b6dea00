"""What `spatialweave edit` runs: the tiny editor on an image file.

OUT/edited.png     the edited image, at the input's size or the one asked for
OUT/page.png       (or .jpg) before, after, the depth of both as the tiny VGGT sees it, and the instruction
OUT/edit.json      instruction, settings, what the scorer sees before and after
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..core.export.files import new_folder, write_file
from ..core.export.png8 import encode_png8, to_uint8
from ..core.pictures import open_picture
from ..core.visualize.depth_colors import color_depth
from ..spatial_diff.grammar import explain_instruction, find_objects
from ..spatial_diff.pipeline import Result, SpatialDiffPipeline, resize_pictures
from ..vggt.pipeline import VggtPipeline
from ..world.judges.scorer import Scorer, SeenObject

PANEL, GAP, CAPTION = 320, 8, 34  # pixels of the page
PAPER, INK = (22, 23, 27), (236, 236, 238)
JPEG_QUALITY = 90
LABELS = ("before", "after", "depth before", "depth after")


@dataclass(frozen=True)
class EditImage:
    """The settings of one run."""

    image: Path
    instruction: str
    out: Path
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    size: int | None = None  # pixels of the longer side to which the image is scaled first
    page: Literal["png", "jpg"] = "png"
    weights: Path | None = None
    device: str | None = "cpu"


def run_edit(request: EditImage) -> Iterator[str]:
    """Check, edit, write; yields one line per note and per file."""
    picture = open_picture(request.image)
    fault = explain_instruction(request.instruction)
    if fault:
        raise ValueError(fault)
    before = scale_longer_side(picture.rgb[:1], request.size)
    scorer = Scorer.from_pretrained()
    seen = scorer.read(before)[0]
    check_named(request, seen)
    pipeline = SpatialDiffPipeline.from_preset(
        "tiny", weights=request.weights, device=request.device or "cpu"
    )
    result = pipeline(
        request.instruction, image=before, steps=request.steps, guidance=request.guidance,
        seed=request.seed,
    )  # fmt: skip
    after = scorer.read(result.image)[0]
    yield from (f"note: {note}" for note in (*picture.notes, *result.notes))
    yield f"the scorer sees {name_objects(after)}, in {result.seconds:.1f} s"
    yield from write_edit(request, before[0], result, (seen, after))


def scale_longer_side(rgb: Tensor, size: int | None) -> Tensor:
    """Images (b, h, w, 3) with `size` pixels on the longer side; None keeps them."""
    if size is None:
        return rgb
    height, width = rgb.shape[1:3]
    scale = size / max(height, width)
    return resize_pictures(rgb, max(1, round(height * scale)), max(1, round(width * scale)))


def check_named(request: EditImage, seen: Sequence[SeenObject]) -> None:
    """ValueError if the instruction names an object that the image does not show."""
    for named in find_objects(request.instruction):
        fits = [item for item in seen if item.shape == named.shape and named.color in ("", item.color)]
        if not fits:
            raise ValueError(
                f"Expected the {named} in {request.image}, got an image that shows {name_objects(seen)}. "
                "Name an object that is there."
            )


def name_objects(seen: Sequence[SeenObject]) -> str:
    return ", ".join(f"a {item.name}" for item in seen) or "no object"


def write_edit(
    request: EditImage,
    before: Tensor,
    result: Result,
    seen: tuple[Sequence[SeenObject], Sequence[SeenObject]],
) -> Iterator[str]:
    """The files of a run, all or none; yields a line each."""
    facts = {
        "instruction": request.instruction, "seed": request.seed, "steps": request.steps,
        "guidance": request.guidance, "seconds": round(result.seconds, 3),
        "before": [item.name for item in seen[0]], "after": [item.name for item in seen[1]],
    }  # fmt: skip
    texts = {"instruction": request.instruction, "seed": str(request.seed)}
    with new_folder(request.out) as part:
        write_file(part / "edited.png", encode_png8(result.image[0], texts))
        page = draw_page(before, result.image[0], request.instruction)
        encoded = encode_png8(page, texts) if request.page == "png" else encode_jpeg(page)
        write_file(part / f"page.{request.page}", encoded)
        write_file(part / "edit.json", (json.dumps(facts, indent=1) + "\n").encode())
    yield from (f"{request.out / name}" for name in ("edited.png", f"page.{request.page}", "edit.json"))


def encode_jpeg(image: Tensor) -> bytes:
    """An image (h, w, 3) in [0, 1] as the bytes of a JPEG."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(to_uint8(image).numpy()).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def draw_page(before: Tensor, after: Tensor, instruction: str) -> Tensor:
    """Both images and both depths side by side, (h, w, 3) in [0, 1], with labels and the instruction."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    geometry = VggtPipeline.from_preset("tiny")
    depths = [color_depth(geometry(image).view).image for image in (before, after)]
    height = round(PANEL * before.shape[0] / before.shape[1])
    page = Image.new("RGB", (4 * PANEL + 5 * GAP, height + 2 * CAPTION + 2 * GAP), PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(17)
    pen.text((GAP, GAP), instruction, fill=INK, font=font)
    for index, (image, label) in enumerate(zip((before, after, *depths), LABELS, strict=True)):
        left = GAP + index * (PANEL + GAP)
        panel = Image.fromarray(to_uint8(image).numpy()).resize((PANEL, height), Image.Resampling.BICUBIC)
        page.paste(panel, (left, CAPTION + GAP))
        pen.text((left, CAPTION + GAP + height + 6), label, fill=INK, font=font)
    return torch.from_numpy(np.asarray(page, dtype=np.float32) / 255)
