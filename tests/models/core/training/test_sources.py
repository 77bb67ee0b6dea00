"""A resumed run and the files that its recipe names: replaced under the same names they are told,
touched ones are not.
"""

import importlib.util
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from spatialweave.models.core.training.loop import run_recipe
from spatialweave.models.core.training.recipe import Recipe
from spatialweave.models.core.training.sources import fingerprint_file, fingerprint_path

pytest.importorskip("accelerate", reason="the trainer's extra is not installed")
_spec = importlib.util.spec_from_file_location(
    "inside_training", Path(__file__).with_name("inside_training.py")
)
inside_training = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(inside_training)


@pytest.fixture
def sources(tmp_path):
    """A dataset of a shard and a loose picture, and the folder of a base."""
    data, base = tmp_path / "data", tmp_path / "base"
    (data / "image").mkdir(parents=True)
    (base / "unet").mkdir(parents=True)
    save_file({"x": torch.zeros(4)}, data / "shard-00000.safetensors")
    save_file({"x": torch.zeros(4)}, data / "empty_context.safetensors")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(data / "image" / "0.png")
    (data / "image" / "0.json").write_text('{"depth_scale": 0.001}\n')
    lines = [
        {"shard": "shard-00000.safetensors", "row": 0, "caption": "manifest.jsonl"},
        {"image": "image/0.png", "caption": ""},
    ]
    (data / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    save_file({"x": torch.zeros(4)}, base / "unet" / "model.safetensors")
    (base / "unet" / "config.json").write_text("{}")
    (base / "README.md").write_text("not read")
    return data, base


def replace_bytes(path):
    """The last byte, under the same size and date; of a text's line end a blank becomes."""
    before, data = path.stat(), path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 0x2A]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("name, key", [
    ("data/shard-00000.safetensors", "data.folder"), ("data/image/0.png", "data.folder"),
    ("data/manifest.jsonl", "data.folder"),
    ("data/empty_context.safetensors", "data.folder"), ("data/image/0.json", "data.folder"),
    ("base/unet/model.safetensors", "model.base"),
    ("base/unet/config.json", "model.base"), ("vae.safetensors", "model.weights"),
])  # fmt: skip
def test_a_resumed_run_names_what_was_replaced(sources, tmp_path, name, key):
    data, base = sources
    save_file({"x": torch.zeros(4)}, tmp_path / "vae.safetensors")
    recipe = Recipe(
        system="toy", steps=2, batch_size=8, data={"folder": str(data)},
        model={"base": str(base), "weights": str(tmp_path / "vae.safetensors"), "kind": "base"},
    )  # fmt: skip
    builders = {"toy": inside_training.build_toy}
    run_recipe(recipe, builders, output=tmp_path / "run")
    for path in (tmp_path / name, base / "README.md"):
        os.utime(path, (1, 1))
    recipe = replace(recipe, steps=3)
    assert run_recipe(recipe, builders, output=tmp_path / "run", resume=True).step == 3, (
        "another date is no other file"
    )
    (base / "README.md").write_text("something else")
    replace_bytes(tmp_path / name)
    short = name.partition("/")[2] or name
    words = (
        r"Expected the files with which the run in .*run began, "
        rf"got others in {key} \(.*\): {short}\. Put them back to resume"
    )
    with pytest.raises(ValueError, match=words):
        run_recipe(replace(recipe, steps=4), builders, output=tmp_path / "run", resume=True)
    (tmp_path / "run" / "sources.json").unlink()
    assert run_recipe(replace(recipe, steps=4), builders, output=tmp_path / "run", resume=True).step == 4, (
        "an older run wrote none"
    )


def test_a_dataset_that_moved_is_the_same(sources, tmp_path):
    data, _ = sources
    before = fingerprint_path(data)
    assert sorted(before) == [
        "empty_context.safetensors", "image/0.json", "image/0.png", "manifest.jsonl",
        "shard-00000.safetensors",
    ]
    shutil.copytree(data, tmp_path / "copy", copy_function=shutil.copyfile)
    (tmp_path / "copy" / "latents-0.safetensors").write_bytes(b"a cache")
    assert fingerprint_path(tmp_path / "copy") == before


def test_large_files_are_told_apart_by_parts_of_them(tmp_path):
    """20 MB of other numbers; one byte more; the last byte."""
    values = np.random.default_rng(0).integers(0, 255, 20_000_000, dtype=np.uint8)
    kinds = {
        "a": values, "same": values.copy(), "others": values[::-1], "longer": np.append(values, 0),
        "end": np.append(values[:-1], 255),
    }
    found = {}
    for name, kind in kinds.items():
        kind.tofile(tmp_path / name)
        found[name] = fingerprint_file(tmp_path / name)
    assert found.pop("same") == found["a"] and len(set(found.values())) == len(found)
