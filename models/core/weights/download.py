"""Fetch one published file, because somebody asked for it.

All that speaks to a network is huggingface_hub, which ComfyUI brings.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from .files import WeightsError
from .registry import PublishedFile, find_on_disk, hash_file, write_record

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")  # the hub's own; it decides what counts as set
STAGING = ".spatialweave-download"  # beside the target, on its disk; what is in it is resumed


def download(file: PublishedFile, models: Path) -> Path:
    """The file in its folder of `models` or below it, fetched if it is in neither. Its hash is checked before
    it gets its name.

    WeightsError if what came is not the published file; OSError, in one sentence, if nothing could be
    fetched.
    """
    there = find_on_disk(file, [models])
    if there:
        return there
    target = models / file.folder / file.name
    hub = _hub()
    if hub.constants.HF_HUB_OFFLINE:
        said = next((name for name in OFFLINE if os.environ.get(name)), OFFLINE[0])
        raise OSError(
            f"{said} is set, so nothing is fetched; unset it, or put the file there yourself: {file.line}"
        )
    staging = target.parent / STAGING
    try:
        staging.mkdir(parents=True, exist_ok=True)
        came = Path(hub.hf_hub_download(file.repository, file.file, local_dir=staging))
        stated = (
            None if file.sha256 else hub.get_hf_file_metadata(hub.hf_hub_url(file.repository, file.file)).etag
        )
    except Exception as error:  # the hub's own, and those of a transport that changes with its version
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(
            f"{file.name} could not be fetched ({reason}); try again, or put it there yourself: {file.line}"
        ) from error
    expected = file.sha256 or (stated if re.fullmatch("[0-9a-f]{64}", stated or "") else None)
    found = hash_file(came)
    if expected not in (None, found):
        shutil.rmtree(staging, ignore_errors=True)
        raise WeightsError(
            f"Expected the SHA-256 {expected} from {file.url}, got {found}. The file was deleted; try again."
        )
    os.replace(came, target)
    if file.sha256 is None:
        write_record(target, found)
    shutil.rmtree(staging, ignore_errors=True)
    return target


def _hub():
    try:
        import huggingface_hub
        import huggingface_hub.constants  # the package loads its parts when they are named
    except ImportError as error:
        raise ImportError(
            "Downloads need huggingface_hub, which ComfyUI's requirements bring; pip install huggingface_hub."
        ) from error
    return huggingface_hub
