"""Help texts beyond the options' own: defaults where an option has one, and examples of every command."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": (
        'spatialweave demo "a small green cone behind a large yellow ball on grass" --seed 3',
        "spatialweave demo --image photo.jpg --output depth-of-photo",
        'spatialweave demo "a blue cylinder" --depth depth.exr',
    ),
    "edit": (
        'spatialweave edit scene.png "move the red ball to the left" --out edited',
        'spatialweave edit scene.png "put the red ball behind the blue box" --out edited --seed 3',
    ),
    "gallery": (
        "spatialweave gallery --output site",
        "spatialweave gallery --output site --prompts prompts.json",
    ),
    "reconstruct": (
        "spatialweave reconstruct view_1.png view_2.png view_3.png --out scene",
        "spatialweave reconstruct photos/*.jpg --out scene --weights vggt_1b.safetensors --device cuda",
    ),
    "train": (
        "spatialweave train models/demo/recipes/codec.json",
        "spatialweave train models/modality_forcing/recipes/tiny_1_text_to_image.json --resume",
    ),
    "tiny": (
        "spatialweave tiny modality_forcing --prepare --workers 8",
        "spatialweave tiny modality_forcing --minutes 9",
        "spatialweave tiny modality_forcing --device cpu --minutes 5 --scenes 64 --data trial/data "
        "--runs trial/runs",
    ),
    "evaluate": (
        "spatialweave evaluate modality_forcing --preset tiny --n 64 --json figures.json",
        "spatialweave evaluate vggt --n 64",
        "spatialweave evaluate intrinsic_ldm --json evidence.json --markdown docs/evidence.md",
    ),
    "world": (
        "spatialweave world data/world --scenes 24000 --size 128 --workers 2",
        "spatialweave world data/moves --kind edits --layout files --scenes 100 --normals",
        "spatialweave world data/moves --kind moves --scenes 6000",
    ),
    "intrinsics": (
        "spatialweave intrinsics build photos data/intrinsics --size 512x512",
        "spatialweave intrinsics encode data/intrinsics data/latents --base sd21 --vae vae.safetensors",
        'spatialweave intrinsics sample "a red ball to the left of a blue box" --schedule drop --seed 3',
    ),
    "benchmark": (
        "spatialweave benchmark depth data/NYUv2 --model modality_forcing --n 64",
        "spatialweave benchmark depth data/eval --model comfyui --graph workflows/api/image_to_depth.json "
        "--set 1.model_name=flux_rgbd_9b_v2.safetensors --set 3.largest_size=512 --ensemble 10",
        "spatialweave benchmark pose data/CO3Dv2 --model vggt --weights vggt_1b.safetensors",
    ),
    "joyai": (
        "spatialweave joyai export data/moves data/spatialedit --layout spatialedit",
        "spatialweave joyai export data/moves data/3dit --layout object3dit --size 256",
        "spatialweave joyai encode data/moves data/joyai_encoded --base weights/joyimage-edit",
    ),
    "spatial_diff": (
        "spatialweave spatial_diff encode data/moves data/moves_latents --mirror --cells",
        "spatialweave spatial_diff encode data/edits data/latents --editor weights/flux-kontext --size 512",
        "spatialweave spatial_diff geometry data/moves data/moves_geometry --mirror",
    ),
    "bench": ("spatialweave bench kernels --json times.json --plot times.png",),
    "convert": (
        "spatialweave convert flux_rgbd_9b_v2.safetensors flux_rgbd_9b_v2_fp8.safetensors --format fp8",
    ),
    "weights": (
        "spatialweave weights --models ComfyUI/models",
        "spatialweave weights download flux2-vae.safetensors --models ComfyUI/models",
    ),
    "doctor": ("spatialweave doctor",),
}


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Appends the default to an option's help, except for switches and options without one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        has_none = action.default in (None, [], argparse.SUPPRESS) or isinstance(action.default, bool)
        return text if has_none or action.required else f"{text} (default: %(default)s)"


def epilog(command: str) -> str:
    """The last paragraphs of a command's help: examples, and for `train` the recipes of the pack."""
    lines = ["examples:", *EXAMPLES[command]]
    if command == "train":
        pack = Path(__file__).resolve().parents[2]
        found = sorted(path.relative_to(pack).as_posix() for path in pack.glob("models/*/recipes/*.json"))
        lines += ["", f"recipes, in {pack}:", *found]
    return "\n".join(line if line.endswith(":") or not line else f"  {line}" for line in lines)
