"""What `spatialweave weights` runs: published files are listed, verified, or downloaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from ..core.text_files import show_path
from ..core.weights.download import download
from ..core.weights.files import WeightsError
from ..core.weights.registry import PublishedFile, find_on_disk, find_published, verify
from ..modality_forcing import released as modality_forcing
from ..vggt import released as vggt

PACK = Path(__file__).resolve().parents[2]
NO_FOLDER = (
    "Expected ComfyUI's models folder, got none. "
    "Name it with --models, or set COMFYUI_PATH to ComfyUI's folder."
)


def released_files() -> list[PublishedFile]:
    """Those of all systems."""
    return [*modality_forcing.released_files(), *vggt.released_files()]


def run(action: str, name: str | None, models: Sequence[Path], say: Callable[[str], None]) -> None:
    """Run an action; output lines go to `say`. ValueError or OSError for a wrong setting or a bad file."""
    files = released_files()
    chosen = [find_published(files, name)] if name else files
    folders = list(models) or default_models()
    for folder in models:
        if not folder.is_dir() and (action != "download" or folder.exists()):
            raise WeightsError(
                f"Expected ComfyUI's models folder, got {show_path(folder)}, which is no folder. "
                "Name it with --models."
            )
    if action == "list":
        for file in chosen:
            _list(file, folders, say)
    elif action == "verify":
        _verify(chosen, _need(folders), say)
    elif name is None:
        names = ", ".join(file.name for file in files)
        raise WeightsError(
            "Expected the name of a file, got none. "
            f"Run `spatialweave weights download NAME` with one of {names}."
        )
    else:
        found = find_on_disk(chosen[0], _need(folders))
        say(chosen[0].line)
        say(f"there already: {found}" if found else f"downloaded: {download(chosen[0], folders[0])}")


def default_models() -> list[Path]:
    """ComfyUI's models folder, if the pack is in its custom_nodes or COMFYUI_PATH names it."""
    around = [PACK.parent.parent] if PACK.parent.name == "custom_nodes" else []
    around += [Path(folder) for folder in [os.environ.get("COMFYUI_PATH")] if folder]
    return [folder / "models" for folder in around if (folder / "models").is_dir()]


def _need(folders: list[Path]) -> list[Path]:
    if not folders:
        raise WeightsError(NO_FOLDER)
    return folders


def _list(file: PublishedFile, folders: Sequence[Path], say: Callable[[str], None]) -> None:
    path = find_on_disk(file, folders)
    state = f"there: {path}" if path else "not there" if folders else "not looked for: --models was not given"
    say(f"{file.line}\n    {state}")


def _verify(files: Sequence[PublishedFile], folders: Sequence[Path], say: Callable[[str], None]) -> None:
    bad = []
    for file in files:
        path = find_on_disk(file, folders)
        if path is None:
            say(f"{file.name} is not there.")
            continue
        with tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=file.name, disable=None) as bar:
            try:
                say(verify(file, path, lambda done, bar=bar: bar.update(done - bar.n)))
            except WeightsError as error:
                bad.append(str(error))
    if bad:
        raise WeightsError(" ".join(bad))
