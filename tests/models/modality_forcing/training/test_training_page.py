"""docs/training.md: its script makes a folder of the layout it describes, and the recipe it speaks
of trains on that.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spatialweave.models.core.training.loop import run_recipe
from spatialweave.models.core.training.recipe import Recipe
from spatialweave.models.modality_forcing.config import ModalityForcingConfig, find_preset
from spatialweave.models.modality_forcing.training import task as training_task
from spatialweave.models.modality_forcing.weights import is_image_text, network_shapes
from spatialweave.models.world.export.dataset import export_dataset

RECIPE = Path(training_task.__file__).parents[1] / "recipes" / "klein_4b.json"
# the small text encoder is 32 wide, of which three layers are read
COUNT, SIDE, TOKENS, WIDTH = 3, 64, 512, 96
NARROW = {
    "context_in_dim": WIDTH, "hidden_size": 48, "num_heads": 3, "axes_dim": [4, 4, 4, 4],
    "time_embed_dim": 32,
}


@pytest.fixture(scope="module")
def page(pack):
    return pack.text("docs/training.md")


@pytest.fixture(scope="module")
def written(page, comfyui, tmp_path_factory):
    """The folder that the page's script made of a few scenes of the world."""
    folder = tmp_path_factory.mktemp("page")
    (script,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    (folder / "encode.py").write_text(script)
    export_dataset(folder / "world", COUNT, size=80, seed=1, samples=1)
    inside = Path(__file__).with_name("inside_training_page.py")
    call = [
        sys.executable, "-I", inside, comfyui, folder / "base", folder / "encode.py", folder / "world",
        folder / "data", SIDE,
    ]
    done = subprocess.run([str(word) for word in call], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "data"


def test_the_page_names_the_recipes_own_paths(page):
    recipe = json.loads(RECIPE.read_text())
    assert recipe["model"]["base"] in page and recipe["data"]["folder"] in page
    assert (
        f"(n, 512, {find_preset('klein_4b').context_in_dim})" in page and training_task.EMPTY_CONTEXT in page
    )


@pytest.mark.slow
@pytest.mark.comfyui
def test_the_script_writes_the_layout_of_the_page(written):
    shard = load_file(written / "shard-00000.safetensors")
    shapes = {name: tuple(value.shape) for name, value in shard.items()}
    cells, maps = (COUNT, 128, SIDE // 16, SIDE // 16), (COUNT, SIDE, SIDE)
    assert shapes == {"latent": cells, "context": (COUNT, TOKENS, WIDTH), "depth": maps, "mask": maps}
    assert all(bool(value.float().isfinite().all()) for value in shard.values())
    assert shard["mask"].any() and torch.equal(shard["mask"] > 0, shard["depth"] > 0)
    assert shard["latent"].float().std() > 0 and not torch.equal(shard["context"][0], shard["context"][1])
    assert load_file(written / training_task.EMPTY_CONTEXT)["context"].shape == (TOKENS, WIDTH)
    lines = [json.loads(line) for line in (written / "manifest.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(COUNT)) and all(line["caption"] for line in lines)


@pytest.mark.slow
@pytest.mark.comfyui
def test_the_recipe_trains_on_what_the_script_wrote(written, tmp_path):
    """One step of the committed recipe, on a narrow network of klein_4b's blocks and a random base."""
    pytest.importorskip("accelerate", reason="the trainer's extra is not installed")
    config = ModalityForcingConfig.from_json(find_preset("klein_4b").to_json() | NARROW)
    generator = torch.Generator().manual_seed(0)
    shapes = {name: shape for name, shape in network_shapes(config).items() if is_image_text(name)}
    base = {
        name: torch.randn(s, generator=generator) * (s[-1] ** -0.5) + (len(s) == 1)
        for name, s in shapes.items()
    }
    save_file(base, tmp_path / "base.safetensors")
    changes = {"steps": 1, "batch_size": 2, "accumulate": 1, "warmup": 0, "workers": 0, "log_every": 1}
    changes |= {
        "model": {"base": str(tmp_path / "base.safetensors"), "distill": True, "config": NARROW},
        "data": {"folder": str(written)},
    }
    recipe, logged = Recipe.from_json(json.loads(RECIPE.read_text()) | changes), []
    outcome = run_recipe(
        recipe, {"modality_forcing": training_task.build}, output=tmp_path / "run", on_log=logged.append
    )
    assert outcome.step == 1 and logged and outcome.loss == outcome.loss
