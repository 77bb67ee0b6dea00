"""The small language model over captions, and the tiny spatial transformer that trains beside it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import spatialweave
from spatialweave.models.core.training.loop import run_recipe
from spatialweave.models.core.training.recipe import Recipe
from spatialweave.models.spatial_fusion.training import TRANSFORMER_FILE
from spatialweave.models.spatial_fusion.weights import load_spatial_transformer
from spatialweave.models.tiny.text import PAD, tokenize
from spatialweave.models.trainers.builders import BUILDERS
from spatialweave.models.trainers.caption_lm import Captions, caption_loss, tokenize_words
from spatialweave.models.world.export.dataset import export_dataset

transformers = pytest.importorskip("transformers", reason="the trainer's extra is not installed")
RECIPES = Path(spatialweave.__file__).parent / "models/spatial_fusion/recipes"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "world"
    export_dataset(folder, count=6, size=32, seed=0, split="train")
    return folder


def read_recipe(name, world, output, **changes):
    """A recipe that ships, shortened, on another folder."""
    values = json.loads((RECIPES / f"{name}.json").read_text())
    data = values["data"] | {"folder": str(world)}
    short = {"data": data, "steps": 2, "warmup": 0, "batch_size": 4, "output": str(output)}
    return Recipe.from_json(values | short | changes)


def test_every_caption_of_the_folder_is_read(world):
    lines = [json.loads(line) for line in (world / "manifest.jsonl").read_text().splitlines()]
    texts = [text for line in lines for text in line.get("captions", [line["caption"]])]
    captions = Captions(str(world))
    assert len(captions) == len(texts) >= 6
    assert all(torch.equal(captions[i]["ids"], row) for i, row in enumerate(tokenize(texts)))
    assert tokenize_words(texts[:1]) == [[int(i) for i in tokenize(texts[:1])[0] if i != PAD]]


def test_the_loss_is_the_cross_entropy_of_each_next_word_and_the_end():
    """Against logits chosen here, summed up word by word."""
    ids = torch.tensor([[4, 2, 3, PAD, PAD], [5, 2, PAD, PAD, PAD]])
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    loss, _ = caption_loss(lambda given, mask: logits, {"ids": ids}, torch.Generator())
    shares = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(-1, keepdims=True)
    next_words = [(0, 0, 2), (0, 1, 3), (0, 2, PAD), (1, 0, 2), (1, 1, PAD)]
    assert float(loss) == pytest.approx(-np.mean([np.log(shares[where]) for where in next_words]), rel=1e-5)


def test_the_language_model_learns_captions_and_later_words_do_not_leak(world, tmp_path):
    task = BUILDERS["caption_lm"](read_recipe("caption_lm_tiny", world, tmp_path / "lm"))
    batch = task.collate([task.dataset[i] for i in range(6)])
    optimizer, losses = torch.optim.Adam(task.model.parameters(), lr=3e-3), []
    for _ in range(40):
        loss, _ = task.loss(task.model, batch, torch.Generator())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0], (losses[0], losses[-1])
    ids = batch["ids"][:1, :6].clone()
    with torch.no_grad():
        first = task.model(ids, torch.ones_like(ids))
        ids[0, 4] = 7
        second = task.model(ids, torch.ones_like(ids))
    assert torch.allclose(first[:, :4], second[:, :4], atol=1e-5)
    assert (first[:, 4] - second[:, 4]).abs().max() > 1e-3


def test_both_recipes_follow_one_another_and_resume_bit_for_bit(world, tmp_path):
    lm = run_recipe(read_recipe("caption_lm_tiny", world, tmp_path / "lm"), BUILDERS)
    run_recipe(read_recipe("caption_lm_tiny", world, tmp_path / "parts", stop=1), BUILDERS)
    again = run_recipe(read_recipe("caption_lm_tiny", world, tmp_path / "parts"), BUILDERS, resume=True)
    states = [load_file(each.checkpoint / "model.safetensors") for each in (lm, again)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    saved = transformers.AutoModel.from_pretrained(tmp_path / "lm/mllm")
    assert type(saved).__name__ == "Qwen2Model" and saved.config.head_dim == 128
    values = json.loads((RECIPES / "spatial_transformer_tiny.json").read_text())
    assert values["model"]["mllm"] == "runs/caption_lm/mllm", "what the first recipe writes"
    model = values["model"] | {"mllm": str(tmp_path / "lm/mllm")}
    plan = read_recipe("spatial_transformer_tiny", world, tmp_path / "spatial", model=model)
    assert run_recipe(plan, BUILDERS).ending == "finished"
    network = load_spatial_transformer(tmp_path / "spatial" / TRANSFORMER_FILE)
    assert network.config.mllm == "SpatialWeave tiny" and network.queries.shape == (1, 64, 128)


def test_a_folder_without_captions_is_refused(tmp_path):
    np.save(tmp_path / "0.npy", np.ones((4, 4), np.float32))
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"depth": "0.npy", "caption": ""}))
    values = {"system": "caption_lm", "steps": 1, "data": {"folder": str(tmp_path)}, "output": str(tmp_path)}
    with pytest.raises(ValueError, match="Expected captions in .*, got none. Export the dataset"):
        BUILDERS["caption_lm"](Recipe.from_json(values))
