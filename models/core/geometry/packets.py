"""A View to and from the packets of ComfyUI's depth nodes: MOGE_GEOMETRY and DA3_GEOMETRY.

Both are plain dicts of tensors, described at the top of ComfyUI's nodes_moge.py and
nodes_depth_anything_3.py. Neither states whether its depth is metric, so the caller has to.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .arrays import OVERSHOOT, as_float_tensor, as_image, as_mask
from .camera import pad_pose, upright_world
from .points import depth_to_points, find_intrinsics
from .view import Units, View

SKY_FROM = 0.5  # probabilities from this on are sky, as in ComfyUI's DA3 nodes


def from_moge(packet: dict[str, Any], units: Units) -> View:
    """The View of a MOGE_GEOMETRY; points become depth and camera, infinite depth is sky.

    Panoramas are refused: they have no z-depth.
    """
    depth, points, intrinsics = packet.get("depth"), packet.get("points"), packet.get("intrinsics")
    if depth is None and points is None:
        raise ValueError(
            f"Expected depth or points in the MOGE_GEOMETRY, got the keys {sorted(packet)}. Run MoGe "
            "Inference first."
        )
    if intrinsics is None and points is not None:
        raise ValueError(
            "Expected the depth of one camera, got a MOGE_GEOMETRY that is a panorama, with distances all "
            "around. Use MoGe Inference."
        )
    depth = _plain(points[..., 2] if depth is None else depth)
    height, width = depth.shape[-2:]
    others = {"image": _rgb(packet.get("image")), "normals": packet.get("normal")}
    mask = packet.get("mask")
    others["mask"] = None if mask is None else as_mask(mask, size=(height, width)).cpu()
    if intrinsics is not None:
        others["intrinsics"] = _plain(intrinsics) * torch.tensor([[width], [height], [1.0]])
    return View.from_depth(depth, units=units, **_on_cpu(others))


def to_moge(view: View, fov_degrees: float | None = None) -> dict[str, Tensor]:
    """A MOGE_GEOMETRY: holes are NaN, sky is infinite, intrinsics are in widths and heights; no pose,
    confidence or unit.

    A view without a camera needs ``fov_degrees``; one without an image uses its depth as the image.
    """
    intrinsics = find_intrinsics(view, fov_degrees)
    height, width = view.depth.shape[-2:]
    depth = view.depth.masked_fill(~view.mask, torch.nan)
    if view.sky is not None:
        depth = depth.masked_fill(view.sky, torch.inf)
    points = depth_to_points(view.depth, intrinsics).masked_fill(~view.mask.unsqueeze(-1), torch.inf)
    sizes = torch.tensor([[width], [height], [1.0]], device=intrinsics.device)
    packet = {
        "points": points,
        "depth": depth,
        "intrinsics": intrinsics / sizes,
        "mask": view.mask,
        "image": _picture(view),
    }
    if view.normals is not None:
        packet["normal"] = view.normals
    return {name: tensor.cpu() for name, tensor in packet.items()}


def from_da3(packet: dict[str, Any], units: Units) -> View:
    """The View of a DA3_GEOMETRY; pixels that are probably sky become sky, poses are turned y up.

    ComfyUI's intrinsics are in pixels of the network's input size, which it does not state: the camera is
    assumed to be centered, as DA3's decoded ones are, which determines the size. Packets of `to_da3` state
    it.
    """
    if "depth" not in packet:
        raise ValueError(
            f"Expected depth in the DA3_GEOMETRY, got the keys {sorted(packet)}. Run Depth Anything 3 first."
        )
    depth = _plain(packet["depth"])
    others = {"image": _rgb(packet.get("image")), "confidence": packet.get("confidence")}
    if packet.get("sky") is not None:
        others["sky"] = _plain(packet["sky"]) >= SKY_FROM
        others["mask"] = ~others["sky"]
    intrinsics = packet.get("intrinsics")
    # ComfyUI writes identities where the network gave no camera
    if intrinsics is not None and bool((intrinsics[..., :2, 2] > 0).all()):
        others["intrinsics"] = _rescaled(
            _plain(intrinsics[0]), depth.shape[-2:], packet.get("intrinsics_size")
        )
        if packet.get("extrinsics") is not None:
            others["world_to_cam"] = upright_world(pad_pose(_plain(packet["extrinsics"][0])))
    return View.from_depth(depth, units=units, **_on_cpu(others))


def to_da3(view: View) -> dict[str, Any]:
    """A DA3_GEOMETRY: holes are 0, sky takes the farthest depth of its image and probability 1; a view with
    poses is "multiview".

    ``intrinsics_size``, the (height, width) in whose pixels the intrinsics are, is ours; ComfyUI's nodes do
    not read it.
    """
    depth = view.depth
    packet: dict[str, Any] = {
        "image": _picture(view),
        "mode": "mono" if view.world_to_cam is None else "multiview",
    }
    if view.sky is not None:
        depth = torch.where(view.sky, depth.amax(dim=(1, 2), keepdim=True), depth)
        packet["sky"] = view.sky.float()
    packet["depth"] = depth
    if view.confidence is not None:
        packet["confidence"] = view.confidence
    if view.intrinsics is not None:
        packet["intrinsics"] = view.intrinsics.unsqueeze(0)
        packet["intrinsics_size"] = tuple(depth.shape[-2:])
    if view.world_to_cam is not None:
        packet["extrinsics"] = upright_world(view.world_to_cam)[:, :3].unsqueeze(0)
    return {name: value.cpu() if isinstance(value, Tensor) else value for name, value in packet.items()}


def _on_cpu(others: dict[str, Tensor | None]) -> dict[str, Tensor]:
    """The entries among these names that are present; truth values stay bool."""
    there = {name: value for name, value in others.items() if value is not None}
    return {
        name: value.cpu() if value.dtype == torch.bool else _plain(value) for name, value in there.items()
    }


def _plain(tensor: Tensor) -> Tensor:
    """On the CPU and in float32, whatever ComfyUI's precision."""
    return as_float_tensor(tensor, name="geometry").detach().cpu()


def _rgb(image: Tensor | None) -> Tensor | None:
    """The colors of an IMAGE, which may exceed [0, 1] slightly after resizing."""
    return None if image is None else as_image(image[..., :3], overshoot=OVERSHOOT).detach().cpu()


def _picture(view: View) -> Tensor:
    return view.to_control_image() if view.image is None else view.image


def _rescaled(intrinsics: Tensor, size: tuple[int, int], counted_in: tuple[int, int] | None) -> Tensor:
    """Intrinsics (b, 3, 3) in pixels of ``size`` (height, width), from those in pixels of another size or of
    a centered camera.
    """
    height, width = size
    if counted_in is None:
        scale_x, scale_y = width / 2 / intrinsics[:, 0, 2], height / 2 / intrinsics[:, 1, 2]
    else:
        scale_x, scale_y = (
            intrinsics.new_full((len(intrinsics),), ratio)
            for ratio in (width / counted_in[1], height / counted_in[0])
        )
    return intrinsics * torch.stack([scale_x, scale_y, torch.ones_like(scale_x)], dim=-1).unsqueeze(-1)
