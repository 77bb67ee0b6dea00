"""`spatialweave intrinsics sample`: the tiny system on the user's prompts, with and without maps.

Writes one file per image and map, and a contact sheet.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ..core.export.png8 import write_png8
from . import tiny
from .config import GUIDANCE, STEPS
from .layers import middle_layers
from .pipeline import IntrinsicPipeline
from .schedules import OFF, Constant, Drop, Gaussian, Schedule
from .sheet import intrinsic_sheet

SCHEDULES = ("gaussian", "drop", "constant", "off")
PathLike = str | os.PathLike


@dataclass(frozen=True)
class SampleRequest:
    """The command's arguments."""

    prompts: Sequence[str]
    output: Path
    schedule: str = "gaussian"
    seed: int = 0
    steps: int = STEPS
    guidance: float = GUIDANCE
    base: PathLike = tiny.BASE_FILE
    vae: PathLike = tiny.VAE_FILE
    lora: PathLike = tiny.LORA_FILE


def choose_schedule(name: str, system: IntrinsicPipeline) -> Schedule:
    """A schedule of this name with the paper's settings; drop takes the middle layers."""
    if name not in SCHEDULES:
        raise ValueError(f"Expected a schedule of {', '.join(SCHEDULES)}, got {name!r}. Choose one of these.")
    return {
        "gaussian": Gaussian(),
        "drop": Drop(middle_layers(system.layers, "blocks")),
        "constant": Constant(),
        "off": OFF,
    }[name]


def sample(request: SampleRequest) -> Iterator[str]:
    """Write image, base image and maps of each prompt, and sheet.png; yields a line per file."""
    system = IntrinsicPipeline.from_preset(
        "tiny", weights={"base": request.base, "vae": request.vae, "lora": request.lora}
    )
    settings = {"steps": request.steps, "guidance": request.guidance, "seed": request.seed}
    with tqdm(total=2 * request.steps, desc="sampling", unit="step") as bar:
        settings["on_step"] = lambda step, steps, latents: bar.update()
        result = system(request.prompts, schedule=choose_schedule(request.schedule, system), **settings)
        base = system(request.prompts, maps=False, **settings).image
    maps = result.decode_maps()
    run = (
        f"{request.schedule}, seed {request.seed}, {request.steps} steps, guidance {request.guidance:g}, "
        "SpatialWeave's tiny I-LDM"
    )
    images = {"base": base, "image": result.image, "depth": maps.view.to_control_image()}
    images |= {"normals": maps.normals, "segmentation": maps.segmentation, "line": maps.line}
    for index, prompt in enumerate(request.prompts):
        for name, batch in images.items():
            path = request.output / f"{index}_{name}.png"
            yield f"wrote {write_png8(path, batch[index].cpu(), {'prompt': prompt, 'run': run})}"
    sheet = intrinsic_sheet(request.prompts, base, maps, caption=run)
    yield f"wrote {write_png8(request.output / 'sheet.png', sheet)}"
