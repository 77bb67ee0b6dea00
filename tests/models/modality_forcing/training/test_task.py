"""Recipes to runs: post-training a base of the klein shape family from a dataset folder, and training a text
encoder along.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from spatialweave.models.core.training.loop import run_recipe
from spatialweave.models.core.training.recipe import Recipe
from spatialweave.models.modality_forcing.config import ModalityForcingConfig, find_preset
from spatialweave.models.modality_forcing.network import ModalityForcing
from spatialweave.models.modality_forcing.training import task as training_task
from spatialweave.models.modality_forcing.training.loss import LossSettings
from spatialweave.models.modality_forcing.weights import is_image_text, load_network
from spatialweave.models.tiny.text import TinyTextEncoder, tokenize

pytest.importorskip("accelerate", reason="the trainer's extra is not installed")
RECIPES = Path(training_task.__file__).parents[1] / "recipes"
NARROW = {
    "context_in_dim": 20,
    "hidden_size": 48,
    "num_heads": 3,
    "axes_dim": [4, 4, 4, 4],
    "time_embed_dim": 32,
}
MINI = {
    **NARROW,
    "in_channels": 4,
    "depth_patch": 4,
    "depth_channels": 16,
    "num_double_blocks": 1,
    "num_single_blocks": 1,
}
ROWS = 4


def write_base(path, config):
    """A random text-to-image network under the names of FLUX.2."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        name: p.shape
        for name, p in ModalityForcing(config, device="meta").state_dict().items()
        if is_image_text(name)
    }
    save_file(
        {
            name: torch.randn(s, generator=generator) * (s[-1] ** -0.5) + (len(s) == 1)
            for name, s in shapes.items()
        },
        path,
    )


def write_folder(folder, config, **leave_out):
    generator = torch.Generator().manual_seed(1)
    folder.mkdir()
    tensors = {
        "latent": torch.randn(ROWS, config.in_channels, 2, 2, generator=generator),
        "context": torch.randn(ROWS, 5, config.context_in_dim, generator=generator),
        "depth": torch.rand(ROWS, 2 * config.depth_patch, 2 * config.depth_patch, generator=generator) * 5,
    }
    save_file(
        {name: value for name, value in tensors.items() if leave_out.get(name, True)},
        folder / "shard-00000.safetensors",
    )
    save_file({"context": torch.zeros(5, config.context_in_dim)}, folder / training_task.EMPTY_CONTEXT)
    lines = [json.dumps({"shard": "shard-00000.safetensors", "row": i, "caption": "x"}) for i in range(ROWS)]
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return str(folder)


def small(name, **changes):
    """A committed recipe, shortened."""
    values = json.loads((RECIPES / name).read_text())
    return Recipe.from_json(values | changes)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.json")), ids=lambda path: path.stem)
def test_committed_recipes_are_valid(path):
    recipe = Recipe.read(path)
    if recipe.system.endswith("modality_forcing"):
        LossSettings.from_json(recipe.loss)
        training_task.ModelSettings.from_json(recipe.model)
        find_preset(recipe.preset)


def test_klein_family_trains_from_a_dataset_folder(tmp_path):
    """The committed recipe on a narrow network of klein_4b's blocks: after four steps, the frozen are
    bit-equal and all others moved.
    """
    config = ModalityForcingConfig.from_json(find_preset("klein_4b").to_json() | NARROW)
    write_base(tmp_path / "base.safetensors", config)
    recipe = small(
        "klein_4b.json", steps=4, batch_size=4, accumulate=2, warmup=0, weight_decay=0.0, workers=0,
        log_every=1, mixed_precision="no",
        model={"base": str(tmp_path / "base.safetensors"), "distill": True, "config": NARROW},
        data={"folder": write_folder(tmp_path / "data", config)},
    )  # fmt: skip
    logged = []
    before = {name: p.clone() for name, p in training_task.build(recipe).model.state_dict().items()}
    outcome = run_recipe(
        recipe, {"modality_forcing": training_task.build}, output=tmp_path / "run", on_log=logged.append
    )
    after = load_file(outcome.checkpoint / "model.safetensors")

    frozen = {name for name in after if ".double_blocks." in name and ".img_" in name}
    assert len(frozen) == 5 * 6 and after.keys() == before.keys()
    assert {name for name in after if torch.equal(after[name], before[name])} == frozen
    base = load_file(tmp_path / "base.safetensors")
    assert all(
        torch.equal(after[f"network.{name}"], value)
        for name, value in base.items()
        if f"network.{name}" in frozen
    )
    assert {"rgb", "depth", "distill"} <= logged[-1].keys() and all(line["distill"] > 0 for line in logged)
    network, loaded = load_network(tmp_path / "run" / training_task.NETWORK_FILE)
    assert loaded == config and set(network.state_dict()) == {name.removeprefix("network.") for name in after}


def build_with_text(recipe):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = TinyTextEncoder(NARROW["context_in_dim"])
    return training_task.build(
        recipe, dataset=Captioned(), text_encoder=encoder, empty_tokens=tokenize([""])[0]
    )


class Captioned(torch.utils.data.Dataset):
    """Depth in metres and two captions a sample, as tokens."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        depth = torch.rand(8, 8, generator=generator) * 5
        return {
            "latent": torch.randn(4, 2, 2, generator=generator), "depth": depth, "mask": depth > 0.5,
            "tokens": tokenize(["a red ball", "a ball"]),
        }  # fmt: skip


def test_stages_hand_network_and_text_encoder_on(tmp_path):
    """Text to image first; the depth stage starts from its averaged weights; a third run goes on from whole
    weights.
    """
    common = {"system": "toy", "steps": 2, "batch_size": 4, "lr": 1e-3, "ema": 0.5}
    first = Recipe.from_json(common | {"model": {"config": MINI}, "loss": {"kind": "text_to_image"}})
    run_recipe(first, {"toy": build_with_text}, output=tmp_path / "first")
    with safe_open(tmp_path / "first" / "network.safetensors", framework="pt") as file:
        assert file.metadata()["trained"] == "text_to_image"
        assert file.metadata()["trained_size"] == "8"  # 2 x 2 latent pixels of 4 pixels each

    start = {"config": MINI, "text": str(tmp_path / "first" / "text.safetensors")}
    second = Recipe.from_json(
        common | {"model": start | {"base": str(tmp_path / "first" / "network.safetensors"), "distill": True}}
    )
    task = build_with_text(second)
    words = load_file(tmp_path / "first" / "text.safetensors")
    assert torch.equal(task.model.text_encoder.words.weight, words["words.weight"])
    base = load_network(tmp_path / "first" / "network.safetensors")[0]
    assert torch.equal(task.model.network.img_in.weight, base.img_in.weight)
    *_, teacher = task.companions
    assert not any(p.requires_grad for p in teacher.parameters()) and torch.equal(
        teacher.network.img_in.weight, base.img_in.weight
    )
    run_recipe(second, {"toy": build_with_text}, output=tmp_path / "second")

    third = Recipe.from_json(
        common | {"model": start | {"weights": str(tmp_path / "second" / "network.safetensors")}}
    )
    got, wanted = (
        build_with_text(third).model.network,
        load_network(tmp_path / "second" / "network.safetensors")[0],
    )
    assert all(torch.equal(value, wanted.state_dict()[name]) for name, value in got.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"model": {"bases": "x"}},
            r"in the recipe's model, got the unknown keys 'bases' \(did you mean 'base'\?\)",
        ),
        (
            {"model": {"base": "a", "weights": "b"}},
            "Expected base or weights in the recipe's model, got both",
        ),
        (
            {"model": {"distill": True}},
            r"Expected a base in the recipe's model for distill \(the frozen base is the "
            r"teacher\), got none",
        ),
        ({"model": {"config": {"hidden": 3}}}, "in the recipe's model.config, got the unknown keys 'hidden'"),
        ({"preset": "large"}, "Expected one of the presets klein_9b, klein_4b, tiny, got 'large'"),
        ({"data": {}}, "Expected a folder in the recipe's data, got none"),
        ({"data": {"folder": "x", "colour": 1}}, "in the recipe's data, got the unknown keys 'colour'"),
        ({"data": {"folder": "no/such"}}, "Expected a dataset folder with manifest.jsonl, got .*no/such"),
    ],
)
def test_bad_recipes_are_refused_in_a_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        training_task.build(Recipe.from_json({"system": "x", "steps": 1} | changes))


def test_incomplete_folders_are_refused_in_a_sentence(tmp_path):
    config = ModalityForcingConfig.from_json(MINI)
    folder = write_folder(tmp_path / "data", config, latent=False, depth=False)
    values = {"system": "x", "steps": 1, "model": {"config": MINI}, "data": {"folder": folder}}
    with pytest.raises(
        ValueError, match="Expected samples with latent, context, depth for this loss, got context, caption"
    ):
        training_task.build(Recipe.from_json(values))
    (tmp_path / "data" / training_task.EMPTY_CONTEXT).unlink()
    with pytest.raises(
        ValueError,
        match=r"Expected empty_context\.safetensors in .*data, which caption_dropout needs, got none",
    ):
        training_task.build(Recipe.from_json(values))
