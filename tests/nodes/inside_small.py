"""Called by worker.py inside ComfyUI: what goes wrong when files are written, and latents that do not fit."""

import errno
import sys
from pathlib import Path

import folder_paths
import torch
from PIL import Image

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py
sampling = sys.modules["spatialweave_tests_inside_sampling"]  # its `start` was called before


def node(name):
    return core.NODE_CLASS_MAPPINGS[f"SpatialWeave_{name}"].PREPARE_CLASS_CLONE(None)


def a_view():
    return ours("models.core.geometry.view").View.from_depth(torch.rand(1, 16, 16) + 1, units="metric")


def sentence(work):
    try:
        work()
    except Exception as error:  # noqa: BLE001 - ComfyUI shows any below its node
        return str(error)
    return None


def save(kind, prefix):
    if kind == "depth":
        options = {"format": "exr", "png_scale": 0.0, "exr_picture": True}
        return node("SaveDepth").EXECUTE_NORMALIZED(view=a_view(), filename_prefix=prefix, **options)
    return node("SaveJointLatent").EXECUTE_NORMALIZED(
        samples=sampling.rig().latent(), filename_prefix=prefix
    )


def prefixes(folder, kind):
    """What each file name prefix says, and the files that there are in the end."""
    folder_paths.set_output_directory(folder)
    Path(folder, "taken").write_text("a file")
    said = {
        prefix: sentence(lambda p=prefix: save(kind, p))
        for prefix in ("", " ", ".", "./", "taken/x", "fine", "below/fine")
    }
    files = [path.relative_to(folder).as_posix() for path in Path(folder).rglob("*.*")]
    return {"said": said, "files": sorted(files)}


def full_temporary_folder(folder):
    """Preview Depth where the second image cannot be written: its sentence, and what is left of the first."""
    folder_paths.set_temp_directory(folder)
    before, written = Image.Image.save, []

    def save(self, path, *args, **kwargs):
        Path(path).write_bytes(b"")
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)

    view = ours("models.core.geometry.view").View.from_depth(torch.rand(2, 16, 16) + 1, units="metric")
    shown = {"style": "colour", "near_percentile": 0.0, "far_percentile": 100.0}
    Path(folder, "kept.png").write_bytes(b"")
    Image.Image.save = save
    try:
        said = sentence(lambda: node("PreviewDepth").EXECUTE_NORMALIZED(view=view, **shown))
    finally:
        Image.Image.save = before
    return {"said": said, "left": sorted(path.name for path in Path(folder).iterdir())}


def latents():
    """What is said of two depths in one latent, and of one that nobody sampled."""
    r = sampling.rig()
    latent = r.latent()
    depth = node("SplitJointLatent").execute(latent).result[1]
    _, view = node("DecodeJointLatent").execute(latent, r.vae).result
    shown = {"style": "colour", "near_percentile": 0.0, "far_percentile": 100.0}
    return {
        "two depths": sentence(lambda: node("JoinJointLatent").execute(depth, depth)),
        "unsampled": sentence(lambda: node("PreviewDepth").EXECUTE_NORMALIZED(view=view, **shown)),
    }
