"""Calls that build, encode and evaluate dataset folders of several sizes, for worker_growth.py.

Scenes of 32 pixels in shards of 16: rendered by the world, encoded by the shipped tiny base and intrinsic
VAE, and scored against the depth of a plane.
"""

import itertools

import torch

from spatialweave.models.benchmarks.depth_folders import open_depth_folder
from spatialweave.models.benchmarks.depth_run import run_depth_benchmark
from spatialweave.models.core.geometry.view import View
from spatialweave.models.core.weights.files import write_tensors
from spatialweave.models.intrinsic_ldm import tiny
from spatialweave.models.intrinsic_ldm.backbones import load_tiny
from spatialweave.models.intrinsic_ldm.data.encode import encode_dataset
from spatialweave.models.world.export.dataset import export_dataset

COUNTS, SIDE, SHARD = (32, 128, 512), 32, 16


class Plane:
    """A predictor that costs nothing."""

    name, settings = "a plane", {}

    def __call__(self, image, number):
        return View.from_depth(torch.ones(image.shape[:2]), units="relative")


def write_tiny_base(folder):
    """The parts of the shipped base that encode, in diffusers' layout."""
    base = load_tiny()
    base.backbone.network.save_config(folder / "unet")
    base.autoencoder.module.save_pretrained(folder / "vae")
    state = {name: value.contiguous() for name, value in base.prompts.text.state_dict().items()}
    write_tensors(folder / tiny.TEXT_FILE, state, {}, kind="tiny text encoder")


def folder_calls(work):
    """Name to (number of scenes to a call); each call writes a folder of its own below `work`."""
    fresh = (work / f"out{number}" for number in itertools.count())
    write_tiny_base(work / "base")
    sources = {count: work / f"scenes{count}" for count in COUNTS}
    for count, source in sources.items():
        export_dataset(source, count=count, size=SIDE, shard_size=SHARD, normals=True, workers=0)

    def build(count):
        export_dataset(next(fresh), count=count, size=SIDE, shard_size=SHARD, normals=True, workers=0)

    def encode(count):
        encode_dataset(
            sources[count], next(fresh), base=work / "base", vae=tiny.VAE_FILE, shard_size=SHARD, batch=4
        )

    def evaluate(count):
        run_depth_benchmark(open_depth_folder(sources[count]), Plane(), ["scale-shift"], next(fresh))

    return {
        f"scenes, {call.__name__}": {count: lambda call=call, count=count: call(count) for count in COUNTS}
        for call in (build, encode, evaluate)
    }
