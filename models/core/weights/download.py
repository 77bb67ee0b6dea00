"""Downloads one published file, on request only.

All network access is huggingface_hub's, which ComfyUI requires.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from .files import WeightsError
from .registry import PublishedFile, find_on_disk, hash_file, write_record

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")  # the hub's own; it decides which values count as set
STAGING = ".spatialweave-download"  # beside the target, on its disk; its content is resumed


def download(file: PublishedFile, models: Path) -> Path:
    """The file in its folder of `models` or below it, downloaded if it is in neither.

    Its hash is checked before it is renamed to its final name.

    WeightsError if the download is not the published file; OSError, in one message, if nothing could be
    downloaded.
    """
    installed = find_on_disk(file, [models])
    if installed:
        return installed
    target = models / file.folder / file.name
    hub = _hub()
    if hub.constants.HF_HUB_OFFLINE:
        variable = next((name for name in OFFLINE if os.environ.get(name)), OFFLINE[0])
        raise OSError(
            f"Expected network access to download {file.name}, got {variable} set. Unset it, or put the "
            f"file there yourself: {file.line}"
        )
    staging = target.parent / STAGING
    try:
        staging.mkdir(parents=True, exist_ok=True)
        downloaded = Path(hub.hf_hub_download(file.repository, file.file, local_dir=staging))
        stated = (
            None if file.sha256 else hub.get_hf_file_metadata(hub.hf_hub_url(file.repository, file.file)).etag
        )
    except Exception as error:  # the hub's own, and those of a transport that changes with its version
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(
            f"Expected to download {file.name}, got an error ({reason}). Try again, or put it there "
            f"yourself: {file.line}"
        ) from error
    expected = file.sha256 or (stated if re.fullmatch("[0-9a-f]{64}", stated or "") else None)
    found = hash_file(downloaded)
    if expected not in (None, found):
        shutil.rmtree(staging, ignore_errors=True)
        raise WeightsError(
            f"Expected the SHA-256 {expected} from {file.url}, got {found}. The file was deleted; try again."
        )
    os.replace(downloaded, target)
    if file.sha256 is None:
        write_record(target, found)
    shutil.rmtree(staging, ignore_errors=True)
    return target


def _hub():
    try:
        import huggingface_hub
        import huggingface_hub.constants  # the package imports its parts lazily
    except ImportError as error:
        raise ImportError(
            "Expected huggingface_hub for downloads, which ComfyUI requires, got none. Install it: pip "
            "install huggingface_hub."
        ) from error
    return huggingface_hub
