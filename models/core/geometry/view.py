"""View: a batch of depth maps with its images, masks, normals and cameras. All depth is passed as a View."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from .arrays import as_float_map, as_float_tensor, as_image, as_mask
from .camera import check_intrinsics, check_pose, pad_pose

Units = Literal["metric", "relative"]
Spacing = Literal["disparity", "log", "depth"]

# axes after the batch that are fixed, per optional field; None stands for the depth map's own height and
# width
_TAILS = {
    "image": (None, None, 3),
    "normals": (None, None, 3),
    "confidence": (None, None),
    "sky": (None, None),
    "intrinsics": (3, 3),
    "world_to_cam": (4, 4),
}
_NORMAL_SLACK = 0.1  # from 1, of the median length: resizing shortens some normals, an encoding changes all
_NORMAL_ROUNDING = 1e-3  # half precision's
# a View does not resize
_SAME_SIZE = "Bring the images to one size first, with Upscale Image or Resize Image/Mask"


class NoSuchPicture(IndexError, ValueError):
    """An index beyond a batch: an IndexError, which ends a loop, and a ValueError with a message."""


@dataclass(frozen=True)
class View:
    """A batch of depth maps with the fields that belong to them. Build it with :meth:`from_depth`.

    Depth is never normalized. Where ``mask`` is False the depth is exactly 0 and means nothing.
    """

    depth: Tensor  # (b, h, w) float32, z-depth, larger = farther, > 0 where valid
    # "metric" is metres; "relative" is up to one unknown scale: of each image, or of all if they have poses
    units: Units
    mask: Tensor  # (b, h, w) bool, True = valid
    image: Tensor | None = None  # (b, h, w, 3) in [0, 1]
    normals: Tensor | None = None  # (b, h, w, 3), unit length, camera frame OpenCV, facing the camera
    confidence: Tensor | None = None  # (b, h, w), larger = more certain
    # (b, h, w) bool: invalid because it is known to be infinitely far, not because it is missing
    sky: Tensor | None = None
    intrinsics: Tensor | None = None  # (b, 3, 3) in pixels of this map, pixel centers at +0.5
    world_to_cam: Tensor | None = None  # (b, 4, 4), OpenCV camera, y-up world, one for the whole batch

    def __post_init__(self) -> None:
        if self.units not in get_args(Units):
            raise ValueError(
                f"Expected depth units of {get_args(Units)}, got {self.units!r}. State what the numbers are."
            )
        if self.depth.ndim != 3 or self.depth.dtype != torch.float32 or self.mask.dtype != torch.bool:
            raise ValueError(
                "Expected depth (b, h, w) of torch.float32 and a mask of torch.bool, got depth "
                f"{tuple(self.depth.shape)} of {self.depth.dtype} and a mask of {self.mask.dtype}. "
                "View.from_depth converts."
            )
        if self.depth.numel() == 0:
            raise ValueError(
                f"Expected at least one pixel, got an empty depth map {tuple(self.depth.shape)}. Check its "
                "source."
            )
        if self.mask.shape != self.depth.shape:
            raise ValueError(
                f"Expected a mask of the depth map's shape {tuple(self.depth.shape)}, got "
                f"{tuple(self.mask.shape)}. View.from_depth adds a missing batch axis."
            )
        for name in _TAILS:
            self._check_field(name)
        if not torch.equal(self.mask, is_valid(self.depth)) or bool((self.depth[~self.mask] != 0).any()):
            raise ValueError(
                "Expected finite depth above 0 where the mask is True and 0 elsewhere, got a depth and a "
                "mask that disagree. View.from_depth sets both."
            )
        if self.sky is not None and (self.sky.dtype != torch.bool or bool((self.sky & self.mask).any())):
            raise ValueError(
                "Expected sky as a bool map of invalid pixels, got a sky and a mask that disagree. "
                "View.from_depth sets both."
            )
        self._check_contents()

    def _check_contents(self) -> None:
        if self.image is not None and not bool(((self.image >= 0) & (self.image <= 1)).all()):
            raise ValueError(
                "Expected an image in [0, 1], got values outside it. View.from_depth scales whole numbers."
            )
        if self.intrinsics is not None:
            check_intrinsics(self.intrinsics, *self.depth.shape[1:])
        if self.world_to_cam is not None:
            check_pose(self.world_to_cam)

    def _check_field(self, name: str) -> None:
        tensor = getattr(self, name)
        if tensor is None:
            return
        batch, *size = self.depth.shape
        per_pixel = _TAILS[name][0] is None
        expected = (batch, *size, *_TAILS[name][2:]) if per_pixel else (batch, *_TAILS[name])
        if tuple(tensor.shape) != expected:
            remedy = _SAME_SIZE if per_pixel and list(tensor.shape[1:3]) != size else "Reshape it"
            raise ValueError(
                f"Expected {name} {expected} for a depth map {tuple(self.depth.shape)}, got "
                f"{tuple(tensor.shape)}. {remedy}."
            )
        if tensor.dtype != torch.float32 and name != "sky":
            raise ValueError(
                f"Expected {name} of torch.float32, got {tensor.dtype}. View.from_depth converts."
            )

    @classmethod
    def from_depth(
        cls, depth: Tensor, *, units: Units, mask: Tensor | None = None, **others: Tensor | None
    ) -> View:
        """A View of any depth: (h, w), (b, h, w), (b, 1, h, w), (h, w, 1) or (b, h, w, 1), any number type.

        NaN, infinite, zero and negative pixels, and those the given ``mask`` (True = valid) leaves out,
        become invalid: masked and set to 0, never filled in; those at +infinity are ``sky`` as well, unless a
        ``sky`` is given. :func:`explain_invalid` words their count; a wholly invalid map is allowed here and
        refused by :meth:`require_valid`. Inputs without a batch axis get one; a batch of 1 is repeated to the
        others' batch, and two different batches are refused. ``others`` are the optional fields. Mask and sky
        may be probabilities, which count from 0.5 on; images of 8 and 16 bits are scaled; normals get unit
        length, 0 where they are not finite; confidence is 0 where it is NaN. :func:`.arrays.as_float_map`
        tells how an axis of 1 is read.
        """
        unknown = set(others) - set(_TAILS)
        if unknown:
            raise TypeError(
                f"Expected fields of a View among {sorted(_TAILS)}, got {sorted(unknown)}. Remove those."
            )
        batched = {"depth": as_float_map(depth)}
        size = tuple(batched["depth"].shape[1:])
        given = {"mask": mask, **others}
        batched |= {
            name: _read_field(name, value, size) for name, value in given.items() if value is not None
        }
        batched = _same_batch(batched)
        depth = batched.pop("depth")
        valid = is_valid(depth)
        given = batched.pop("mask", valid)
        if given.shape != depth.shape:
            raise ValueError(
                f"Expected a mask of the depth map's shape {tuple(depth.shape)}, got {tuple(given.shape)}. "
                f"{_SAME_SIZE}."
            )
        valid = valid & given
        far = depth == torch.inf
        if "sky" in batched or bool(far.any()):
            batched["sky"] = batched.get("sky", far) & ~valid
        if "normals" in batched:
            batched["normals"] = _unit_normals(batched["normals"], valid)
        return cls(
            depth=torch.where(valid, depth, torch.zeros_like(depth)), units=units, mask=valid, **batched
        )

    def __len__(self) -> int:
        return self.depth.shape[0]

    def __getitem__(self, index: int) -> View:
        """One image of the batch, as a View with batch 1."""
        if not -len(self) <= index < len(self):
            raise NoSuchPicture(
                f"Expected an index below {len(self)}, the batch size, counted from 0, got {index}. Choose "
                "another image."
            )
        index %= len(self)
        return self._map(lambda tensor: tensor[index : index + 1])

    def select(self, indices: Sequence[int]) -> View:
        """These images of the batch, in this order."""
        rows = [index % len(self) for index in indices if -len(self) <= index < len(self)]
        if len(rows) != len(indices) or not rows:
            raise NoSuchPicture(
                f"Expected indices below {len(self)}, the number of images in the batch, got "
                f"{list(indices)}. Count from 0."
            )
        return self._map(lambda tensor: tensor[rows])

    def with_sky_from(self, depth: float) -> View:
        """The same View with everything at this depth or beyond as sky."""
        if not depth > 0:
            raise ValueError(f"Expected a depth above 0 from which on it is sky, got {depth:g}. Correct it.")
        far = self.mask & (self.depth >= depth)
        sky = far if self.sky is None else far | self.sky
        return replace(self, depth=self.depth.masked_fill(far, 0), mask=self.mask & ~far, sky=sky)

    def to(self, device: torch.device | str) -> View:
        """The same View with every tensor on ``device``."""
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, change) -> View:
        tensors = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})

    @property
    def invalid_counts(self) -> tuple[int, ...]:
        """Number of invalid pixels of each image."""
        return tuple((~self.mask).sum(dim=(1, 2)).tolist())

    def require_valid(self) -> View:
        """Return self, or raise ValueError naming the first image without a valid pixel."""
        pixels = self.depth[0].numel()
        for index, count in enumerate(self.invalid_counts):
            if count == pixels:
                raise ValueError(
                    f"Expected a valid pixel (finite and above 0), got none among {pixels} in depth map "
                    f"{index} of {len(self)}. Check its source: the file or the mask, that it is depth, not "
                    "disparity or an inverted image, and that a latent was sampled by a KSampler."
                )
        return self

    def describe(self) -> str:
        """One line: size, unit, direction, range of the valid pixels, number of the invalid ones."""
        batch, height, width = self.depth.shape
        unit = "metres" if self.units == "metric" else "relative units"
        invalid, pixels = sum(self.invalid_counts), self.depth.numel()
        if invalid == pixels:
            span = "no valid pixel"
        else:
            valid = self.depth[self.mask]
            span = f"{float(valid.min()):.4g} to {float(valid.max()):.4g} {unit}"
        holes = f"{invalid} of {pixels} pixels invalid ({invalid / pixels:.1%})"
        return f"depth {batch} x {height} x {width}, {span}, larger = farther, {holes}"

    def to_control_image(
        self,
        *,
        spacing: Spacing = "disparity",
        near_percentile: float = 1.0,
        far_percentile: float = 99.0,
        invalid_gray: float = 0.0,
    ) -> Tensor:
        """A gray IMAGE (b, h, w, 3) in [0, 1] for depth ControlNets: near is white, far is black.

        Each image is scaled on its own between two percentiles of its valid depth (0 = nearest pixel, 100 =
        farthest): nearer than ``near_percentile`` is white, farther than ``far_percentile`` black. In between
        gray is linear in ``spacing``: "disparity" (1 / depth, what MiDaS and most ControlNets were trained
        on), "depth", or between the two "log", where equal ratios of depth look equal. An image of constant
        depth is mid gray. Invalid pixels get ``invalid_gray``: black by default, because nearly all of them
        are sky, which is beyond the farthest pixel. The scale is lost: use the exports to keep it.
        """
        if spacing not in get_args(Spacing):
            raise ValueError(
                f"Expected a spacing of {get_args(Spacing)}, got {spacing!r}. Choose one of these."
            )
        if not 0 <= near_percentile < far_percentile <= 100:
            raise ValueError(
                f"Expected percentiles 0 <= near < far <= 100, got {near_percentile} (near) and "
                f"{far_percentile} (far). Correct them."
            )
        gray = torch.full_like(self.depth, invalid_gray)
        for index in range(len(self)):
            valid = self.mask[index]
            if bool(valid.any()):
                gray[index][valid] = _near_white(
                    self.depth[index][valid], spacing, near_percentile, far_percentile
                )
        return gray.unsqueeze(-1).repeat(1, 1, 1, 3)


def is_valid(depth: Tensor) -> Tensor:
    """True where a depth is finite and above 0."""
    return torch.isfinite(depth) & (depth > 0)


def explain_invalid(depth: Tensor, mask: Tensor | None = None) -> str | None:
    """One sentence counting the bad pixels of a raw depth by kind, or None if every pixel is good."""
    kinds = {
        "NaN": torch.isnan(depth),
        "infinite": torch.isinf(depth),
        "zero or negative": torch.isfinite(depth) & (depth <= 0),
    }
    if mask is not None:
        kinds["masked out"] = is_valid(depth) & ~mask.to(torch.bool)
    counts = {kind: int(which.sum()) for kind, which in kinds.items()}
    invalid = sum(counts.values())
    if invalid == 0:
        return None
    listed = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    share = f"{invalid} of {depth.numel()} depth pixels ({invalid / depth.numel():.1%})"
    return f"{share} are invalid and left out: {listed}."


def percentile(values: Tensor, percent: float) -> Tensor:
    """Percentile of a flat, non-empty tensor with linear interpolation.

    Torch.quantile stops at 16 million elements.
    """
    place = (values.numel() - 1) * percent / 100
    below = int(place)
    low = values.kthvalue(below + 1).values
    # the next in order is the same again, or the least above
    if below + 2 > values.numel() or int((values <= low).sum()) >= below + 2:
        return low
    high = values.masked_fill(values <= low, torch.inf).min()
    return low + (high - low) * (place - below)


def _near_white(depth: Tensor, spacing: Spacing, near_percentile: float, far_percentile: float) -> Tensor:
    """Valid depths (n,) to gray (n,): 1 at the near percentile, 0 at the far one."""
    near, far = percentile(depth, near_percentile), percentile(depth, far_percentile)
    if not bool(far > near):
        return torch.full_like(depth, 0.5)
    depth = depth.clamp(near, far)
    if spacing == "disparity":
        depth, near, far = 1 / depth, 1 / near, 1 / far
    elif spacing == "log":
        depth, near, far = depth.log(), near.log(), far.log()
    return ((depth - far) / (near - far)).clamp(0, 1)


def _read_field(name: str, value: Tensor, size: tuple[int, int]) -> Tensor:
    """An optional field of a depth map of ``size`` (height, width), in the type and with the axes of the
    View's field.
    """
    if name in ("mask", "sky"):
        return as_mask(value, name=name, size=size)
    if name == "confidence":
        confidence = as_float_map(value, name=name, size=size)
        return torch.where(confidence.isnan(), torch.zeros_like(confidence), confidence)
    if name == "image":
        return _with_batch(as_image(value, name=name), 4, name)
    tensor = as_float_tensor(value, name=name)
    return _with_batch(pad_pose(tensor) if name == "world_to_cam" else tensor, len(_TAILS[name]) + 1, name)


def _unit_normals(normals: Tensor, valid: Tensor) -> Tensor:
    """Normals (b, h, w, 3) of length 1, and 0 where they are not finite.

    Vectors whose median length is not 1 are refused.
    """
    if normals.shape[:-1] != valid.shape:
        return normals  # the View says it
    normals = torch.where(normals.isfinite().all(-1, keepdim=True), normals, torch.zeros_like(normals))
    lengths = normals.norm(dim=-1)
    known = lengths[valid & (lengths > 0)]
    if known.numel() and abs(float(known.median()) - 1) > _NORMAL_SLACK:
        raise ValueError(
            f"Expected normals of length 1, got vectors of a median length of {float(known.median()):.4g}. "
            "Of normals stored as colors, take 2 x color - 1 first."
        )
    off = ((lengths - 1).abs() > _NORMAL_ROUNDING) & (lengths > 0)
    return (
        torch.where(off.unsqueeze(-1), torch.nn.functional.normalize(normals, dim=-1), normals)
        if bool(off.any())
        else normals
    )


def _with_batch(tensor: Tensor, ndim: int, name: str) -> Tensor:
    """Add the batch axis to an unbatched tensor; any other number of axes is refused."""
    if tensor.ndim == ndim - 1:
        return tensor.unsqueeze(0)
    if tensor.ndim != ndim:
        raise ValueError(
            f"Expected {ndim} axes in {name} with the batch first, or {ndim - 1} without, got the shape "
            f"{tuple(tensor.shape)}. Reshape it."
        )
    return tensor


def _same_batch(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Repeat batches of 1 to the largest batch; two different ones are a ValueError."""
    largest = max(tensors, key=lambda name: tensors[name].shape[0])
    batch = tensors[largest].shape[0]
    for name, tensor in tensors.items():
        if tensor.shape[0] not in (1, batch):
            raise ValueError(
                f"Expected batches of one size, got {batch} of {largest} and {tensor.shape[0]} of {name}. "
                "Give equally many, or one for all."
            )
    return {name: tensor.expand(batch, *tensor.shape[1:]) for name, tensor in tensors.items()}
