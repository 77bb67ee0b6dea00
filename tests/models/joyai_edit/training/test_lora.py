"""The LoRA on JoyImage: the loss against float64, overfitting, resuming,
sharding over processes, and the shipped file.
"""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spatialweave.models.core.training.loop import run_recipe
from spatialweave.models.core.training.recipe import Recipe
from spatialweave.models.joyai_edit.training import lora as training_lora
from spatialweave.models.joyai_edit.training.transformer import (
    find_files,
    load_transformer,
    read_network_sizes,
)

pytest.importorskip("accelerate", reason="the trainer's extra is not installed")
BUILDERS = {"joyai_lora": training_lora.build}
ROOT = Path(__file__).parents[4]
SCALE = 24.0 / 16


@pytest.fixture
def small(tmp_path, write_network, write_edits):
    """small(**changes) -> a recipe for a small network and its encoded folder."""
    write_network(tmp_path / "joy.safetensors")
    write_edits(tmp_path / "edits")

    def make(*, model=None, loss=None, **changes):
        values = {
            "system": "joyai_lora", "preset": "edit", "steps": 4, "batch_size": 2, "lr": 1e-2, "ema": 0.0,
            "log_every": 1, "betas": [0.9, 0.95],
            "model": {
                "base": str(
                    tmp_path / "joy.safetensors"
                ), "alpha": 24.0, "precision": "float32", "checkpointing": False
            } | (
                model or {}
            ),
            "data": {"folder": str(tmp_path / "edits")}, "loss": {"caption_dropout": 0.5} | (loss or {}),
            "output": str(tmp_path / "run"),
        }  # fmt: skip
        return Recipe.from_json(values | changes)

    return make


def build(recipe):
    """The task, with a LoRA that does something."""
    task = training_lora.build(recipe)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return task


def read_batch(task, count=4):
    return task.collate([task.dataset[index] for index in range(count)])


def merged(path, state):
    """A network with the LoRA in its weights, in float64."""
    network = load_transformer(path, torch.float64)
    for name in training_lora.Adapters(
        network, training_lora.AdapterSettings(base="x"), torch.Generator()
    ).paths:
        flat = name.replace(".", "_")
        network.get_submodule(name).weight.data += (
            SCALE * state[f"layers.{flat}.up"].double() @ state[f"layers.{flat}.down"].double()
        )
    return network


def test_loss_is_flow_matching_with_the_source_beside_the_target(small, tmp_path):
    """Against a network that holds the LoRA in its weights, with time,
    noise and dropped prompts written out; float64.
    """
    task = build(small())
    batch, generator = read_batch(task), torch.Generator().manual_seed(5)
    network = merged(tmp_path / "joy.safetensors", task.model.state_dict())
    u = torch.rand(4, generator=generator)
    t = (1.5 * u / (1 + 0.5 * u)).double()
    noise = torch.randn(4, 16, 8, 8, generator=generator).double()
    dropped = torch.rand(4, generator=generator) < 0.5
    assert 0 < dropped.sum() < 4
    errors = []
    for index, tokens in enumerate((9, 6, 7, 9)):
        clean, source = batch["latent"][index].double(), batch["reference"][index].double()
        context = batch["context"][index, :tokens].double()
        if dropped[index]:
            context = torch.cat([context[:4], batch["empty_tail"][index].double()])
        items = torch.stack([source, (1 - t[index]) * clean + t[index] * noise[index]])[None, :, :, None]
        with torch.no_grad():
            out = network(items, 1000 * t[index : index + 1], context[None]).sample[0, 1, :, 0]
        errors.append(float((out - (noise[index] - clean)).square().mean()))
    loss, logs = task.loss(task.model, batch, torch.Generator().manual_seed(5))
    assert float(loss.detach()) == pytest.approx(sum(errors) / 4, rel=1e-5)
    assert float(logs["velocity"]) == float(loss.detach())


def test_a_new_lora_changes_nothing_and_every_layer_learns(small):
    recipe = small(loss={"caption_dropout": 0.0}, model={"layers": "all"})
    task = training_lora.build(recipe)
    batch = read_batch(task)
    plain = load_transformer(recipe.model["base"], torch.float32)
    items, context = torch.randn(1, 2, 16, 1, 8, 8), batch["context"][:1].float()
    with torch.no_grad():
        assert torch.equal(
            plain(items, torch.tensor([300.0]), context).sample,
            task.companions[0](items, torch.tensor([300.0]), context).sample,
        )
    with torch.no_grad():
        for layer in task.model.layers.values():
            layer.up.normal_(std=0.05)
    task.loss(task.model, batch, torch.Generator().manual_seed(0))[0].backward()
    last_text = {
        "double_blocks.1.attn.txt_attn_proj",
        "double_blocks.1.txt_mlp.net.0.proj",
        "double_blocks.1.txt_mlp.net.2",
    }
    for path in task.model.paths:
        gradient = task.model.layers[path.replace(".", "_")].up.grad
        assert (gradient is not None and bool(gradient.any())) == (path not in last_text), path
    assert (
        len(task.model.paths) == 16
        and not any(value.requires_grad for value in task.companions[0].parameters())
    )


def write_passing(path):
    """A network whose patches come out as they went in, and whose blocks add little:
    as after training, the LoRA's work counts.
    """
    state, generator = load_file(path), torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(128, 64, generator=generator))[0]
    state["img_in.weight"] = basis.reshape(128, 16, 1, 2, 2).contiguous()
    state["proj_out.weight"] = 0.7 * basis.reshape(128, 16, 2, 2).permute(2, 3, 1, 0).reshape(64, 128)
    state |= {name: torch.zeros_like(state[name]) for name in ("img_in.bias", "proj_out.bias")}
    state["condition_embedder.time_proj.weight"] *= 0.1
    state |= {name: 0.2 * value for name, value in state.items() if "modulate_table" in name}
    save_file(state, path)


def write_one_batch(folder):
    """Two edits of 4 x 4 latents with little in them, whose target is the negative of their source."""
    generator = torch.Generator().manual_seed(1)
    latent = (
        (2 * torch.randn(2, 16, 1, 1, generator=generator) * torch.linspace(-1, 1, 4))
        .expand(2, 16, 4, 4)
        .contiguous()
    )
    shard = load_file(folder / "shard-00000.safetensors")
    shard = {name: value[:2].contiguous() for name, value in shard.items()} | {
        "latent": latent,
        "reference": -latent,
    }
    save_file(shard, folder / "shard-00000.safetensors")
    lines = (folder / "manifest.jsonl").read_text().splitlines()[:2]
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")


def test_it_overfits_one_batch(small, tmp_path):
    """Two edits, 120 steps of new noise each: the loss, on noise that no step had, falls to less than 55 %.
    """
    recipe = small(
        steps=120, warmup=20, lr=1e-2, log_every=120, model={"layers": "all"}, loss={"caption_dropout": 0.0}
    )
    write_passing(tmp_path / "joy.safetensors")
    write_one_batch(tmp_path / "edits")

    def measure(state):
        task = training_lora.build(recipe)
        if state:
            task.model.load_state_dict(state)
        with torch.no_grad():
            return [
                float(task.loss(task.model, read_batch(task, 2), torch.Generator().manual_seed(seed))[0])
                for seed in range(8)
            ]

    before = measure({})
    outcome = run_recipe(recipe, BUILDERS)
    after = measure(load_file(outcome.checkpoint / "model.safetensors"))
    assert sum(after) < 0.55 * sum(before), (before, after)


def test_resuming_is_bit_exact(small):
    whole = run_recipe(small(), BUILDERS)
    part = small(stop=2, output=str(Path(whole.checkpoint).parent.parent / "parted"))
    run_recipe(part, BUILDERS)
    resumed = run_recipe(Recipe.from_json(part.to_json() | {"stop": 0}), BUILDERS, resume=True)
    for group in ("model", "optimizer"):
        one, two = (load_file(run.checkpoint / f"{group}.safetensors") for run in (whole, resumed))
        assert one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


def test_checkpointing_changes_no_gradient(small):
    gradients = []
    for checkpointing in (False, True):
        task = build(small(model={"checkpointing": checkpointing}))
        task.loss(task.model, read_batch(task), torch.Generator().manual_seed(4))[0].backward()
        gradients.append(
            {name: value.grad for name, value in task.model.named_parameters() if value.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_trains_in_mixed_precision(small, precision):
    outcome = run_recipe(
        small(model={"precision": precision, "checkpointing": True}, mixed_precision="bf16"), BUILDERS
    )
    assert outcome.ending == "finished" and outcome.loss > 0


@pytest.mark.slow
def test_two_processes_that_shard_the_frozen_weights_train_the_same_lora(small, tmp_path):
    """FSDP2 over gloo: each keeps half of the network,
    and the LoRA is that of one process with twice the micro-batches.
    """
    alone = run_recipe(small(accumulate=2), BUILDERS)
    recipe = small(model={"shard": True}, output=str(tmp_path / "sharded"))
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_json()))
    call = [
        sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
        "spatialweave.models.cli",
    ]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*call, "train", str(tmp_path / "recipe.json")],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "sharded over 2 processes" in done.stderr
    one, two = (
        load_file(alone.checkpoint / "model.safetensors"),
        load_file(tmp_path / "sharded/step-00000004/model.safetensors"),
    )
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)


def test_one_process_cannot_shard(small):
    with pytest.raises(ValueError, match="Expected several processes for the recipe's shard, got one"):
        training_lora.build(small(model={"shard": True}))


def test_a_pipeline_folder_and_a_file_of_comfyui_are_the_same_network(small, tmp_path, write_network):
    write_network(tmp_path / "pipeline")
    assert len(list((tmp_path / "pipeline/transformer").glob("*.safetensors"))) > 1
    one, two = (load_transformer(tmp_path / name, torch.float32) for name in ("joy.safetensors", "pipeline"))
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())
    assert read_network_sizes(find_files(tmp_path / "pipeline"))["theta"] == 10000 == one.config.theta


def test_a_block_is_read_from_its_files_and_reading_leaves_nothing_in_memory(tmp_path, write_network):
    """With the safetensors library two integers a tensor stay, several thousand objects here."""
    write_network(tmp_path / "pipeline")
    files, expected = find_files(tmp_path / "pipeline"), {}
    for path in (tmp_path / "pipeline/transformer").glob("*.safetensors"):
        expected |= load_file(path)
    names = [name for name in expected if name.startswith("double_blocks.1.")]
    found = files.read(names, torch.float64)
    assert found.keys() == set(names)
    assert all(torch.equal(value, expected[name].double()) for name, value in found.items())

    def count():
        for _ in range(100):
            files.read(names, torch.float32)
        gc.collect()
        return sys.getallocatedblocks()

    warm = count()
    assert count() - warm < 400


def test_the_shipped_file_has_comfyuis_names_and_goes_on(small, tmp_path):
    task = build(small())
    task.export(tmp_path, {name: value.detach() for name, value in task.model.state_dict().items()})
    file = tmp_path / training_lora.LORA_FILE
    shipped = load_file(file)
    assert shipped["diffusion_model.double_blocks.1.attn.img_attn_qkv.lora_A.weight"].shape == (16, 128)
    assert shipped["diffusion_model.double_blocks.0.attn.txt_attn_proj.alpha"] == 24 and len(shipped) == 3 * 8
    other = training_lora.build(small(model={"weights": str(file), "ship": "float32", "alpha": 16.0}))
    for path in task.model.paths:
        ours, theirs = (each.model.layers[path.replace(".", "_")] for each in (task, other))
        x = torch.randn(3, ours.down.shape[1], generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(theirs(x), ours(x), rtol=0.02, atol=0.02)
    with pytest.raises(
        ValueError, match=r"Expected \(8, 128\) as .*img_attn_qkv.lora_A.weight .*, got \(16, 128\)"
    ):
        training_lora.build(small(model={"weights": str(file), "rank": 8}))


@pytest.mark.parametrize("changes, words", [
    ({"model": {"base": ""}}, "Expected a base in the recipe's model, got none."),
    ({"model": {"rank": 0}}, "rank 0"),
    ({"model": {"layers": "some"}}, "Expected one of attention, all as layers"),
    ({"model": {"rnk": 4}}, "did you mean 'rank'"),
    ({"loss": {"shift": 0.0}}, "got shift 0.0"),
    ({"data": {}}, "spatialweave joyai encode"),
    ({"model": {"base": "nowhere"}}, "got no safetensors file there"),
])  # fmt: skip
def test_a_recipe_that_cannot_work_is_refused(small, changes, words):
    with pytest.raises(ValueError, match=r"\S") as error:
        training_lora.build(small(**changes))
    assert words in str(error.value)


@pytest.mark.parametrize("change, words", [
    (lambda state: {"double_stream_modulation_img.lin.weight": torch.zeros(2, 2)}, "FLUX.2"),
    (
        lambda state: state | {
            "proj_out.weight": torch.zeros(64, 128, dtype=torch.int8)
        }, "got I8 .* unquantized"
    ),
    (
        lambda state: {
            name: value for name, value in state.items() if name != "proj_out.bias"
        }, "1 tensors missing"
    ),
    (
        lambda state: state | {
            "double_blocks.0.attn.img_attn_q_norm.weight": torch.ones(64)
        }, "heads of width 128 .*, got 64"
    ),
])  # fmt: skip
def test_another_file_is_refused_by_name(small, tmp_path, change, words):
    path = tmp_path / "joy.safetensors"
    save_file(change(load_file(path)), path)
    with pytest.raises(ValueError, match=words) as error:
        training_lora.build(small())
    assert "joy.safetensors" in str(error.value)


def test_a_dataset_of_another_network_is_refused(small, tmp_path):
    shard = tmp_path / "edits/shard-00000.safetensors"
    save_file(load_file(shard) | {"context": torch.zeros(4, 9, 7)}, shard)
    with pytest.raises(
        ValueError, match="a context of width 24 in .*, got .* and width 7. Encode the folder"
    ):
        training_lora.build(small())


def test_the_committed_recipes_have_the_releases_settings():
    from accelerate.commands.config.config_args import load_config_from_file

    for name, shard in (("lora", False), ("lora_sharded", True)):
        recipe = Recipe.read(ROOT / f"models/joyai_edit/recipes/{name}.json")
        settings = training_lora.AdapterSettings(**recipe.model)
        assert (settings.rank, settings.alpha, settings.shard, settings.scale) == (16, 16, shard, 1.0)
        assert (recipe.lr, recipe.betas, recipe.warmup, recipe.mixed_precision) == (
            1e-4,
            (0.9, 0.95),
            1000,
            "bf16",
        )
    launch = load_config_from_file(str(ROOT / "models/joyai_edit/recipes/sharded.yaml"))
    assert launch.num_processes == 16 and launch.num_machines == 2 and launch.distributed_type == "MULTI_GPU"
