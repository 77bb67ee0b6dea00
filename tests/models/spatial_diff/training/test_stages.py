"""Connector, LoRA and depth head on a small network of Flux-Kontext's shape."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from spatialweave.models.core.training.loop import run_recipe
from spatialweave.models.core.training.recipe import Recipe
from spatialweave.models.core.weights.files import read_tensors
from spatialweave.models.spatial_diff.config import ConnectorConfig
from spatialweave.models.spatial_diff.editor_files import load_editor, save_editor
from spatialweave.models.spatial_diff.flux import Flux, FluxConfig
from spatialweave.models.spatial_diff.lora import find_attention_linears, merge_lora, read_editor_lora
from spatialweave.models.spatial_diff.network import GeometryConnector
from spatialweave.models.spatial_diff.training import connector as stages
from spatialweave.models.spatial_diff.training import estimate
from spatialweave.models.spatial_diff.weights import load_connector, load_depth_head

pytest.importorskip("accelerate", reason="the trainer's extra is not installed")
CONNECTOR_FILE, LORA_FILE = "kontext_connector.safetensors", "kontext_lora.safetensors"
BUILDERS = {"spatial_diff": stages.build_stage}
SMALL = FluxConfig(
    context_in_dim=20,
    vec_in_dim=10,
    hidden_size=96,
    num_heads=2,
    depth=1,
    depth_single_blocks=2,
    axes_dim=(16, 16, 16),
)
CONNECTOR = {
    "geometry_width": 12, "width": 96, "grid": [2, 2], "layers": 1, "heads": 2, "head_width": 16,
}  # fmt: skip


@pytest.fixture
def small(tmp_path):
    """small(**changes) -> a recipe for a small network of the released shape, and its encoded folders."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    torch.manual_seed(2)
    network = Flux(SMALL)
    save_editor(tmp_path / "editor.safetensors", network.state_dict(), SMALL)
    count = 4
    folders = {
        "edits": {
            "latent": draw(count, 16, 4, 4), "reference": draw(count, 16, 4, 4), "context": draw(count, 5,
            20), "pooled": draw(count, 10),
        },
        "geometry": {"geometry": draw(count, 7, 12), "depth_latent": draw(count, 16, 4, 4)},
    }  # fmt: skip
    for name, tensors in folders.items():
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "shard-00000.safetensors")
        order = range(count) if name == "edits" else reversed(range(count))
        lines = [
            {"shard": "shard-00000.safetensors", "row": row, "index": row, "mirrored": False, "caption": ""}
            for row in order
        ]
        (tmp_path / name / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))

    def make(*, model=None, loss=None, **changes):
        values = {
            "system": "spatial_diff", "preset": "kontext", "steps": 4, "batch_size": 2, "lr": 1e-2, "ema":
            0.0, "log_every": 1, "output": str(tmp_path / "run"),
            "model": {
                "base": str(tmp_path / "editor.safetensors"), "stage": "lora", "connector": CONNECTOR,
                "rank": 4, "alpha": 8.0, "precision": "float32", "checkpointing": False, "ship": "float32",
                **(model or {}),
            },
            "data": {"folder": str(tmp_path / "edits"), "geometry": str(tmp_path / "geometry")},
            "loss": loss or {},
        }  # fmt: skip
        return Recipe.from_json(values | changes)

    return make


def read_batch(task, count=2):
    return task.collate([task.dataset[index] for index in range(count)])


def test_each_edit_meets_its_own_geometry(small):
    """The two folders list their samples in opposite orders."""
    task = stages.build_stage(small())
    folder = small().data["geometry"]
    stored = load_file(f"{folder}/shard-00000.safetensors")["geometry"]
    for index in range(4):
        assert torch.equal(task.dataset[index]["geometry"], stored[index])


def test_loss_is_the_papers(small):
    """error + lambda * || head(rows) - depth ||^2, with time and noise written out."""
    task = stages.build_stage(small(loss={"weight": 0.3, "mu": 0.2, "sigma": 0.7, "guidance": 2.0}))
    batch, network = read_batch(task), load_editor(small().model["base"])
    with torch.no_grad():
        value, logs = task.loss(task.model, batch, torch.Generator().manual_seed(3))
        generator = torch.Generator().manual_seed(3)
        t = torch.sigmoid(0.2 + 0.7 * torch.randn(2, generator=generator))
        noise = torch.randn(2, 16, 4, 4, generator=generator)
        x = (1 - t)[:, None, None, None] * batch["latent"] + t[:, None, None, None] * noise
        tokens = task.model.connector(batch["geometry"])
        ids = torch.tensor([[2.0, r, c] for r in range(2) for c in range(2)])
        out = network(
            x, t, batch["context"], [batch["reference"]], pooled=batch["pooled"], guidance=torch.full((2,),
            2.0), extra=stages.ExtraTokens(tokens, ids),
        )  # fmt: skip
        velocity = (out.velocity - (noise - batch["latent"])).square().mean()
        depth = (task.model.head(out.rows) - batch["depth_latent"]).square().mean()
    torch.testing.assert_close(logs["velocity"], velocity)
    torch.testing.assert_close(value, velocity + 0.3 * depth)


def test_first_stage_trains_the_connector_alone(small):
    task = stages.build_stage(small(model={"stage": "connector"}))
    assert {name.split(".")[0] for name, _ in task.model.named_parameters()} == {"connector"}
    task.loss(task.model, read_batch(task), torch.Generator().manual_seed(3))[0].backward()
    assert all(value.grad is not None for value in task.model.parameters())
    assert task.model.connector.queries.grad.abs().max() > 0


def test_without_tokens_the_lora_trains_alone(small):
    task = stages.build_stage(small(model={"tokens": False}))
    assert {name.split(".")[0] for name, _ in task.model.named_parameters()} == {"lora"}
    task.loss(task.model, read_batch(task), torch.Generator().manual_seed(3))[0].backward()
    assert all(layer.up.grad.abs().max() > 0 for layer in task.model.lora.layers.values())


def test_a_batch_overfits_and_the_base_stays(small, tmp_path):
    before = load_file(tmp_path / "editor.safetensors")
    task = stages.build_stage(small())
    batch, optimizer = read_batch(task), torch.optim.Adam(task.model.parameters(), 1e-2)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss, _ = task.loss(task.model, batch, torch.Generator().manual_seed(3))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.35 * losses[0]
    for name, value in task.companions[0].network.state_dict().items():
        assert torch.equal(value, before[name])


def test_resuming_is_bit_exact(small):
    whole = run_recipe(small(), BUILDERS)
    part = small(stop=2, output=str(whole.checkpoint.parent.parent / "parted"))
    run_recipe(part, BUILDERS)
    resumed = run_recipe(Recipe.from_json(part.to_json() | {"stop": 0}), BUILDERS, resume=True)
    for group in ("model", "optimizer"):
        one, two = (load_file(run.checkpoint / f"{group}.safetensors") for run in (whole, resumed))
        assert one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


def test_checkpointing_changes_no_gradient(small):
    gradients = []
    for checkpointing in (False, True):
        task = stages.build_stage(small(model={"checkpointing": checkpointing}))
        task.loss(task.model, read_batch(task), torch.Generator().manual_seed(4))[0].backward()
        gradients.append({name: value.grad for name, value in task.model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_files_of_a_run_do_what_the_trained_parts_do(small, tmp_path):
    """Connector, head and LoRA read back, the LoRA merged; a second run goes on from them."""
    run_recipe(small(), BUILDERS)
    state = load_file(tmp_path / "run" / "step-00000004" / "model.safetensors")
    files = {name: tmp_path / "run" / name for name in (CONNECTOR_FILE, LORA_FILE)}
    connector, head = (
        load_connector(files[CONNECTOR_FILE]),
        load_depth_head(files[CONNECTOR_FILE]),
    )
    for part, module in (("connector", connector), ("head", head)):
        for name, value in module.state_dict().items():
            assert torch.equal(value, state[f"{part}.{name}"])
    merged, plain = (load_editor(small().model["base"]) for _ in range(2))
    merge_lora(merged, files[LORA_FILE])
    for path in find_attention_linears(plain):
        key = path.replace(".", "-")
        update = 2.0 * state[f"lora.layers.{key}.up"] @ state[f"lora.layers.{key}.down"]
        expected = plain.get_submodule(path).weight + update
        torch.testing.assert_close(merged.get_submodule(path).weight, expected)
    assert len(read_editor_lora(files[LORA_FILE])) == len(find_attention_linears(plain)) == 8
    second = stages.build_stage(
        small(model={"weights": str(files[CONNECTOR_FILE]), "lora": str(files[LORA_FILE])})
    )
    for name, value in second.model.state_dict().items():
        torch.testing.assert_close(value, state[name])


def test_a_lora_is_stored_under_the_names_that_comfyui_reads(small, tmp_path):
    run_recipe(small(), BUILDERS)
    stored = load_file(tmp_path / "run" / LORA_FILE)
    assert stored["diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight"].shape == (4, 96)
    assert stored["diffusion_model.single_blocks.1.linear1.lora_B.weight"].shape == (3 * 96 + 384, 4)
    assert float(stored["diffusion_model.single_blocks.1.linear2.alpha"]) == 8.0


def test_eight_bits_are_the_connectors_alone(small, tmp_path):
    """Within half a step of each row's scale of the file in float32; a LoRA is read by core, too."""
    files = {}
    for ship in ("float32", "int8"):
        run_recipe(small(model={"ship": ship}, output=str(tmp_path / ship)), BUILDERS)
        files[ship] = {name: tmp_path / ship / name for name in (CONNECTOR_FILE, LORA_FILE)}
    sizes = {ship: files[ship][CONNECTOR_FILE].stat().st_size for ship in files}
    assert sizes["int8"] < 0.4 * sizes["float32"]
    exact, read = (read_tensors(files[ship][CONNECTOR_FILE]) for ship in ("float32", "int8"))
    assert exact.keys() == read.keys()
    for name, value in exact.items():
        rows = value.flatten(1) if value.ndim > 1 else value[:, None]
        error = (read[name].float() - value).abs().view(rows.shape)
        step = rows.abs().amax(1, keepdim=True) / 127 if value.numel() >= 4096 else torch.zeros(len(rows), 1)
        assert bool((error <= 0.51 * step + 1e-3 * rows.abs() + 1e-6).all()), name
    lora = load_file(files["int8"][LORA_FILE])
    assert lora.keys() == load_file(files["float32"][LORA_FILE]).keys()
    assert {value.dtype for value in lora.values() if value.ndim} == {torch.float16}


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"base": ""}, "Expected a base"),
        ({"stage": "connector", "tokens": False}, "Expected tokens and no lora"),
        ({"connector": CONNECTOR | {"width": 64}}, "connector of width 96"),
        ({"connector": CONNECTOR | {"geometry_width": 13}}, "geometry tokens of width 13, got 12"),
        ({"connector": CONNECTOR | {"grid": [4, 4]}}, r"depth latents \(16, 8, 8\)"),
        ({"rank": 0}, "rank of at least 1"),
    ],
)
def test_recipes_that_cannot_work_are_refused(small, model, words):
    with pytest.raises(ValueError, match=words):
        stages.build_stage(small(model=model))


def test_a_run_says_what_it_will_take(small, caplog):
    with caplog.at_level("INFO", logger="spatialweave.training"):
        stages.build_stage(small())
    assert "GB a process" in caplog.text and "s a step" in caplog.text


def test_the_estimate_grows_with_what_it_counts():
    network, trained = Flux(SMALL, device="meta"), torch.nn.ParameterList([torch.zeros(1000, 1001)])
    kwargs = {"batch": 4, "tokens": 100, "checkpointing": False, "device": torch.device("cpu")}
    one = estimate.estimate(network, SMALL, trained, **kwargs)
    assert one.frozen == pytest.approx(4 * sum(p.numel() for p in network.parameters()) / 1e9)
    assert one.trained == pytest.approx(16 * 1_001_000 / 1e9)
    assert estimate.estimate(network, SMALL, trained, **kwargs | {"batch": 8}).activations == pytest.approx(
        2 * one.activations
    )
    kept = estimate.estimate(network, SMALL, trained, **kwargs | {"checkpointing": True})
    assert kept.activations < one.activations
    sharded = estimate.estimate(network, SMALL, trained, **kwargs, shards=4)
    assert sharded.frozen == pytest.approx(one.frozen / 4)


@pytest.mark.parametrize(("layers", "grid", "width", "tokens"), [(2, (8, 8), 96, 70), (1, (3, 5), 32, 300)])
def test_the_connectors_part_of_the_estimate_is_what_autograd_keeps(layers, grid, width, tokens):
    config = ConnectorConfig(
        geometry_width=48, width=width, grid=grid, layers=layers, heads=2, head_width=24, depth_patch=1
    )
    network, kept = GeometryConnector(config), {}
    weights = {value.untyped_storage().data_ptr() for value in network.parameters()}

    def keep(tensor):
        if (place := tensor.untyped_storage().data_ptr()) not in weights:
            kept[place] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.randn(3, tokens, 48)).sum().backward()
    assert 3 * 4 * estimate.connector_values(config, tokens) == pytest.approx(sum(kept.values()), rel=0.02)
