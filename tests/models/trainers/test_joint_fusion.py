"""Stage 2: L_diff + lambda L_depth from one caption, one batch overfit, bit-exact resume, files that load."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from spatialweave.models.core.training.loop import run_recipe
from spatialweave.models.core.training.recipe import Recipe
from spatialweave.models.spatial_fusion import joint_training as joint
from spatialweave.models.spatial_fusion.config import find_transformer_preset
from spatialweave.models.spatial_fusion.depth_code import code_depth
from spatialweave.models.spatial_fusion.language import tokenize_words
from spatialweave.models.spatial_fusion.training import ADAPTER_FILE, TRANSFORMER_FILE
from spatialweave.models.spatial_fusion.weights import load_adapter, load_spatial_transformer
from spatialweave.models.trainers import spatial_fusion
from spatialweave.models.trainers.builders import BUILDERS
from spatialweave.models.trainers.caption_lm import init_decoder, make_decoder

diffusers = pytest.importorskip("diffusers", reason="the trainer's extra is not installed")
CAPTIONS = ["a red ball", "a blue box to the left of a red ball"]


@pytest.fixture
def ready(write_tiny, tmp_path, monkeypatch):
    """A dataset folder of four loose samples, and the tiny base with random weights."""
    folder, rng, base = tmp_path / "source", np.random.default_rng(0), tmp_path / "base"
    folder.mkdir()
    base.mkdir()
    lines = []
    for i in range(4):
        cells = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(cells).resize((64, 64), Image.BICUBIC).save(folder / f"{i}.png")
        np.save(folder / f"{i}.npy", (rng.random((64, 64)) + 1).astype(np.float32))
        line = {"image": f"{i}.png", "depth": f"{i}.npy", "caption": CAPTIONS[0], "captions": CAPTIONS}
        lines.append(json.dumps(line))
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    write_tiny(base, 5)
    load = spatial_fusion.load_tiny
    monkeypatch.setattr(
        spatial_fusion, "load_tiny", lambda **more: load(base / "base.safetensors", **more)
    )
    decoder = make_decoder(find_transformer_preset("tiny"))
    init_decoder(decoder, torch.Generator().manual_seed(2))
    decoder.save_pretrained(tmp_path / "mllm")
    return folder


def recipe(source, tmp_path, **changes):
    values = {
        "system": "spatial_fusion", "preset": "tiny", "steps": 2, "batch_size": 2, "lr": 1e-3, "ema": 0.5,
        "data": {"source": str(source), "folder": str(tmp_path / "encoded"), "captions": 2},
        "model": {"transformer": {"mllm": str(tmp_path / "mllm"), "tokenizer": "tiny"}},
        "output": str(tmp_path / "run"),
    }  # fmt: skip
    return Recipe.from_json({**values, **changes})


def test_tokens_are_those_of_the_caption_that_the_base_reads(ready, tmp_path, monkeypatch):
    task, seen = BUILDERS["spatial_fusion"](recipe(ready, tmp_path)), {}
    batch = task.collate([task.dataset[i] for i in range(4)])
    parts = task.loss.keywords
    read, base = parts["read"], parts["base"]

    class Watched:
        conditions, add_noise, target = base.conditions, base.add_noise, base.target

        def predict(self, x, level, prompt):
            seen["prompt"] = prompt["context"]
            return base.predict(x, level, prompt)

    def watch(ids, mask):
        seen["ids"] = [row[known.bool()].tolist() for row, known in zip(ids, mask)]
        return read(ids, mask)

    settings = joint.JointLoss(joint.AdapterLoss(caption_dropout=0.0), joint.SpatialDepthLoss())
    given = {"base": Watched(), "empty": {}, "read": watch, "settings": settings}
    joint.joint_loss(task.model, batch, torch.Generator().manual_seed(1), **given)
    rows = tokenize_words(CAPTIONS)
    chosen = [rows.index(ids) for ids in seen["ids"]]
    assert set(chosen) == {0, 1}, "both are drawn"
    for i, k in enumerate(chosen):
        assert torch.equal(seen["prompt"][i], batch["context"][i, k])


def test_the_loss_is_that_of_both_stages_with_lambda(ready, tmp_path):
    """A new adapter adds 0: L_diff is the adapter's own loss; and L_depth is stage 1's, times lambda."""
    losses = {"image": {"caption_dropout": 0.0}, "depth": {"confidence": 0.0}, "weight": 2.0}
    task = BUILDERS["spatial_fusion"](recipe(ready, tmp_path, loss=losses))
    batch = task.collate([task.dataset[i] for i in range(4)])
    same = {name: value[:, :1] for name, value in batch.items() if name in ("ids", "lengths", "context")}
    loss, logs = task.loss(task.model, batch | same, torch.Generator().manual_seed(0))
    stage_1 = task.export.keywords["spatial"]
    alone, _ = stage_1.loss(task.model.transformer, batch | same, torch.Generator())
    assert float(logs["depth"]) == pytest.approx(2 * float(alone.detach()), rel=1e-5)
    assert float(loss.detach()) == pytest.approx(float(logs["image"] + logs["depth"]), rel=1e-6)
    assert float(logs["addend"]) == 0
    adapter_alone = task.export.keywords["adapter"]
    image, _ = adapter_alone.loss(task.model.adapter, batch | same, torch.Generator().manual_seed(0))
    assert float(logs["image"]) == pytest.approx(float(image.detach()), rel=1e-6)


def test_the_image_loss_reaches_the_spatial_transformer_through_the_depth(ready, tmp_path):
    task = BUILDERS["spatial_fusion"](recipe(ready, tmp_path, loss={"weight": 0.0}))
    batch = task.collate([task.dataset[i] for i in range(4)])
    torch.nn.init.normal_(task.model.adapter.out.weight, std=0.1)
    task.loss(task.model, batch, torch.Generator().manual_seed(0))[0].backward()
    assert task.model.transformer.queries.grad.abs().max() > 0
    task.model.zero_grad()
    torch.nn.init.zeros_(task.model.adapter.out.weight)
    task.loss(task.model, batch, torch.Generator().manual_seed(0))[0].backward()
    assert task.model.transformer.queries.grad.abs().max() == 0


def test_the_codes_gradient_is_that_of_finite_differences():
    depth = torch.rand(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5
    mask = torch.ones_like(depth, dtype=torch.bool)
    for code in ("unit_mean", "log_iqr"):
        torch.autograd.gradcheck(
            lambda x, code=code: code_depth(x, mask, code=code, bound=9.0, least_iqr=1e-3),
            depth.clone().requires_grad_(True),
        )


def test_one_batch_is_overfit_and_a_run_resumes_bit_for_bit(ready, tmp_path):
    task = BUILDERS["spatial_fusion"](recipe(ready, tmp_path))
    batch = task.collate([task.dataset[i] for i in range(2)])
    optimizer, seen = torch.optim.Adam(task.model.parameters(), lr=2e-3), []
    for _ in range(25):
        loss, logs = task.loss(task.model, batch, torch.Generator().manual_seed(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append((float(logs["image"]), float(logs["depth"])))
    assert seen[-1][0] < 0.97 * seen[0][0] and seen[-1][1] < 0.9 * seen[0][1], (seen[0], seen[-1])
    whole = run_recipe(recipe(ready, tmp_path, output=str(tmp_path / "whole")), BUILDERS)
    parts = {"output": str(tmp_path / "parts")}
    run_recipe(recipe(ready, tmp_path, stop=1, **parts), BUILDERS)
    again = run_recipe(recipe(ready, tmp_path, **parts), BUILDERS, resume=True)
    states = [load_file(each.checkpoint / "model.safetensors") for each in (whole, again)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert load_adapter(tmp_path / "parts" / ADAPTER_FILE).config.latent_channels == 8
    assert load_spatial_transformer(tmp_path / "parts" / TRANSFORMER_FILE).config.mllm == "SpatialWeave tiny"


def test_references_and_folders_without_the_captions_texts_are_refused(ready, tmp_path):
    with pytest.raises(ValueError, match="Expected no references .*, got 1. Train edits"):
        BUILDERS["spatial_fusion"](recipe(ready, tmp_path, data={"folder": "x", "references": 1}))
    BUILDERS["spatial_fusion"](recipe(ready, tmp_path))
    manifest = tmp_path / "encoded" / "manifest.jsonl"
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    for line in lines:
        del line["captions"]
    manifest.write_text("\n".join(map(json.dumps, lines)))
    data = {"folder": str(tmp_path / "encoded"), "captions": 2}
    with pytest.raises(ValueError, match="texts of its 2 captions, got one. Encode the data"):
        BUILDERS["spatial_fusion"](recipe(ready, tmp_path, data=data))
