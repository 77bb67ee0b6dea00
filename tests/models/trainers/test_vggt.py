"""The recipe of VGGT on the world: views are rendered once, a run is resumed bit for bit,
and what ships loads strictly.
"""

import json

import pytest
import torch

from spatialweave.models.core.training.loop import run_recipe
from spatialweave.models.core.training.recipe import Recipe
from spatialweave.models.trainers.builders import BUILDERS
from spatialweave.models.trainers.vggt import build_vggt
from spatialweave.models.trainers.world_views import WorldViews, WorldViewsRequest, render_world_views
from spatialweave.models.vggt.weights import load_network
from spatialweave.models.world.multiview import sample_views

SIZES = {
    "img_size": 28, "patch_size": 14, "embed_dim": 32, "depth": 4, "num_heads": 2, "backbone_depth": 1,
    "backbone_num_heads": 2,
    "dpt_features": 8, "dpt_out_channels": [8, 8, 8, 8], "dpt_layers": [0, 1, 2, 3], "camera_num_heads": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views") / "world"
    render_world_views(WorldViewsRequest(str(folder), 64, views=2, size=28))
    return folder


def recipe(folder, output, **changes):
    data = {"folder": str(folder), "scenes": 64, "views": 2, "size": 28}
    values = {
        "system": "vggt", "steps": 4, "batch_size": 4, "lr": 1e-3, "data": data, "model": {"config": SIZES},
        "output": str(output),
    }
    return Recipe.from_json({**values, **changes})


def test_rendered_views_are_the_worlds(folder):
    dataset = WorldViews(WorldViewsRequest(str(folder), 64, views=2, size=28))
    (scene,) = sample_views(0, 1, 2, (28, 28), start=7, lens_jitter=0.2)
    sample = dataset[7]
    assert len(dataset) == 64 and sample["image"].dtype == torch.uint8
    assert (sample["image"].float() / 255 - scene.image).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(sample["depth"], scene.depth_metric.half())
    assert (
        torch.equal(sample["world_to_cam"], scene.world_to_cam)
        and torch.equal(sample["intrinsics"], scene.intrinsics)
    )


def test_rendering_goes_on_where_it_stopped_and_takes_no_other_settings(folder, monkeypatch):
    before = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.safetensors")}
    render_world_views(WorldViewsRequest(str(folder), 64, views=2, size=28))
    assert {file.name: file.stat().st_mtime_ns for file in folder.glob("*.safetensors")} == before
    with pytest.raises(ValueError, match="Expected .* to be rendered with"):
        render_world_views(WorldViewsRequest(str(folder), 64, views=2, size=42))


def test_scenes_are_whole_shards():
    with pytest.raises(ValueError, match="multiple of 64, got 100"):
        WorldViewsRequest("x", 100)


def test_a_run_resumes_bit_for_bit_and_ships_a_file_that_loads(folder, tmp_path):
    whole = run_recipe(recipe(folder, tmp_path / "whole"), BUILDERS)
    run_recipe(recipe(folder, tmp_path / "parts", stop=2), BUILDERS)
    second = recipe(folder, tmp_path / "parts")
    run_recipe(second, BUILDERS, resume=True)
    assert whole.ending == "finished"
    one, config = load_network(tmp_path / "whole" / "vggt.safetensors")
    two, _ = load_network(tmp_path / "parts" / "vggt.safetensors")
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())
    assert config.heads == ("camera", "depth") and config.pixel_center == 0.5 and config.img_size == 28


def test_weights_go_on_from_a_file(folder, tmp_path):
    run_recipe(recipe(folder, tmp_path / "first", steps=2), BUILDERS)
    file = tmp_path / "first" / "vggt.safetensors"
    task = build_vggt(recipe(folder, tmp_path / "next", model={"config": SIZES, "weights": str(file)}))
    stored = load_network(file, dtype=torch.float32)[0].state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in task.model.network.state_dict().items())


def test_the_recipe_that_ships_is_read_whole(root):
    values = json.loads((root / "models/vggt/recipes/tiny.json").read_text(encoding="utf-8"))
    read = Recipe.from_json(values)
    assert read.system == "vggt" and read.data["scenes"] % 64 == 0 and read.preset == "tiny"
