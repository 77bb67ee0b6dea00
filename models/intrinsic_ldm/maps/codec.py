"""A View, normal maps, masks and line art to the eight channels of the intrinsic VAE, and back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...core.geometry.arrays import OVERSHOOT, as_image
from ...core.geometry.normals import NormalStyle, normals_to_image
from ...core.geometry.view import View
from ..config import MAPS
from ..vae import split_maps, stack_maps
from . import channels as codes
from .segmentation import COLORS, ids_to_masks, masks_to_ids, palette

AFFINE = (
    "1 / depth is right up to scale and shift: near and far are chosen, and Align Depth fits them to "
    "another depth"
)


def maps_to_channels(
    *,
    depth: View | None = None,
    normals: Tensor | None = None,
    segmentation: Tensor | None = None,
    line: Tensor | None = None,
    style: NormalStyle = "opengl",
) -> tuple[Tensor, str]:
    """(b, 8, h, w) in [-1, 1] and a line that describes the input; ValueError without any map.

    `normals` is a normal map (b, h, w, 3), `segmentation` the masks (n, h, w) of one image, `line` white on
    black, (b, h, w) or (b, h, w, c). A map with batch 1 is repeated for the whole batch.
    """
    maps, notes = {}, []
    if depth is not None:
        view = depth.require_valid()
        sky = None if view.sky is None else view.sky[:, None]
        maps["depth"] = codes.encode_depth(view.depth[:, None], view.mask[:, None], sky=sky)
    if normals is not None:
        check_normal_map(normals)
        maps["normals"] = codes.encode_normals(codes.normals_from_image(normals, directx=style == "directx"))
    if segmentation is not None:
        masks = segmentation.reshape(-1, *segmentation.shape[-2:])
        maps["segmentation"], (left_out,) = codes.encode_segmentation(masks_to_ids(masks)[None])
        without = f", of which {left_out} have no color (there are {COLORS})" if left_out else ""
        notes.append(f"masks: {len(masks)}{without}")
    if line is not None:
        gray = line[..., :3].mean(dim=-1) if line.dim() == 4 else line.reshape(-1, *line.shape[-2:])
        maps["line"] = codes.encode_line(gray[:, None])
    check_map_sizes(maps)
    batch = max((len(tensor) for tensor in maps.values()), default=0)
    stacked = stack_maps({name: tensor.cpu().expand(batch, -1, -1, -1) for name, tensor in maps.items()})
    missing = ", ".join(name for name in MAPS if name not in maps) or "none"
    return stacked, "; ".join([f"coded: {', '.join(maps)}", f"missing: {missing}", *notes])


def check_normal_map(image: Tensor) -> None:
    if image.dim() != 4 or image.shape[-1] < 3:
        raise ValueError(
            f"Expected a normal map (b, h, w, 3) at normals, got {tuple(image.shape)}. Use the output of "
            "Normals from Depth."
        )


def check_map_sizes(maps: dict[str, Tensor]) -> None:
    """All maps must have one size, and one batch size or 1."""
    sizes = {name: tuple(tensor.shape[2:]) for name, tensor in maps.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join("{} {} x {}".format(name, *size) for name, size in sizes.items())
        raise ValueError(f"Expected maps of one height and width, got {listed}. Resize them to the image's.")
    batches = {name: len(tensor) for name, tensor in maps.items()}
    if len({batch for batch in batches.values() if batch > 1}) > 1:
        listed = ", ".join(f"{batch} of {name}" for name, batch in batches.items())
        raise ValueError(
            f"Expected maps of one batch size, or of 1, got {listed}. Pass equally many, or one for all."
        )


@dataclass(frozen=True)
class MapImages:
    """The four maps of b images, as nodes return them."""

    view: View  # relative depth; with normals and, if there is one, the image
    normals: Tensor  # (b, h, w, 3) in [0, 1], a normal map
    segmentation: Tensor  # (b, h, w, 3) in [0, 1], one color per mask
    ids: Tensor  # (b, h, w), 0 = no mask
    present: list[list[int]]  # the ids of each image
    line: Tensor  # (b, h, w, 3) in [0, 1], white on black

    def masks(self, index: int) -> Tensor:
        """The masks (n, h, w) of one image, in the order of their ids."""
        if not 0 <= index < len(self.present):
            raise ValueError(
                f"Expected an index below {len(self.present)}, the batch size, got {index}. Choose a lower "
                "one."
            )
        return ids_to_masks(self.ids[index], self.present[index])

    def describe(self, index: int) -> str:
        """A line on the depth's ambiguity and the id of each mask of an image."""
        numbers = ", ".join(map(str, self.present[index])) or "none"
        return f"{self.view.describe()}\n{AFFINE}.\nids of the masks of image {index}: {numbers}"


def channels_to_maps(
    stacked: Tensor,
    *,
    near: float = codes.NEAR,
    far: float = codes.FAR,
    style: NormalStyle = "opengl",
    image: Tensor | None = None,
) -> MapImages:
    """(b, 8, h, w) of the VAE to maps; `near` and `far` are the depths assigned to +1 and -1.

    `image` (b, h, w, c) becomes the View's.
    """
    maps = split_maps(stacked.float())
    depth = codes.decode_depth(maps["depth"], near=near, far=far)
    normals = codes.decode_normals(maps["normals"]).movedim(1, -1)
    ids, present = codes.decode_segmentation(maps["segmentation"])
    if image is not None:
        image = as_image(image[..., :3], name="picture", overshoot=OVERSHOOT).to(depth.device)
    return MapImages(
        View.from_depth(depth, units="relative", normals=normals, image=image),
        normals_to_image(normals, style),
        palette(ids.device)[ids],
        ids,
        present,
        codes.decode_line(maps["line"]).movedim(1, -1).repeat(1, 1, 1, 3),
    )
