"""Training of spatial transformers, stage 1: captions with depth, one batch overfit, bit-exact resume."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from spatialweave.models.core.training.loop import run_recipe
from spatialweave.models.core.training.recipe import Recipe
from spatialweave.models.spatial_fusion.config import find_transformer_preset
from spatialweave.models.spatial_fusion.mllm import read_semantic_state
from spatialweave.models.spatial_fusion.network import SpatialTransformer
from spatialweave.models.spatial_fusion.pipeline import infer_view
from spatialweave.models.spatial_fusion.training import (
    TRANSFORMER_FILE,
    SpatialDepthLoss,
    draw_tokens,
    fit_target,
    init_spatial_weights,
    spatial_loss,
)
from spatialweave.models.spatial_fusion.weights import load_spatial_transformer, save_spatial_transformer
from spatialweave.models.trainers import spatial_transformer as trainer
from spatialweave.models.trainers.builders import BUILDERS

transformers = pytest.importorskip("transformers", reason="the trainer's extra is not installed")
WORDS = ["<pad>", "a", "red", "blue", "ball", "box", "near", "far", "left", "right", "on", "the"]
CAPTIONS = ["a red ball on the left", "a blue box on the right", "a near ball", "a far box"]
SIDE = 42
CONFIG = {
    "mllm": "small", "mllm_layers": 4, "mllm_width": 32, "kv_heads": 1, "head_dim": 16,
    "mrope_section": [2, 3, 3], "width": 32, "heads": 2, "ffn_width": 48, "queries_side": 3,
    "encoder_width": 16, "encoder_table_side": 3, "dpt_features": 16, "dpt_out_channels": [16, 16, 16, 16],
}  # fmt: skip


@pytest.fixture(scope="module")
def mllm(tmp_path_factory):
    """A folder with a small random Qwen2 and a tokenizer of whole words, as transformers saves them."""
    folder = tmp_path_factory.mktemp("mllm")
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    model = transformers.Qwen2Model(config)
    with torch.no_grad():
        [value.normal_(0, 0.3) for name, value in model.named_parameters() if "norm" not in name]
    model.save_pretrained(folder)
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<pad>"},
    }  # fmt: skip
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/tokenizer.json").write_text(json.dumps(tokenizer))
    facts = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>"}
    (folder / "tokenizer/tokenizer_config.json").write_text(json.dumps(facts))
    return folder


def depth_of(index):
    """A plane that rises to the side, or to the top, by the caption; in another unit for each."""
    ramp = np.linspace(1, 3, SIDE, dtype=np.float32)
    planes = [np.tile(ramp, (SIDE, 1)), np.tile(ramp[::-1], (SIDE, 1))]
    planes += [planes[0].T, planes[1].T]
    return planes[index] * 10.0**index


@pytest.fixture
def world(tmp_path):
    """A dataset folder of loose depth files with holes, and captions."""
    folder = tmp_path / "world"
    folder.mkdir()
    lines = []
    for i, text in enumerate(CAPTIONS):
        depth = depth_of(i)
        depth[:6, :6] = np.inf
        np.save(folder / f"{i}.npy", depth)
        lines.append({"depth": f"{i}.npy", "caption": text, "captions": [text, f"the {text[2:]}"]})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def recipe(world, mllm, output, **changes):
    model = {"mllm": str(mllm), "tokenizer": str(mllm / "tokenizer"), "config": CONFIG, "ship": "float32"}
    model |= changes.pop("model", {})
    data = {"folder": str(world), "captions": 2, **changes.pop("data", {})}
    values = {
        "system": "spatial_transformer", "steps": 4, "batch_size": 4, "lr": 3e-3, "data": data, "ema": 0.5,
        "model": model, "freeze": ["image_encoder", "image_proj"], "output": str(output),
    }  # fmt: skip
    return Recipe.from_json({**values, **changes})


def test_a_sample_has_its_captions_tokens_and_depth(world, mllm, tmp_path):
    task = BUILDERS["spatial_transformer"](recipe(world, mllm, tmp_path / "run"))
    sample = task.dataset[2]
    assert sample["lengths"].tolist() == [3, 3] and sample["ids"].shape == (2, 6)
    assert [[WORDS[i] for i in row] for row in sample["ids"].tolist()] == [
        ["a", "near", "ball", *["<pad>"] * 3], ["the", "near", "ball", *["<pad>"] * 3],
    ]  # fmt: skip
    assert np.array_equal(sample["depth"][6:].numpy(), depth_of(2)[6:])
    assert not sample["mask"][:6, :6].any() and sample["mask"].sum() == SIDE**2 - 36


def test_the_paper_template_is_around_the_caption(world, mllm, tmp_path):
    seen = []
    dataset = trainer.CaptionedDepth(
        trainer.CaptionedDepthRequest(str(world)), find_transformer_preset("tiny"),
        lambda texts: seen.extend(texts) or [[1]], trainer.TEMPLATES["omnigen2"],
    )  # fmt: skip
    assert len(dataset) == 4 and seen[0].endswith("<|im_start|>user\na red ball on the left<|im_end|>\n")


def test_the_target_has_a_mean_of_one_over_valid_pixels_of_the_nearest_kind():
    depth = torch.rand(2, 30, 40) * torch.tensor([5.0, 500.0])[:, None, None] + 1
    mask = torch.rand(2, 30, 40) > 0.3
    target, known = fit_target(torch.where(mask, depth, float("nan")), mask, (15, 20))
    rows, columns = np.arange(15) * 2 + 1, np.arange(20) * 2 + 1
    assert torch.equal(known, mask[:, rows][:, :, columns])
    for i in range(2):
        values = depth[i, rows][:, columns]
        want = values / values[known[i]].mean()
        assert torch.allclose(target[i][known[i]], want[known[i]]) and not target[i][~known[i]].any()


@pytest.mark.parametrize("space", ["linear", "log"])
def test_the_loss_is_the_mean_error_over_valid_pixels(world, mllm, tmp_path, space):
    task = BUILDERS["spatial_transformer"](recipe(world, mllm, tmp_path / "run", data={"captions": 1}))
    batch = task.collate([task.dataset[i] for i in range(4)])
    settings = SpatialDepthLoss(space=space, confidence=0.5)
    read = task.loss.keywords["read"]
    loss, logs = spatial_loss(task.model, batch, torch.Generator(), read=read, settings=settings)
    ids, mask = draw_tokens(batch, torch.Generator())
    with torch.no_grad():
        found = task.model(
            read_semantic_state(task.companions[0], ids, mask, task.model.config), (3, 3), (SIDE, SIDE)
        )
    errors, doubts = [], []
    for i in range(4):
        known = batch["mask"][i].numpy()
        truth = depth_of(i)[known] / depth_of(i)[known].mean()
        got, sure = found.depth[i].numpy()[known], found.confidence[i].numpy()[known]
        error = np.abs(np.log(got / truth)) if space == "log" else np.abs(got - truth)
        errors.append(error.mean())
        doubts.append(sure * error - 0.5 * np.log(sure))
    assert float(logs["depth"]) == pytest.approx(np.mean(errors), rel=1e-5)
    assert float(logs["confidence"]) == pytest.approx(np.concatenate(doubts).mean(), rel=1e-4)
    assert float(loss.detach()) == pytest.approx(float(logs["depth"] + logs["confidence"]), rel=1e-6)


def test_one_caption_of_each_image_is_drawn_and_padding_is_cut():
    ids = torch.arange(24).view(2, 3, 4)
    lengths = torch.tensor([[1, 2, 3], [2, 2, 2]])
    seen = set()
    for seed in range(40):
        drawn, mask = draw_tokens({"ids": ids, "lengths": lengths}, torch.Generator().manual_seed(seed))
        choice = tuple(int(drawn[i, 0] - ids[i, 0, 0]) // 4 for i in range(2))
        counts = [int(lengths[i, choice[i]]) for i in range(2)]
        assert mask.sum(1).tolist() == counts and drawn.shape[1] == max(counts)
        seen.add(choice)
    assert len(seen) == 9


@pytest.mark.slow
def test_a_run_overfits_four_captions_to_their_depth(world, mllm, tmp_path):
    """Captions alone tell the four planes apart: depth follows from the prompt."""
    plan = recipe(world, mllm, tmp_path / "run", data={"captions": 1}, loss={"confidence": 0.05})
    task = BUILDERS["spatial_transformer"](plan)
    batch = task.collate([task.dataset[i] for i in range(4)])
    before = {name: value.clone() for name, value in task.companions[0].state_dict().items()}
    optimizer, errors = torch.optim.Adam(task.model.parameters(), lr=3e-3), []
    for step in range(150):
        loss, logs = task.loss(task.model, batch, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(float(logs["depth"]))
    # the planes' own mean absolute deviation from their common mean is .25
    assert errors[0] > 0.2 and errors[-1] < 0.06, (errors[0], errors[-1])
    after = task.companions[0].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    ids = torch.tensor([[WORDS.index(word) for word in CAPTIONS[0].split()]])
    semantic = read_semantic_state(task.companions[0], ids, None, task.model.config)
    view = infer_view(task.model, task.model.config, semantic, (64, 64))
    truth = torch.from_numpy(depth_of(0) / depth_of(0).mean())
    assert (view.depth[0] - truth).abs()[:, 8:].mean() < 0.1


def test_a_run_resumes_bit_for_bit_and_ships_a_file_that_loads(world, mllm, tmp_path):
    whole = run_recipe(recipe(world, mllm, tmp_path / "whole"), BUILDERS)
    run_recipe(recipe(world, mllm, tmp_path / "parts", stop=2), BUILDERS)
    second = run_recipe(recipe(world, mllm, tmp_path / "parts"), BUILDERS, resume=True)
    states = [load_file(each.checkpoint / "model.safetensors") for each in (whole, second)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    path = tmp_path / "parts" / TRANSFORMER_FILE
    network = load_spatial_transformer(path)
    assert network.config.mllm == "small" and network.config.pairing == "uniform"
    start = BUILDERS["spatial_transformer"](recipe(world, mllm, tmp_path / "third")).model.state_dict()
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, start[name])}
    assert {"queries", "layers.0.self_attn.q_proj.weight", "depth_head.norm.weight"} <= moved
    assert not [name for name in moved if name.startswith(("image_encoder", "image_proj"))]
    more = recipe(world, mllm, tmp_path / "more", model={"weights": str(path)})
    task = BUILDERS["spatial_transformer"](more)
    assert torch.equal(task.model.queries, network.queries) and task.model.queries.requires_grad
    other = {"weights": str(path), "config": CONFIG | {"pairing": "deep", "ffn_width": 48}}
    with pytest.raises(ValueError, match="got another pairing. Correct one of them"):
        BUILDERS["spatial_transformer"](recipe(world, mllm, tmp_path / "more", model=other))


def test_a_new_network_takes_encoder_and_head_of_vggts_file(world, mllm, tmp_path):
    from safetensors.torch import save_file

    plan = recipe(world, mllm, tmp_path / "run")
    other = SpatialTransformer(BUILDERS["spatial_transformer"](plan).model.config)
    init_spatial_weights(other, torch.Generator().manual_seed(9))
    parts = {"aggregator.patch_embed.": other.image_encoder, "depth_head.": other.depth_head}
    state = {
        prefix + name: value for prefix, part in parts.items() for name, value in part.state_dict().items()
    }
    save_file(state, tmp_path / "vggt.safetensors")
    plan = recipe(world, mllm, tmp_path / "run", model={"vggt": str(tmp_path / "vggt.safetensors")})
    network = BUILDERS["spatial_transformer"](plan).model
    weight = "scratch.layer1_rn.weight"
    assert torch.equal(network.depth_head.state_dict()[weight], other.depth_head.state_dict()[weight])
    assert not torch.equal(network.queries, other.queries)


def test_what_a_recipe_cannot_mean_is_a_sentence(world, mllm, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "manifest.jsonl").write_text(json.dumps({"depth": "0.npy", "caption": " "}))
    blind = tmp_path / "blind"
    blind.mkdir()
    np.save(blind / "0.npy", np.zeros((SIDE, SIDE), np.float32))
    (blind / "manifest.jsonl").write_text(json.dumps({"depth": "0.npy", "caption": "a ball"}))
    narrow = CONFIG | {"mllm_width": 64}
    for changes, words in (
        ({"preset": "huge"}, "Expected a preset from omnigen2, tiny"),
        ({"model": {"mllm": ""}}, "the folder of a language model and its tokenizer"),
        ({"model": {"mllm": str(empty)}}, "without config.json. Fetch it"),
        ({"model": {"tokenizer": str(empty)}}, "without tokenizer_config.json"),
        ({"model": {"config": narrow}}, "of width 64, 1 key heads of 16., as the spatial transformer, got"),
        ({"loss": {"space": "inverse"}}, "space"),
        ({"loss": {"confidence": -1.0}}, "confidence of at least 0"),
        ({"data": {"captions": 0}}, "captions of at least 1"),
        ({"data": {"folder": str(empty)}}, "Expected captions of at least one word"),
    ):
        with pytest.raises(ValueError, match=words):
            BUILDERS["spatial_transformer"](recipe(world, mllm, tmp_path / "run", **changes))
    task = BUILDERS["spatial_transformer"](
        recipe(world, mllm, tmp_path / "run", data={"folder": str(blind)})
    )
    with pytest.raises(ValueError, match="Expected a known depth pixel, got none. Leave the sample out"):
        task.dataset[0]
    request = trainer.CaptionedDepthRequest(str(world))
    with pytest.raises(ValueError, match="got none of one of .'a red ball on the left'.. Choose"):
        trainer.CaptionedDepth(request, task.model.config, lambda texts: [[]] * len(texts), "{}")


@pytest.mark.slow
def test_edits_train_beside_prompts_on_their_source_images(world, mllm, tmp_path):
    """Two lines of one caption and other source images; the other lines have none."""
    lines = [json.loads(line) for line in (world / "manifest.jsonl").read_text().splitlines()]
    pixels = np.random.default_rng(0).integers(0, 256, (2, 84, 84, 3), dtype=np.uint8)
    for i in range(2):
        Image.fromarray(pixels[i]).save(world / f"source{i}.png")
        lines[i] |= {"source_image": f"source{i}.png", "caption": "a ball", "captions": ["a ball"]}
    (world / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    plan = recipe(world, mllm, tmp_path / "run", data={"captions": 1}, freeze=["image_encoder"])
    task = BUILDERS["spatial_transformer"](plan)
    batch = task.collate([task.dataset[i] for i in range(4)])
    assert batch["is_edit"].tolist() == [True, True, False, False] and batch["source"].shape == (4, 42, 42, 3)
    halved = np.asarray(Image.fromarray(pixels[1]).resize((42, 42), Image.BICUBIC)).astype(int)
    assert np.abs(batch["source"][1].numpy().astype(int) - halved).max() <= 2 and not batch["source"][2].any()
    # the same scene without its image is the prompt's alone; a black image that counts is another
    loss = lambda **changes: float(  # noqa: E731
        task.loss(task.model, batch | changes, torch.Generator())[1]["depth"]
    )
    none = {"is_edit": torch.zeros(4, dtype=torch.bool)}
    assert loss(**none) == loss(**none, source=torch.full_like(batch["source"], 90))
    assert loss() != loss(**none) and loss() != loss(source=batch["source"].flip(0))
    optimizer, errors = torch.optim.Adam(task.model.parameters(), lr=3e-3), []
    for step in range(150):
        total, logs = task.loss(task.model, batch, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        errors.append(float(logs["depth"]))
    # one caption, two depths: .125 is the best without the images
    assert errors[-1] < 0.08, errors[-1]
    outcome = run_recipe(plan, BUILDERS)
    assert outcome.ending == "finished"
    for name, words in ((3, 'as "source_image" in Sample 0 .*, got 3'), ("no.png", "no.png")):
        lines[0]["source_image"] = name
        (world / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
        dataset = BUILDERS["spatial_transformer"](plan).dataset
        with pytest.raises((ValueError, OSError), match=words):
            dataset[0]


def test_saving_keeps_the_trained_precision(world, mllm, tmp_path):
    network = BUILDERS["spatial_transformer"](recipe(world, mllm, tmp_path / "run")).model
    path = save_spatial_transformer(tmp_path / "s.safetensors", network, dtype=torch.bfloat16)
    assert {value.dtype for value in load_file(path).values()} == {torch.bfloat16}
