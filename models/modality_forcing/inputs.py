"""One call of the pipeline, checked: inputs read, sizes and batches matched, settings chosen. Every fault is
one sentence.

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


@dataclass(frozen=True)
class Request:
    """One call, checked."""

    mode: Mode
    prompts: tuple[str, ...]
    batch: int
    size: Size  # as asked
    padded: Size  # as sampled: multiples of the patch
    settings: SamplingDefaults
    seed: int
    x0_t_min: float
    refine: bool


def check_streams(mode: Mode, image: Any, depth: Any, refine: bool) -> None:
    """Each mode takes what it does not make; ValueError otherwise."""
    needs = {"image_to_depth": ("an image", image), "depth_to_image": ("a depth", depth)}
    if mode in needs and needs[mode][1] is None:
        raise ValueError(f"Mode {mode} needs {needs[mode][0]}, and none was given.")
    if mode == "joint" and image is not None:
        raise ValueError(
            "Mode joint makes the image, but one was given; use image_to_depth for the depth of a given "
            "image."
        )
    if mode == "image_to_depth" and depth is not None:
        raise ValueError("Mode image_to_depth makes the depth, but one was given; give the image alone.")
    if mode == "depth_to_image" and image is not None:
        raise ValueError("Mode depth_to_image makes the image, but one was given; give the depth alone.")
    if refine and mode != "joint":
        raise ValueError(
            f"Refine makes a joint run's depth again from its image; it does nothing in {mode}, so leave it "
            "off."
        )


def read_given_image(source: Any, size: AskedSize) -> Pictures:
    """The given images, resized by area averaging if `size` asks; their notes name each change."""
    pictures = read_pictures(source)
    rgb, alpha = pictures.rgb.cpu(), None if pictures.alpha is None else pictures.alpha.cpu()
    own, target = find_target(rgb.shape[1:3], size)
    if own == target:
        return Pictures(rgb, alpha, pictures.notes)
    rgb = F.interpolate(rgb.movedim(-1, 1), target, mode="area").movedim(1, -1)
    alpha = None if alpha is None else F.interpolate(alpha[:, None], target, mode="area")[:, 0]
    return Pictures(rgb, alpha, (*pictures.notes, explain_resize("image", own, target)))


def read_given_depth(source: Any, size: AskedSize) -> tuple[View, Notes]:
    """The given depth as a View with a valid pixel in every map, nearest-resized if `size` asks."""
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
            f"Expected a depth with one value per pixel, got shape {tuple(depth.shape)}, a color image. Give "
            "one of its channels."
        )
    note = explain_invalid(depth.to(torch.float32))
    return View.from_depth(depth.cpu(), units="relative"), (note,) if note else ()


def find_target(own: Sequence[int], size: AskedSize) -> tuple[Size, Size]:
    """(own size, target size): a None in `size` keeps the own."""
    own = (int(own[0]), int(own[1]))
    return own, tuple(asked or kept for asked, kept in zip(size, own, strict=True))


def explain_resize(what: str, own: Size, target: Size) -> str:
    return f"The {what} was resized from {own[0]} x {own[1]} to {target[0]} x {target[1]} (height x width)."


def resize_depth(depth: Tensor, size: Size) -> Tensor:
    """(b, 1, h, w) to another size by the nearest pixel, which mixes no depths across an edge."""
    return F.interpolate(depth, size, mode="nearest")


def resize_view(view: View, size: Size) -> View:
    """Depth, mask and camera at another size; what else the view holds is left behind."""
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
    """How many results: counts of 1 serve all, other counts must agree."""
    counts = {"prompts": len(prompts), "batch_size": batch_size}
    counts |= {} if pictures is None else {"images": len(pictures.rgb)}
    counts |= {} if view is None else {"depth maps": len(view)}
    if not isinstance(batch_size, int) or min(counts.values()) < 1:
        raise ValueError(f"Counts {counts} were given; each must be a whole number of at least 1.")
    return match_counts(counts)


def match_counts(counts: Mapping[str, int]) -> int:
    """The largest of some named batches; a ValueError names two that are neither 1 nor equal."""
    several = {name: count for name, count in counts.items() if count > 1}
    if len(set(several.values())) > 1:
        said = " and ".join(f"{count} ({name})" for name, count in several.items())
        raise ValueError(f"The batch does not match: {said}; give equally many, or one for all.")
    return max(counts.values())


def find_size(pictures: Pictures | None, view: View | None, size: AskedSize, default: int) -> Size:
    """Height and width of the result: those of the given stream, else those asked for, else the default."""
    for side in size:
        if side is not None and (not isinstance(side, int) or side < 1):
            raise ValueError(
                f"A size of {size[0]} x {size[1]} was asked for; height and width must be whole numbers of "
                "at least 1."
            )
    if pictures is not None:
        return tuple(pictures.rgb.shape[1:3])
    if view is not None:
        return tuple(view.depth.shape[1:])
    return size[0] or default, size[1] or default


def pad_size(size: Size, patch: int) -> tuple[Size, Notes]:
    """The next multiples of the patch, with a note if these are others."""
    padded = round_up(size, patch)
    if padded == tuple(size):
        return padded, ()
    return padded, (
        f"{size[0]} x {size[1]} (height x width) is not a multiple of {patch}: it was sampled at {padded[0]} "
        f"x {padded[1]}, given edges repeated, and the result cropped back.",
    )


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
    """The defaults, replaced by the arguments that are not None."""
    for scale in (guidance, depth_guidance):
        if scale is not None and not math.isfinite(scale):
            raise ValueError(f"Guidance is {scale!r}; it must be a finite number, and acts above 1.")
    notes: Notes = ()
    if log2_alpha is not None and mode != "joint":
        notes = (f"log2_alpha orders the two streams of a joint run; it has no effect in {mode}.",)
    if depth_guidance is not None and mode == "depth_to_image":
        notes += ("depth_guidance guides a depth that is sampled; it has no effect in depth_to_image.",)
    given = {
        "steps": steps,
        "guidance": guidance,
        "log2_alpha": log2_alpha,
        "depth_guidance": depth_guidance,
    }
    return replace(defaults, **{name: value for name, value in given.items() if value is not None}), notes


def check_seed(seed: int) -> int:
    if not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise ValueError(f"The seed is {seed!r}; it must be a whole number from 0 to 2^64 - 1.")
    return seed


def check_floor(x0_t_min: float) -> float:
    if not 0 <= x0_t_min < 1:
        raise ValueError(
            f"x0_t_min is {x0_t_min!r}; it must be from 0 (exact) to below 1, and is 0.05 in the released "
            "sampler."
        )
    return x0_t_min


def count_steps(on_step: OnStep | None, done: int, total: int) -> OnStep | None:
    """`on_step` for one of several runs: its steps counted on from `done`, out of `total`."""
    if on_step is None:
        return None
    return lambda step, steps, latents: on_step(done + step, total, latents)
