"""Validates one call of the pipeline: inputs read, sizes and batches matched, settings resolved. Every error
is one sentence.

A function that changes an input returns (value, notes): one sentence for each change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.geometry.arrays import as_float_tensor
from ..core.geometry.view import View, explain_invalid
from ..core.padding import pad_to, round_up
from ..core.pictures import Pictures, as_tensor, read_pictures
from ..core.protocols import OnStep
from .config import Mode, SamplingDefaults
from .depth_code import depth_to_net

Size = tuple[int, int]  # height, width
AskedSize = tuple[int | None, int | None]  # None keeps the input's own
Notes = tuple[str, ...]  # one sentence for each change to an input
OWN_SIZE, TRAINED_SIZE = SAMPLING_SIZES = ("input's size", "trained size")  # of a given stream
FAR = 1.5  # a side above this multiple of the trained one is far from it


@dataclass(frozen=True)
class Request:
    """One validated call."""

    mode: Mode
    prompts: tuple[str, ...]
    batch: int
    size: Size  # as requested
    padded: Size  # as sampled: multiples of the patch
    settings: SamplingDefaults
    seed: int
    x0_t_min: float
    refine: bool
    guidance_interval: tuple[float, float]


def check_streams(mode: Mode, image: Any, depth: Any, refine: bool) -> None:
    """Each mode takes only the streams that it does not sample; ValueError otherwise."""
    needs = {"image_to_depth": ("an image", image), "depth_to_image": ("a depth", depth)}
    if mode in needs and needs[mode][1] is None:
        raise ValueError(f"Expected {needs[mode][0]} for mode {mode}, got none. Give one.")
    if mode == "joint" and image is not None:
        raise ValueError(
            "Expected no image for mode joint, which samples it, got one. Use image_to_depth for the depth "
            "of an existing image."
        )
    if mode == "image_to_depth" and depth is not None:
        raise ValueError(
            "Expected no depth for mode image_to_depth, which samples it, got one. Give the image alone."
        )
    if mode == "depth_to_image" and image is not None:
        raise ValueError(
            "Expected no image for mode depth_to_image, which samples it, got one. Give the depth alone."
        )
    if refine and mode != "joint":
        raise ValueError(
            "Expected mode joint for refine, which samples the depth again from the finished image, got "
            f"{mode}. Leave refine off."
        )


def read_given_image(source: Any, size: AskedSize) -> Pictures:
    """The input images, resized by area averaging if `size` differs; their notes name each change."""
    pictures = read_pictures(source)
    rgb, alpha = pictures.rgb.cpu(), None if pictures.alpha is None else pictures.alpha.cpu()
    own, target = find_target(rgb.shape[1:3], size)
    if own == target:
        return Pictures(rgb, alpha, pictures.notes)
    rgb = F.interpolate(rgb.movedim(-1, 1), target, mode="area").movedim(1, -1)
    alpha = None if alpha is None else F.interpolate(alpha[:, None], target, mode="area")[:, 0]
    return Pictures(rgb, alpha, (*pictures.notes, explain_resize("image", own, target)))


def read_given_depth(source: Any, size: AskedSize) -> tuple[View, Notes]:
    """The input depth as a View with a valid pixel in every map, nearest-resized if `size` differs."""
    view, notes = source_to_view(source)
    own, target = find_target(view.depth.shape[1:], size)
    if own != target:
        view, notes = resize_view(view, target), (*notes, explain_resize("depth", own, target))
    return view.require_valid(), notes


def source_to_view(source: Any) -> tuple[View, Notes]:
    """A View on the CPU from a View, or from z-depth (h, w), (b, h, w) or (b, h, w, 1) of any array type."""
    if isinstance(source, View):
        view = source.to("cpu")
        holes, pixels = sum(view.invalid_counts), view.mask.numel()
        return view, (
            f"{holes} of {pixels} depth pixels ({holes / pixels:.1%}) are invalid and left out.",
        ) if holes else ()
    depth = as_tensor(source) if hasattr(source, "getbands") else as_float_tensor(source, name="depth")
    if depth.ndim >= 3 and depth.shape[-1] == 1:
        depth = depth[..., 0]
    if depth.ndim >= 3 and depth.shape[-1] in (3, 4) and min(depth.shape[-3:-1]) > 4:
        raise ValueError(
            f"Expected a depth with one value per pixel, got shape {tuple(depth.shape)}, a color image. "
            "Give one of its channels."
        )
    note = explain_invalid(depth.to(torch.float32))
    return View.from_depth(depth.cpu(), units="relative"), (note,) if note else ()


def find_target(own: Sequence[int], size: AskedSize) -> tuple[Size, Size]:
    """(own size, target size): a None in `size` keeps the input's own."""
    own = (int(own[0]), int(own[1]))
    return own, tuple(side or current for side, current in zip(size, own, strict=True))


def explain_resize(what: str, own: Size, target: Size) -> str:
    return f"The {what} was resized from {own[0]} x {own[1]} to {target[0]} x {target[1]} (height x width)."


def resize_depth(depth: Tensor, size: Size) -> Tensor:
    """(b, 1, h, w) to another size by nearest neighbor, which mixes no depths across an edge."""
    return F.interpolate(depth, size, mode="nearest")


def resize_view(view: View, size: Size) -> View:
    """Depth, mask, sky and camera at another size; the other fields of the View are dropped."""
    intrinsics = view.intrinsics
    if intrinsics is not None:
        height, width = view.depth.shape[1:]
        intrinsics = intrinsics * torch.tensor([size[1] / width, size[0] / height, 1.0])[:, None]
    sky = torch.zeros_like(view.mask) if view.sky is None else view.sky
    depth, mask, sky = (resize_depth(x[:, None].float(), size)[:, 0] for x in (view.depth, view.mask, sky))
    sky = None if view.sky is None else sky > 0
    return View.from_depth(
        depth, units=view.units, mask=mask > 0, sky=sky, intrinsics=intrinsics, world_to_cam=view.world_to_cam
    )


def match_batches(
    prompts: Sequence[str], pictures: Pictures | None, view: View | None, batch_size: int
) -> int:
    """The batch size of the result: a count of 1 broadcasts, other counts must agree."""
    counts = {"prompts": len(prompts), "batch_size": batch_size}
    counts |= {} if pictures is None else {"images": len(pictures.rgb)}
    counts |= {} if view is None else {"depth maps": len(view)}
    if not isinstance(batch_size, int) or min(counts.values()) < 1:
        raise ValueError(f"Expected whole numbers of at least 1, got {counts}. Give at least one of each.")
    return match_counts(counts)


def match_counts(counts: Mapping[str, int]) -> int:
    """The largest of some named batch sizes; a ValueError names two that are neither 1 nor equal."""
    several = {name: count for name, count in counts.items() if count > 1}
    if len(set(several.values())) > 1:
        differing = " and ".join(f"{count} ({name})" for name, count in several.items())
        raise ValueError(
            f"Expected equal batch sizes, or 1, got {differing}. Give equally many, or one for all."
        )
    return max(counts.values())


def find_size(pictures: Pictures | None, view: View | None, size: AskedSize, default: int) -> Size:
    """Height and width of the result: those of the input stream, else those requested, else the default."""
    for side in size:
        if side is not None and (not isinstance(side, int) or side < 1):
            raise ValueError(
                f"Expected a height and width of at least 1, in whole numbers, got {size[0]} x {size[1]}. "
                "Correct them."
            )
    if pictures is not None:
        return tuple(pictures.rgb.shape[1:3])
    if view is not None:
        return tuple(view.depth.shape[1:])
    return size[0] or default, size[1] or default


def pad_size(size: Size, patch: int) -> tuple[Size, Notes]:
    """The size rounded up to multiples of the patch, with a note if that changes it."""
    padded = round_up(size, patch)
    if padded == tuple(size):
        return padded, ()
    return padded, (
        f"{size[0]} x {size[1]} (height x width) is not a multiple of {patch}: it was sampled at "
        f"{padded[0]} x {padded[1]}, with the edges of the inputs replicated, and the result cropped back.",
    )


def explain_trained_size(size: Size, trained: int | None, remedy: str) -> Notes:
    """A note on a size far above the one the network was trained at, with what to do about it."""
    if trained is None or max(size) <= trained * FAR:
        return ()
    return (
        f"This model was trained at {trained} x {trained} pixels; larger sizes, like this {size[0]} x "
        f"{size[1]} (height x width), repeat objects and distort the depth. {remedy}",
    )


def scale_to_trained(size: Size, trained: int | None) -> Size:
    """The size with its longer side at the trained one; sizes below stay."""
    longest = max(size)
    if trained is None or longest <= trained:
        return size
    return tuple(max(1, round(side * trained / longest)) for side in size)


def encode_view(view: View, size: Size, *, infinite_sky: bool) -> tuple[Tensor, Tensor]:
    """Depth in network space and its validity mask, both (b, 1, H, W) padded. Infinite sky is valid."""
    known, sky = view.mask[:, None], None
    if infinite_sky and view.sky is not None:
        sky = view.sky[:, None]
        known = known | sky
    net = pad_to(depth_to_net(view.depth[:, None], view.mask[:, None], sky=sky), size)
    return net, pad_to(known.float(), size) > 0


def choose_settings(
    defaults: SamplingDefaults,
    mode: Mode,
    steps: int | None,
    guidance: float | None,
    *,
    log2_alpha: float | None,
    depth_guidance: float | None = None,
) -> tuple[SamplingDefaults, Notes]:
    """The defaults, with every argument that is not None in their stead."""
    for scale in (guidance, depth_guidance):
        if scale is not None and not math.isfinite(scale):
            raise ValueError(
                f"Expected a finite guidance, got {scale!r}. Give a number; guidance acts above 1."
            )
    notes: Notes = ()
    if log2_alpha is not None and mode != "joint":
        notes = (f"log2_alpha orders the two streams of a joint run; it has no effect in {mode}.",)
    if depth_guidance is not None and mode == "depth_to_image":
        notes += ("depth_guidance guides a depth that is sampled; it has no effect in depth_to_image.",)
    changes = {
        "steps": steps,
        "guidance": guidance,
        "log2_alpha": log2_alpha,
        "depth_guidance": depth_guidance,
    }
    return replace(defaults, **{name: value for name, value in changes.items() if value is not None}), notes


def check_seed(seed: int) -> int:
    if not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise ValueError(
            f"Expected a whole number from 0 to 2^64 - 1 as the seed, got {seed!r}. Give another seed."
        )
    return seed


def check_floor(x0_t_min: float) -> float:
    if not 0 <= x0_t_min < 1:
        raise ValueError(
            f"Expected x0_t_min from 0 (exact) to below 1, got {x0_t_min!r}. Give 0.05, the released "
            "sampler's, or 0."
        )
    return x0_t_min


def count_steps(on_step: OnStep | None, done: int, total: int) -> OnStep | None:
    """`on_step` for one of several runs: its steps are counted on from `done`, out of `total`."""
    if on_step is None:
        return None
    return lambda step, steps, latents: on_step(done + step, total, latents)
