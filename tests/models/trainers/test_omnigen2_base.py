"""Depth adapters on OmniGen2: its files, one batch overfit, bit-exact resume."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from spatialweave.models.core.training.loop import run_recipe
from spatialweave.models.core.training.recipe import Recipe
from spatialweave.models.core.weights.files import WeightsError
from spatialweave.models.spatial_fusion.config import find_transformer_preset
from spatialweave.models.spatial_fusion.joint_training import JointLoss, build_joint_task
from spatialweave.models.spatial_fusion.omnigen2 import PRESETS, OmniGen2
from spatialweave.models.spatial_fusion.omnigen2_files import load_omnigen2
from spatialweave.models.spatial_fusion.training import (
    ADAPTER_FILE,
    TRANSFORMER_FILE,
    AdapterLoss,
    SpatialDepthLoss,
)
from spatialweave.models.spatial_fusion.weights import load_adapter
from spatialweave.models.trainers import omnigen2_base
from spatialweave.models.trainers.adapter_lora import LORA_FILE
from spatialweave.models.trainers.builders import BUILDERS
from spatialweave.models.trainers.caption_lm import init_decoder, make_decoder

TINY, TOKENS = PRESETS["tiny"], 9


def make_state(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=generator)
        * (value.shape[-1] ** -0.5 if value.ndim > 1 else 0.1)
        + (1.0 if value.ndim == 1 and not name.endswith("bias") else 0.0)
        for name, value in OmniGen2(TINY).state_dict().items()
    }


@pytest.fixture
def base(tmp_path):
    """OmniGen2's folder with a small random network, in two files and their index."""
    folder, state = tmp_path / "base" / "transformer", make_state()
    folder.mkdir(parents=True)
    names, files = sorted(state), {}
    for number, part in enumerate((names[:40], names[40:]), 1):
        files |= dict.fromkeys(part, f"diffusion_pytorch_model-0000{number}-of-00002.safetensors")
        save_file({name: state[name] for name in part}, folder / files[part[0]])
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder.parent


@pytest.fixture
def encoded(tmp_path):
    """Six samples of random numbers, with prompts of 2 to 7 tokens and two references each."""
    folder, draw = tmp_path / "encoded", torch.Generator().manual_seed(3)
    folder.mkdir()
    lengths = torch.randint(2, 8, (6, 2, 1), generator=draw)
    tensors = {
        "latent": torch.randn(6, 16, 4, 6, generator=draw),
        "depth": torch.rand(6, 32, 48, generator=draw) + 0.5,
        "context": torch.randn(6, 2, TOKENS, TINY.context_in_dim, generator=draw),
        "reference_0": torch.randn(6, 16, 4, 6, generator=draw),
        "reference_1": torch.randn(6, 16, 4, 4, generator=draw),
    }
    shard = {name: value.half() for name, value in tensors.items()}
    shard["context_mask"] = (torch.arange(TOKENS) < lengths).to(torch.uint8)
    save_file(shard, folder / "shard-00000.safetensors")
    empty = {"context": torch.zeros(TOKENS, TINY.context_in_dim).half()}
    empty["context_mask"] = (torch.arange(TOKENS) < 2).to(torch.uint8)
    save_file(empty, folder / "empty_context.safetensors")
    lines = [json.dumps({"shard": "shard-00000.safetensors", "row": i}) for i in range(6)]
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return folder


def recipe(base, encoded, tmp_path, **changes):
    values = {
        "system": "depth_adapter", "preset": "omnigen2", "steps": 4, "batch_size": 2, "lr": 1e-3, "ema": 0.5,
        "data": {"folder": str(encoded), "references": 2}, "model": {"base": str(base)},
        "output": str(tmp_path / "run"),
    }  # fmt: skip
    return Recipe.from_json({**values, **changes})


def test_omnigen2_files_load_whole_and_others_are_refused_by_name(base, tmp_path):
    state = make_state()
    save_file(
        {f"model.diffusion_model.{name}": value.half() for name, value in state.items()},
        tmp_path / "one.safetensors",
    )
    for path in (base, base / "transformer", tmp_path / "one.safetensors"):
        network = load_omnigen2(path)
        assert network.config == TINY
        for name, value in network.state_dict().items():
            torch.testing.assert_close(value, state[name], rtol=1e-3, atol=1e-3)
    lacking = {name: value for name, value in state.items() if name != "layers.1.ffn_norm2.weight"}
    save_file(lacking, tmp_path / "lacking.safetensors")
    save_file({"double_blocks.0.img_mod.lin.weight": torch.ones(2, 2)}, tmp_path / "flux.safetensors")
    quantized = {**state, "x_embedder.weight": state["x_embedder.weight"].to(torch.float8_e4m3fn)}
    save_file(quantized, tmp_path / "fp8.safetensors")
    (tmp_path / "empty").mkdir()
    for name, words in (
        ("lacking.safetensors", "1 tensors missing .first: layers.1.ffn_norm2.weight"),
        ("flux.safetensors", "Expected an OmniGen2 network .* got a FLUX.1 network"),
        ("fp8.safetensors", "Expected x_embedder.weight of .* in one of F32, F16, BF16, got F8_E4M3"),
        ("empty", "got no safetensors file there"),
    ):
        with pytest.raises(WeightsError, match=words):
            load_omnigen2(tmp_path / name)
    (base / "transformer" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match="none of diffusion_pytorch_model-00002-of-00002.safetensors"):
        load_omnigen2(base)


def test_omnigen2_base_predicts_the_velocity_at_the_noise_level(base):
    own = omnigen2_base.load_omnigen2_base(base, torch.float32, 1)
    x, noise = torch.randn(2, 16, 4, 6), torch.randn(2, 16, 4, 6)
    level = torch.tensor([0.0, 1.0])
    assert torch.equal(own.add_noise(x, noise, level), torch.stack((x[0], noise[1])))
    assert torch.equal(own.target(x, noise, level), noise - x)
    prompt = {
        "context": torch.randn(2, TOKENS, TINY.context_in_dim),
        "context_mask": (torch.arange(TOKENS) < torch.tensor([[5], [3]])).to(torch.uint8),
        "reference_0": torch.randn(2, 16, 4, 6),
    }
    with torch.no_grad():
        both = own.predict(x, level, prompt)
        for i, length in enumerate((5, 3)):
            row = slice(i, i + 1)
            alone = own.network(
                x[row], level[row], prompt["context"][row, :length], [prompt["reference_0"][row]]
            )
            torch.testing.assert_close(both[row], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_adapter_on_omnigen2_overfits_one_batch(base, encoded, tmp_path, checkpointing):
    model = {"base": str(base), "checkpointing": checkpointing}
    task = BUILDERS["depth_adapter"](
        recipe(base, encoded, tmp_path, model=model, loss={"caption_dropout": 0.0})
    )
    batch = task.collate([task.dataset[i] for i in range(4)])
    optimizer, losses = torch.optim.Adam(task.model.parameters(), lr=1e-2), []
    for _ in range(40):
        loss, logs = task.loss(task.model, batch, torch.Generator().manual_seed(0))
        if not losses:
            assert float(logs["addend"]) == 0
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.85 * losses[0], (losses[0], losses[-1])
    assert not any(value.requires_grad for value in task.companions[0].parameters())


def test_a_run_on_omnigen2_resumes_bit_for_bit_and_ships_a_file_that_loads(base, encoded, tmp_path):
    whole = run_recipe(recipe(base, encoded, tmp_path, output=str(tmp_path / "whole")), BUILDERS)
    parts = {"output": str(tmp_path / "parts")}
    run_recipe(recipe(base, encoded, tmp_path, stop=2, **parts), BUILDERS)
    second = run_recipe(recipe(base, encoded, tmp_path, **parts), BUILDERS, resume=True)
    states = [load_file(each.checkpoint / "model.safetensors") for each in (whole, second)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    adapter = load_adapter(tmp_path / "parts" / ADAPTER_FILE)
    assert (adapter.config.latent_format, adapter.config.base) == ("Flux", "omnigen2")
    assert adapter.out.weight.any()


def test_a_lora_trains_beside_the_adapter_from_where_the_base_stands(base, encoded, tmp_path):
    """Both learn; the base's own weights stay; a run of two halves is the whole one bit for bit."""
    with_lora = {"model": {"base": str(base), "lora_rank": 2}}
    plain, task = (
        BUILDERS["depth_adapter"](recipe(base, encoded, tmp_path, **more)) for more in ({}, with_lora)
    )
    batch = task.collate([task.dataset[i] for i in range(2)])
    draw = lambda each: each.loss(each.model, batch, torch.Generator().manual_seed(0))[0]  # noqa: E731
    assert float(draw(plain)) == float(draw(task))
    before = {name: value.clone() for name, value in task.companions[0].state_dict().items()}
    whole = run_recipe(recipe(base, encoded, tmp_path, output=str(tmp_path / "whole"), **with_lora), BUILDERS)
    parts = {"output": str(tmp_path / "parts"), **with_lora}
    run_recipe(recipe(base, encoded, tmp_path, stop=2, **parts), BUILDERS)
    second = run_recipe(recipe(base, encoded, tmp_path, **parts), BUILDERS, resume=True)
    states = [load_file(each.checkpoint / "model.safetensors") for each in (whole, second)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    lora = load_file(tmp_path / "whole" / LORA_FILE)
    # four layers of each of two blocks and three refiners of one
    assert len(lora) == 3 * 4 * 5
    assert lora["diffusion_model.layers.1.attn.to_out.0.lora_B.weight"].any()
    assert load_adapter(tmp_path / "whole" / ADAPTER_FILE).out.weight.any()
    after = task.companions[0].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_a_recipe_for_omnigen2_cannot_mean_is_a_sentence(base, encoded, tmp_path):
    for changes, words in (
        ({"data": {"folder": str(encoded), "references": 6}}, "at most 5 references"),
        ({"data": {"folder": str(encoded), "references": -1}}, "references of at least 0"),
        ({"data": {"folder": str(encoded), "references": 3}}, "reference_2"),
        ({"preset": "flux", "model": {"base": str(base)}}, "no references in the recipe's data .* for flux"),
        ({"model": {"base": str(base), "lora_rank": -1}}, "lora_rank of at least 0"),
        (
            {"model": {"base": str(base), "lora_rank": 2, "precision": "bfloat16"}},
            "mixed_precision bf16 .* got 'no'",
        ),
        ({"model": {}}, "Expected the folder of a diffusers pipeline"),
        ({"data": {"folder": str(encoded), "source": str(encoded)}}, "without mllm, processor, vae"),
    ):
        with pytest.raises(ValueError, match=words):
            BUILDERS["depth_adapter"](recipe(base, encoded, tmp_path, **changes))
    shard = load_file(encoded / "shard-00000.safetensors")
    narrow = shard["context"][..., :40].contiguous()
    save_file({**shard, "context": narrow}, encoded / "shard-00000.safetensors")
    with pytest.raises(ValueError, match="contexts of width 48 .* got 40"):
        BUILDERS["depth_adapter"](recipe(base, encoded, tmp_path))


def test_adapter_lora_and_spatial_transformer_learn_together(base, encoded, tmp_path):
    """Stage 2 on OmniGen2's shape: every part gets a gradient, and writes its file."""
    manifest, texts = encoded / "manifest.jsonl", ["a red ball", "a blue box"]
    lines = [json.loads(line) | {"captions": texts} for line in manifest.read_text().splitlines()]
    manifest.write_text("\n".join(map(json.dumps, lines)))
    decoder = make_decoder(find_transformer_preset("tiny"))
    init_decoder(decoder, torch.Generator().manual_seed(2))
    decoder.save_pretrained(tmp_path / "mllm")
    data = {"folder": str(encoded), "captions": 2}
    words = {"mllm": str(tmp_path / "mllm"), "tokenizer": "tiny"}
    model = {"base": str(base), "lora_rank": 2}
    adapter = BUILDERS["depth_adapter"](recipe(base, encoded, tmp_path, data=data, model=model))
    beside = recipe(
        base, encoded, tmp_path, system="spatial_transformer", preset="tiny", data=data, model=words
    )
    spatial, parts = BUILDERS["spatial_transformer"](beside), adapter.loss.keywords
    task = build_joint_task(
        adapter=adapter, spatial=spatial, base=parts["base"], empty=parts["empty"],
        read=spatial.loss.keywords["read"], settings=JointLoss(AdapterLoss(), SpatialDepthLoss()),
    )  # fmt: skip
    batch = task.collate([task.dataset[i] for i in range(2)])
    torch.nn.init.normal_(task.model.adapter.adapter.out.weight, std=0.1)
    task.loss(task.model, batch, torch.Generator().manual_seed(0))[0].backward()
    for part in (task.model.transformer.layers, task.model.adapter.adapter, task.model.adapter.lora):
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in part.parameters())
    task.export(tmp_path, task.model.state_dict())
    assert all((tmp_path / name).is_file() for name in (ADAPTER_FILE, LORA_FILE, TRANSFORMER_FILE))
