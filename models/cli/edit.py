"""The command `spatialweave edit`: one image, one instruction, the tiny editor."""

from __future__ import annotations

import argparse

from .option_types import LARGEST_SEED, MOST_STEPS, check_device, number, path, whole
from .output_lines import write_line


def add_edit(command: argparse.ArgumentParser) -> None:
    option = command.add_argument
    image = option("image", type=path)
    image.help = "an image of the procedural world: balls, boxes, cylinders and cones"
    option("instruction", help='such as "move the red ball to the left"')
    option("--out", type=path, required=True, help="folder for the edited image and the page; it must be new")
    option("--seed", type=whole(0, LARGEST_SEED), default=0, help="of the sampling noise")
    option("--steps", type=whole(1, MOST_STEPS), help="sampling steps; by default the tiny editor's")
    guidance = option("--guidance", type=number(-1000, 1000))
    guidance.help = "scale of classifier-free guidance, 1 is off; by default the tiny editor's"
    size = option("--size", type=whole(16, 4096))
    size.help = "longer side in pixels to which the image is scaled first, 128 in training; default: as is"
    option("--page", choices=("png", "jpg"), default="png", help="kind of the page's file")
    option("--weights", type=path, help="another folder of the tiny system's files than the shipped one")
    option("--device", default="cpu", help="where to sample: cpu, cuda")
    command.set_defaults(run=_run_edit)


def _run_edit(options: argparse.Namespace) -> None:
    from .edit_image import EditImage, run_edit

    names = ("image", "instruction", "out", "seed", "steps", "guidance", "size", "page", "weights")
    request = EditImage(
        **{name: getattr(options, name) for name in names}, device=check_device(options.device)
    )
    for line in run_edit(request):
        write_line(line)
