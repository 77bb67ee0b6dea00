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
from spatialweave.models.core.weights.files import WeightsError
from spatialweave.models.spatial_fusion.config import LanguageSizes, find_transformer_preset
from spatialweave.models.spatial_fusion.language import (
    LANGUAGE_FILE,
    fill_language,
    read_language,
    save_language,
    size_language,
    tokenize_words,
)
from spatialweave.models.spatial_fusion.network import SpatialTransformer
from spatialweave.models.spatial_fusion.training import TRANSFORMER_FILE
from spatialweave.models.spatial_fusion.weights import load_spatial_transformer, save_spatial_transformer
from spatialweave.models.tiny.text import PAD, tokenize
from spatialweave.models.trainers.builders import BUILDERS
from spatialweave.models.trainers.caption_depth import WorldCaptionDepth
from spatialweave.models.trainers.caption_lm import (
    CaptionRequest,
    Captions,
    caption_loss,
    collect_captions,
    init_decoder,
    make_decoder,
)
from spatialweave.models.trainers.spatial_transformer import CaptionedDepthRequest
from spatialweave.models.world.captions import mirror_caption, parse_caption
from spatialweave.models.world.export.dataset import export_dataset
from spatialweave.models.world.render import render
from spatialweave.models.world.scene import sample_scenes

transformers = pytest.importorskip("transformers", reason="the trainer's extra is not installed")
RECIPES = Path(spatialweave.__file__).parent / "models/spatial_fusion/recipes"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "world"
    export_dataset(folder, count=6, size=32, seed=0, split="train")
    return folder


def read_recipe(name, output, **changes):
    """A recipe that ships, shortened, on a few scenes."""
    values = json.loads((RECIPES / f"{name}.json").read_text())
    data = values["data"] | {"scenes": 6}
    short = {"data": data, "steps": 2, "warmup": 0, "batch_size": 4, "output": str(output)}
    return Recipe.from_json(values | short | changes)


def test_every_caption_of_the_folder_is_read(world):
    lines = [json.loads(line) for line in (world / "manifest.jsonl").read_text().splitlines()]
    texts = [text for line in lines for text in line.get("captions", [line["caption"]])]
    captions = Captions(collect_captions(CaptionRequest(folder=str(world))))
    assert len(captions) == len(texts) >= 6
    assert all(torch.equal(captions[i]["ids"], row) for i, row in enumerate(tokenize(texts)))
    assert tokenize_words(texts[:1]) == [[int(i) for i in tokenize(texts[:1])[0] if i != PAD]]


def test_scenes_give_their_captions_and_those_of_their_mirror_images_without_a_rendering():
    texts = collect_captions(CaptionRequest(scenes=5, captions=3, seed=1))
    assert len(texts) == 30 and texts == collect_captions(CaptionRequest(scenes=5, captions=3, seed=1))
    assert texts[15:] == [mirror_caption(text) for text in texts[:15]]
    for i, scene in enumerate(sample_scenes(1, 5, split="train")):
        names = sorted(item.name for item in scene.objects)
        for text in texts[3 * i : 3 * i + 3]:
            assert sorted(f"{p.color} {p.shape}" for p in parse_caption(text).phrases) == names


def test_scenes_give_their_depth_and_its_mirror_image_beside_their_captions():
    settings = {"scenes": 70, "captions": 2, "seed": 3, "size": (16, 24)}
    data = WorldCaptionDepth(**settings, tokenize=tokenize_words)
    scenes = sample_scenes(3, 70, split="train")
    texts = collect_captions(CaptionRequest(scenes=70, captions=2, seed=3))
    depth = render(scenes[65:66], 16, 24, samples=1).depth[0]
    for index, flipped, first in ((130, depth, 130), (131, depth.flip(-1), 270)):
        sample = data[index]
        assert torch.equal(sample["mask"], flipped.isfinite())
        assert torch.equal(sample["depth"], torch.where(sample["mask"], flipped, 0.0))
        for row, length, text in zip(sample["ids"], sample["lengths"], texts[first : first + 2], strict=True):
            assert row[:length].tolist() == tokenize_words([text])[0] and not row[length:].any()
    assert len(data) == 140


def test_the_loss_is_the_cross_entropy_of_each_next_word_and_the_end():
    """Against logits chosen here, summed up word by word."""
    ids = torch.tensor([[4, 2, 3, PAD, PAD], [5, 2, PAD, PAD, PAD]])
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    loss, _ = caption_loss(lambda given, mask: logits[:, : given.shape[1]], {"ids": ids}, torch.Generator())
    shares = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(-1, keepdims=True)
    next_words = [(0, 0, 2), (0, 1, 3), (0, 2, PAD), (1, 0, 2), (1, 1, PAD)]
    assert float(loss) == pytest.approx(-np.mean([np.log(shares[where]) for where in next_words]), rel=1e-5)


def test_the_language_model_learns_captions_and_later_words_do_not_leak(tmp_path):
    task = BUILDERS["caption_lm"](read_recipe("caption_lm_tiny", tmp_path / "lm"))
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


def test_both_recipes_follow_one_another_and_resume_bit_for_bit(tmp_path):
    lm = run_recipe(read_recipe("caption_lm_tiny", tmp_path / "lm"), BUILDERS)
    run_recipe(read_recipe("caption_lm_tiny", tmp_path / "parts", stop=1), BUILDERS)
    again = run_recipe(read_recipe("caption_lm_tiny", tmp_path / "parts"), BUILDERS, resume=True)
    states = [load_file(each.checkpoint / "model.safetensors") for each in (lm, again)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    saved = transformers.AutoModel.from_pretrained(tmp_path / "lm/mllm")
    assert type(saved).__name__ == "Qwen2Model" and saved.config.head_dim == 128
    values = json.loads((RECIPES / "spatial_transformer_tiny.json").read_text())
    assert values["model"]["mllm"] == f"runs/caption_lm/{LANGUAGE_FILE}", "what the first recipe writes"
    model = values["model"] | {"mllm": str(tmp_path / "lm" / LANGUAGE_FILE)}
    plan = read_recipe("spatial_transformer_tiny", tmp_path / "spatial", model=model)
    assert run_recipe(plan, BUILDERS).ending == "finished"
    network = load_spatial_transformer(tmp_path / "spatial" / TRANSFORMER_FILE)
    assert network.config.mllm == "SpatialWeave tiny" and network.queries.shape == (1, 64, 128)
    file = (tmp_path / "spatial" / TRANSFORMER_FILE).stat().st_size
    assert file < 1.2 * sum(value.numel() for value in network.state_dict().values()), "eight bits a weight"


def test_a_language_model_is_read_as_it_was_written_and_another_file_by_its_kind(tmp_path):
    sizes = size_language(find_transformer_preset("tiny"))
    decoder = make_decoder(find_transformer_preset("tiny"))
    init_decoder(decoder, torch.Generator().manual_seed(0))
    path = save_language(tmp_path / LANGUAGE_FILE, sizes, decoder.state_dict())
    assert path.stat().st_size < 1.1 * sum(value.numel() for value in decoder.parameters())
    found, state = read_language(path)
    assert found == sizes
    ids = torch.tensor(tokenize_words(["a red ball behind a blue box on grass"]))
    states = [each(input_ids=ids).last_hidden_state for each in (decoder, fill_language(found, state))]
    assert (states[0] - states[1]).abs().max() < 0.02 * states[0].abs().max(), "eight bits"
    for changes, words in (({"hidden_size": 256}, "tiny language model,"), ({}, "Expected a tiny language")):
        other = LanguageSizes.from_json(sizes.to_json() | changes)
        save_language(path, other, decoder.state_dict())
        if not changes:
            save_spatial_transformer(path, SpatialTransformer(find_transformer_preset("tiny"), device="cpu"))
        with pytest.raises(WeightsError, match=words):
            read_language(path)
    with pytest.raises(ValueError, match="Expected num_attention_heads as a multiple"):
        LanguageSizes.from_json(sizes.to_json() | {"num_key_value_heads": 2})


def test_either_a_folder_or_scenes_are_expected():
    words = "Expected either a folder or scenes, .* got .*Correct the recipe"
    for values in ({}, {"folder": "data/world", "scenes": 4}, {"scenes": 4, "captions": 0}):
        for kind in (CaptionRequest, CaptionedDepthRequest):
            with pytest.raises(ValueError, match=words):
                kind(**values)


def test_a_folder_without_captions_is_refused(tmp_path):
    np.save(tmp_path / "0.npy", np.ones((4, 4), np.float32))
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"depth": "0.npy", "caption": ""}))
    values = {"system": "caption_lm", "steps": 1, "data": {"folder": str(tmp_path)}, "output": str(tmp_path)}
    with pytest.raises(ValueError, match="Expected captions in .*, got none. Export the dataset"):
        BUILDERS["caption_lm"](Recipe.from_json(values))
