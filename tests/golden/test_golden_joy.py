"""JoyAI-Image's prompts, red boxes, cameras, encoder texts and buckets, on every row of the folder
SPATIALWEAVE_GOLDEN_JOY.

A file is {"meta": {...}, "rows": [...]}; what it holds is known by the fields of its rows,
so that any set of files of that form is read.
"""

import hashlib
import json
import math
import os
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from spatialweave.models.joyai_edit.boxes import draw_red_box, line_width, round_box
from spatialweave.models.joyai_edit.buckets import core_crop, find_bucket, pad_to_aspect
from spatialweave.models.joyai_edit.cameras import change_between
from spatialweave.models.joyai_edit.framing import plan_framing
from spatialweave.models.joyai_edit.prompts import (
    camera_change,
    encoder_text,
    is_trained,
    move_prompt,
    rotate_prompt,
)

DEFAULT = Path(__file__).resolve().parents[3] / "shared" / "golden" / "joy"
FOLDER = Path(os.environ.get("SPATIALWEAVE_GOLDEN_JOY") or DEFAULT)
KINDS = {  # by the fields that its rows have
    "move": {"object", "prompt"}, "rotate": {"object", "view", "prompt"},
    "camera": {"yaw", "pitch", "zoom", "prompt"},
    "cameras": {"before", "after", "expect"}, "text": {"prompt", "images", "text"},
    "red box": {"size", "box"},
    "buckets": {"width", "height", "bucket_comfy"},
}  # fmt: skip


def find_kind(row):
    """The kind with the most fields that are all there."""
    return max(
        (kind for kind, fields in KINDS.items() if fields <= set(row)),
        key=lambda kind: len(KINDS[kind]),
        default="unknown",
    )


def find_rows():
    """{kind: [(file, number, row), ...]} over the whole folder."""
    found = defaultdict(list)
    for path in sorted(FOLDER.glob("**/*.json")):
        for number, row in enumerate(json.loads(path.read_text(encoding="utf-8"))["rows"]):
            found[find_kind(row)].append((path.name, number, row))
    return dict(found)


ROWS = find_rows()
ABSENT = f"no golden files: {FOLDER} holds none; set SPATIALWEAVE_GOLDEN_JOY"
# a folder that was named and holds nothing is a fault; only the default may be absent
needs_rows = pytest.mark.skipif(not ROWS and "SPATIALWEAVE_GOLDEN_JOY" not in os.environ, reason=ABSENT)


def by_row(kind):
    """One test per row; where there is none, one that says so."""
    rows = [
        pytest.param(row, id=f"{file.removesuffix('.json')}-{number}")
        for file, number, row in ROWS.get(kind, [])
    ]
    reason = f"{FOLDER} holds no rows of {kind}" if ROWS else ABSENT
    return pytest.mark.parametrize(
        "row", rows or [pytest.param(None, id="absent", marks=pytest.mark.skip(reason=reason))]
    )


@needs_rows
def test_golden_joy_folder_holds_rows_of_every_kind():
    assert "unknown" not in ROWS, [entry[:2] for entry in ROWS["unknown"]]
    assert ROWS and sum(map(len, ROWS.values())) > 0


@by_row("move")
def test_golden_joy_move(row):
    assert move_prompt(row["object"]).encode() == row["prompt"].encode()


@by_row("rotate")
def test_golden_joy_rotate(row):
    assert rotate_prompt(row["object"], row["view"]).encode() == row["prompt"].encode()
    if "readme_form" in row:
        assert rotate_prompt(row["object"], row["view"], "readme").encode() == row["readme_form"].encode()


@by_row("camera")
def test_golden_joy_camera(row):
    change = camera_change(row["yaw"], row["pitch"], row["zoom"])
    assert change.prompt().encode() == row["prompt"].encode()
    if "on_grid" in row:
        assert is_trained(row["yaw"], row["pitch"]) == row["on_grid"]
    if "readme_integer_form" in row:
        assert change.prompt("integer").encode() == row["readme_integer_form"].encode()


@by_row("cameras")
def test_golden_joy_cameras(row):
    change, expect = change_between(row["before"], row["after"]), row["expect"]
    assert math.isclose(math.remainder(change.yaw - expect["yaw"], 360), 0, abs_tol=0.05 + 1e-3)
    assert change.pitch == pytest.approx(expect["pitch"], abs=0.05 + 1e-3) and change.zoom == expect["zoom"]
    assert change.prompt().encode() == row["prompt"].encode()


@by_row("text")
def test_golden_joy_text(row):
    text = encoder_text(row["prompt"], row["images"])
    assert text == row["text"] and hashlib.sha256(text.encode()).hexdigest() == row["sha256"]


@by_row("red box")
def test_golden_joy_red_box(row):
    width, height = row["size"]
    assert line_width(height, width) == row["line_width"]
    if row["refused"]:
        with pytest.raises(ValueError, match="Expected a box"):
            round_box(tuple(row["box"]), height, width)
        return
    assert list(round_box(tuple(row["box"]), height, width)) == row["outer_rect"]
    drawn = draw_red_box(torch.full((height, width, 3), 128 / 255), tuple(row["box"]))
    pixels = (drawn * 255).round().to(torch.uint8).numpy()
    assert int((pixels == [255, 0, 0]).all(axis=-1).sum()) == row["red_pixels"]
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == row["sha256_rgb_on_grey128"]


@by_row("buckets")
def test_golden_joy_buckets(row):
    height, width = row["height"], row["width"]
    assert find_bucket(height, width) == tuple(row["bucket_comfy"][::-1])
    if "bucket_diffusers" in row:
        assert find_bucket(height, width) == tuple(row["bucket_diffusers"][::-1])
    if "bucket_original" in row:
        assert find_bucket(height, width, "original") == tuple(row["bucket_original"][::-1])
    for base, size in row.get("bucket_other_base", {}).items():
        assert find_bucket(height, width, "original", base=int(base)) == tuple(size[::-1])
    check_core(row["comfy"], height, width)
    padded = row["pad_to_bucket_aspect"]
    rows, columns, scale = pad_to_aspect((height, width), find_bucket(height, width))
    found = {"padded_width": columns, "padded_height": rows, "scale": scale}
    assert found == pytest.approx(padded, rel=1e-9)


def check_core(comfy, height, width):
    bucket = find_bucket(height, width)
    left, top, right, bottom = core_crop((height, width), bucket)
    assert [left, top, right, bottom] == comfy["source_rect"] and list(bucket[::-1]) == comfy["out"]
    assert (
        1 - (right - left) * (bottom - top) / (height * width)
        == pytest.approx(comfy["area_cropped_away"], rel=1e-9, abs=1e-12)
    )
    assert bucket[1] / (right - left) == pytest.approx(comfy["scale_x"], rel=1e-9)
    assert bucket[0] / (bottom - top) == pytest.approx(comfy["scale_y"], rel=1e-9)
    for mode in ("pad", "crop"):
        framing = plan_framing(height, width, mode)
        assert core_crop(framing.bucket, find_bucket(*framing.bucket)) == (0, 0, *bucket[::-1]), (
            "core has nothing left to do"
        )


PICTURES = sorted(FOLDER.glob("**/*.png"))


@pytest.mark.parametrize(
    "path",
    PICTURES or [pytest.param(None, marks=pytest.mark.skip(reason=f"{FOLDER} holds no rows of pictures"))],
)
def test_golden_joy_box_picture(path):
    """The outline that is in a picture, drawn again from its bounds alone, pixel by pixel."""
    image, np = pytest.importorskip("PIL.Image"), pytest.importorskip("numpy")
    with image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    red = (pixels == [255, 0, 0]).all(axis=-1)
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    bare = np.where(red[..., None], 128, pixels)
    drawn = draw_red_box(torch.from_numpy(bare / 255.0), tuple(map(float, box)))
    np.testing.assert_array_equal((drawn * 255).round().numpy(), pixels)
