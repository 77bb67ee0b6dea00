"""Maps as a View, images and masks to the eight channels of the intrinsic VAE, and back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...core.geometry.arrays import OVERSHOOT, as_image
from ...core.geometry.normals import NormalStyle, normals_to_image
from ...core.geometry.view import View
from ..config import MAPS
from ..vae import split_maps, stack_maps
from . import channels as maps
from .segmentation import COLOURS, ids_to_masks, masks_to_ids, palette

AFFINE = (
    "1 / depth is right up to scale and shift: near and far are as given, Align Depth fits them to another "
    "depth"
)


def encode_pictures(
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
    given, notes = {}, []
    if depth is not None:
        view = depth.require_valid()
        sky = None if view.sky is None else view.sky[:, None]
        given["depth"] = maps.encode_depth(view.depth[:, None], view.mask[:, None], sky=sky)
    if normals is not None:
        check_colours(normals, "normals")
        given["normals"] = maps.encode_normals(maps.normals_from_image(normals, directx=style == "directx"))
    if segmentation is not None:
        masks = segmentation.reshape(-1, *segmentation.shape[-2:])
        given["segmentation"], (left_out,) = maps.encode_segmentation(masks_to_ids(masks)[None])
        notes.append(
            f"masks: {len(masks)}"
            + (f", of which {left_out} found no colour (there are {COLOURS})" if left_out else "")
        )
    if line is not None:
        grey = line[..., :3].mean(dim=-1) if line.dim() == 4 else line.reshape(-1, *line.shape[-2:])
        given["line"] = maps.encode_line(grey[:, None])
    check_map_sizes(given)
    batch = max((len(tensor) for tensor in given.values()), default=0)
    stacked = stack_maps({name: tensor.cpu().expand(batch, -1, -1, -1) for name, tensor in given.items()})
    missing = ", ".join(name for name in MAPS if name not in given) or "none"
    return stacked, "; ".join([f"coded: {', '.join(given)}", f"missing: {missing}", *notes])


def check_colours(image: Tensor, name: str) -> None:
    if image.dim() != 4 or image.shape[-1] < 3:
        raise ValueError(
            f"A picture {tuple(image.shape)} arrived at {name}, wanted colours, (batch, height, width, 3)."
        )


def check_map_sizes(given: dict[str, Tensor]) -> None:
    """All maps must have one size, and one batch size or 1."""
    sizes = {name: tuple(tensor.shape[2:]) for name, tensor in given.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join("{} {} x {}".format(name, *size) for name, size in sizes.items())
        raise ValueError(f"Maps of different sizes arrived ({listed}): scale them to that of the picture.")
    batches = {name: len(tensor) for name, tensor in given.items()}
    if len({batch for batch in batches.values() if batch > 1}) > 1:
        listed = ", ".join(f"{batch} of {name}" for name, batch in batches.items())
        raise ValueError(f"Maps of {listed} arrived: give equally many, or one for all.")


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
                f"Picture {index} was asked of a batch of {len(self.present)}: choose an index below that."
            )
        return ids_to_masks(self.ids[index], self.present[index])

    def describe(self, index: int) -> str:
        """A line on the depth's ambiguity and the id of each mask of an image."""
        numbers = ", ".join(map(str, self.present[index])) or "none"
        return f"{self.view.describe()}\n{AFFINE}.\nids of the masks of picture {index}: {numbers}"


def decode_pictures(
    stacked: Tensor,
    *,
    near: float = maps.NEAR,
    far: float = maps.FAR,
    style: NormalStyle = "opengl",
    picture: Tensor | None = None,
) -> MapImages:
    """(b, 8, h, w) of the VAE to maps; `near` and `far` are the depths assigned to +1 and -1."""
    parts = split_maps(stacked.float())
    depth = maps.decode_depth(parts["depth"], near=near, far=far)
    normals = maps.decode_normals(parts["normals"]).movedim(1, -1)
    ids, present = maps.decode_segmentation(parts["segmentation"])
    image = (
        None
        if picture is None
        else as_image(picture[..., :3], name="picture", overshoot=OVERSHOOT).to(depth.device)
    )
    return MapImages(
        View.from_depth(depth, units="relative", normals=normals, image=image),
        normals_to_image(normals, style),
        palette(ids.device)[ids],
        ids,
        present,
        maps.decode_line(parts["line"]).movedim(1, -1).repeat(1, 1, 1, 3),
    )
