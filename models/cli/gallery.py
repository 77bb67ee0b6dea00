"""The command `spatialweave gallery`: runs of the demo as a web page."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .demo import add_demo
from .gallery_page import Entry, build_page, write_command
from .option_types import LARGEST_SEED, MOST_STEPS, path, whole
from .output_lines import write_line

# looked at with the shipped weights
SHOWN: tuple[tuple[str, int], ...] = (
    ("a purple cone to the left of an orange ball on grass", 0),
    ("a green cone, a red ball and a blue cylinder from left to right on grass", 26),
    ("a yellow cone to the right of a blue ball on sand", 3),
    ("a red ball to the left of a blue box", 0),
)


def add_gallery(command: argparse.ArgumentParser) -> None:
    option = command.add_argument
    option("--output", type=path, default=Path("site"), help="folder for index.html and its images")
    prompts = option("--prompts", type=path)
    prompts.help = 'a JSON file with other prompts and seeds: [["a red ball", 3], ...]'
    option("--steps", type=whole(1, MOST_STEPS), help="sampling steps; by default the demo's")
    command.set_defaults(run=_run_gallery)


def _run_gallery(options: argparse.Namespace) -> None:
    shown = SHOWN if options.prompts is None else read_prompts(options.prompts)
    more = [] if options.steps is None else ["--steps", str(options.steps)]
    folder = options.output / "gallery"
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, (prompt, seed) in enumerate(shown, 1):
        entries.append(make_entry(folder, number, prompt, seed, more))
        write_line(f"wrote {entries[-1].sheet}")
    page = options.output / "index.html"
    built_by = write_command(["gallery", "--output", options.output.name, *more])
    page.write_text(build_page(entries, built_by), encoding="utf-8")
    write_line(f"wrote {page}")


def read_prompts(file: Path) -> list[tuple[str, int]]:
    """Prompts with their seeds."""
    try:
        pairs = [(prompt, seed) for prompt, seed in json.loads(file.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise ValueError(
            f'Expected a list [["a red ball", 3], ...] in {file}, got something else ({error}). Correct it.'
        ) from error
    for prompt, seed in pairs:
        if not isinstance(prompt, str) or not isinstance(seed, int) or not 0 <= seed <= LARGEST_SEED:
            raise ValueError(f"Expected a prompt and a seed in {file}, got {[prompt, seed]}. Correct it.")
    if not pairs:
        raise ValueError(f"Expected at least one prompt in {file}, got none. Add one.")
    return pairs


def make_entry(folder: Path, number: int, prompt: str, seed: int, more: Sequence[str]) -> Entry:
    """Run the demo command, keep its image, orbit and contact sheet in `folder`, by their number."""
    from ..core.export.webp import write_webp
    from ..core.pictures import open_picture

    words = ["demo", prompt, "--seed", str(seed), "--refine", *more]
    demo = argparse.ArgumentParser()
    add_demo(demo)
    with tempfile.TemporaryDirectory() as made:
        request = demo.parse_args([*words[1:], "--output", made])
        request.run(request)
        names = {name: f"{number}_{name}" for name in ("image.png", "orbit.webp", "sheet.webp")}
        for name in ("image.png", "orbit.webp"):
            shutil.copyfile(Path(made) / name, folder / names[name])
        record = json.loads((Path(made) / "run.json").read_text(encoding="utf-8"))
        write_webp(folder / names["sheet.webp"], open_picture(Path(made) / "sheet.png").rgb)
    image, orbit, sheet = (f"{folder.name}/{name}" for name in names.values())
    candidates = len(record.get("candidates", [])) or 1
    return Entry(prompt, seed, candidates, write_command(words), image=image, sheet=sheet, orbit=orbit)
