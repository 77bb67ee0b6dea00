"""The command `spatialweave weights`: published files listed, verified, and fetched when told to."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from ..core.text_files import show_path
from ..core.weights.download import download
from ..core.weights.files import WeightsError
from ..core.weights.registry import PublishedFile, find_on_disk, find_published, verify
from ..modality_forcing.released import released_files

PACK = Path(__file__).resolve().parents[2]
NO_FOLDER = "Where ComfyUI's models folder is, is not known; name it with --models, or set COMFYUI_PATH to ComfyUI's folder."


def run(action: str, name: str | None, models: Sequence[Path], say: Callable[[str], None]) -> None:
    """Do one action of the command; what it says goes to `say`. A refusal or a bad file is a ValueError or OSError."""
    files = released_files()
    chosen = [find_published(files, name)] if name else files
    folders = list(models) or default_models()
    for folder in models:
        if not folder.is_dir() and (action != "download" or folder.exists()):
            raise WeightsError(f"Expected ComfyUI's models folder, got {show_path(folder)}, which is no folder. Name it with --models.")
    if action == "list":
        for file in chosen:
            _list(file, folders, say)
    elif action == "verify":
        _verify(chosen, _need(folders), say)
    elif name is None:
        raise WeightsError(f"Which one? `spatialweave weights download NAME`, NAME being one of {', '.join(f.name for f in files)}.")
    else:
        place = find_on_disk(chosen[0], _need(folders))
        say(chosen[0].line)
        say(f"there already: {place}" if place else f"in place: {download(chosen[0], folders[0])}")


def default_models() -> list[Path]:
    """ComfyUI's models folder, if the pack lies in its custom_nodes or COMFYUI_PATH names it."""
    around = [PACK.parent.parent] if PACK.parent.name == "custom_nodes" else []
    around += [Path(place) for place in [os.environ.get("COMFYUI_PATH")] if place]
    return [place / "models" for place in around if (place / "models").is_dir()]


def _need(folders: list[Path]) -> list[Path]:
    if not folders:
        raise WeightsError(NO_FOLDER)
    return folders


def _list(file: PublishedFile, folders: Sequence[Path], say: Callable[[str], None]) -> None:
    place = find_on_disk(file, folders)
    state = f"there: {place}" if place else "not there" if folders else "not looked for: --models was not given"
    say(f"{file.line}\n    {state}")


def _verify(files: Sequence[PublishedFile], folders: Sequence[Path], say: Callable[[str], None]) -> None:
    bad = []
    for file in files:
        place = find_on_disk(file, folders)
        if place is None:
            say(f"{file.name} is not there.")
            continue
        with tqdm(total=place.stat().st_size, unit="B", unit_scale=True, desc=file.name, disable=None) as bar:
            try:
                say(verify(file, place, lambda done, bar=bar: bar.update(done - bar.n)))
            except WeightsError as error:
                bad.append(str(error))
    if bad:
        raise WeightsError(" ".join(bad))
