"""Called by worker.py inside ComfyUI: spoilt files of joint latents through the node that loads them."""

import importlib.util
import json
import random
import shutil
import tempfile
from pathlib import Path

import folder_paths
import torch
from safetensors.torch import save

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py
FILE = "spoilt.joint.safetensors"


def load_mutations():
    spec = importlib.util.spec_from_file_location(
        "spatialweave_fuzz_mutations", Path(__file__).parents[1] / "fuzz" / "mutations.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sound():
    """As Save Joint Latent writes one."""
    streams = {
        "image": torch.zeros(1, 4, 2, 3), "depth": torch.ones(1, 1, 32, 48),
        "image_mask": torch.ones(1, 1, 2, 3),
    }
    notes = {
        "spatialweave": "joint latent", "spatialweave_size": json.dumps([30, 47]),
        "spatialweave_infinite_sky": "true",
    }
    return save(streams | {"depth_mask": torch.ones(1, 1, 32, 48)}, notes)


def latents(count, first=0):
    """What `count` spoilt files come to: how many are read or refused, and what is wrong with any of that."""
    spoil, before, found = (
        load_mutations(), folder_paths.get_input_directory(), {"read": 0, "refused": 0, "faults": []},
    )
    try:
        path = Path(tempfile.mkdtemp()) / FILE
        folder_paths.set_input_directory(str(path.parent))
        for number in range(first, first + count):
            path.write_bytes(spoil.spoil_safetensors(random.Random(number), sound()) if number else sound())
            outcome, fault = load(path)
            found[outcome] += 1
            found["faults"] += [f"{number}: {fault}"] if fault else []
    finally:
        folder_paths.set_input_directory(before)
        shutil.rmtree(path.parent)
    return found


def load(path):
    try:
        (latent,) = core.NODE_CLASS_MAPPINGS["SpatialWeave_LoadJointLatent"].execute(FILE).result
    except (ValueError, OSError) as error:
        said = str(error)
        fine = path.name in said and "not foreseen" not in said and "\n" not in said and len(said.split()) > 5
        return "refused", None if fine else said
    except Exception as error:  # noqa: BLE001 - what the test is for
        return "refused", f"{type(error).__name__}: {error}"
    image, depth = latent["samples"].unbind()
    fits = image.ndim == depth.ndim == 4 and image.shape[0] == depth.shape[0] and depth.shape[1] == 1
    size = latent.get("spatialweave_size", (1, 1))
    fits = (
        fits
        and len(size) == 2
        and all(type(side) is int and side > 0 for side in size)
        and image.is_floating_point()
    )
    sky = latent.get("spatialweave_infinite_sky", False)
    return "read", None if fits and isinstance(
        sky, bool
    ) else f"{tuple(image.shape)}, {tuple(depth.shape)}, {size}, {sky}"
