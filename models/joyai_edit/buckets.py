"""The sizes that JoyAI-Image edits at: 49 buckets around 1024 x 1024, and core's center crop of an image."""

from __future__ import annotations

from typing import Literal, get_args

Size = tuple[int, int]  # (height, width)
Rect = tuple[float, float, float, float]  # (left, top, right, bottom) in pixels, right and bottom exclusive

BASE = 1024
STEP = 64
# widths by height; the transposed sizes are in the list, too
_WIDTHS = {
    512: range(1792, 2049, STEP), 576: range(1600, 1793, STEP), 640: range(1472, 1601, STEP),
    704: range(1344, 1473, STEP), 768: range(1216, 1345, STEP), 832: range(1152, 1217, STEP),
    896: range(1088, 1153, STEP), 960: range(1024, 1089, STEP), 1024: range(960, 1025, STEP),
    1088: range(896, 961, STEP), 1152: range(832, 897, STEP), 1216: range(768, 833, STEP),
    1280: (768,), 1344: range(704, 769, STEP), 1408: (704,), 1472: range(640, 705, STEP), 1536: (640,),
    1600: range(576, 641, STEP), 1664: (576,), 1728: (576,), 1792: range(512, 577, STEP),
    1856: (512,), 1920: (512,), 1984: (512,), 2048: (512,),
}  # fmt: skip
BUCKETS: tuple[Size, ...] = tuple((height, width) for height, widths in _WIDTHS.items() for width in widths)
WIDEST = max(width / height for height, width in BUCKETS)

# Both choose the nearest aspect ratio. Ties (4:3, 4:5, ...) go to the first of the list, which ComfyUI and
# diffusers sort by rising height and the original repository by falling height.
BucketOrder = Literal["comfyui", "original"]
BUCKET_ORDERS: tuple[BucketOrder, ...] = get_args(BucketOrder)


def find_bucket(height: int, width: int, order: BucketOrder = "comfyui", *, base: int = BASE) -> Size:
    """The bucket (height, width) whose aspect ratio is nearest to the image's.

    `base` scales the list: 256, 512 and 768 are the original's smaller training sizes.
    """
    ratio = height / width
    sizes = BUCKETS if order == "comfyui" else BUCKETS[::-1]
    best = min(sizes, key=lambda size: abs(size[0] / size[1] - ratio))
    return best[0] * base // BASE, best[1] * base // BASE


def core_crop(size: Size, bucket: Size) -> tuple[int, int, int, int]:
    """The center crop (left, top, right, bottom) that core's text encoder node applies before resizing."""
    (height, width), new = size, bucket[1] / bucket[0]
    old = width / height
    left = round((width - width * (new / old)) / 2) if old > new else 0
    top = round((height - height * (old / new)) / 2) if old < new else 0
    return left, top, width - left, height - top


def pad_to_aspect(size: Size, bucket: Size) -> tuple[float, float, float]:
    """(height, width) in image pixels of the smallest canvas of the bucket's aspect ratio around an image,
    and the scale from the image to the bucket.
    """
    (height, width), (rows, columns) = size, bucket
    scale = min(columns / width, rows / height)
    return rows / scale, columns / scale, scale
