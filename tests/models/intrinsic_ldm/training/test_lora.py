"""The intrinsic LoRA's training: the loss against float64, what moves, resuming,
and the shipped file read back.
"""

import copy
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spatialweave.models.core.training.loop import run_recipe, train
from spatialweave.models.core.training.recipe import Recipe
from spatialweave.models.core.weights.files import read_header, read_tensors
from spatialweave.models.intrinsic_ldm.backbones import find_kind, load_backbone
from spatialweave.models.intrinsic_ldm.lora import read_lora
from spatialweave.models.intrinsic_ldm.network import couple, projections
from spatialweave.models.intrinsic_ldm.rows import Rows
from spatialweave.models.intrinsic_ldm.training import lora as training_lora
from spatialweave.models.intrinsic_ldm.training.ranks import truncate_svd

pytest.importorskip("accelerate", reason="the trainer's extra is not installed")
RECIPES = Path(training_lora.__file__).parent / "recipes"
BASES = [
    ("sd21", "epsilon"), ("sd21", "v_prediction"), ("sdxl", "epsilon"), ("pixart", "epsilon"),
    ("pixart_1024", "epsilon"),
]
PARTS = ("to_q", "to_k", "to_v", "to_out.0")


@pytest.fixture
def small(tmp_path, write_base, write_latents):
    """small(family, prediction, **changes) -> a recipe for a small base of the family,
    and its encoded folder.
    """

    def make(family="sd21", prediction="epsilon", *, model=None, loss=None, **changes):
        if not (tmp_path / family).exists():
            write_base(tmp_path / family, family, prediction)
            write_latents(tmp_path / f"{family}_data", family)
        values = {
            "system": "intrinsic_lora", "preset": family.removesuffix("_1024"), "steps": 3, "batch_size": 2,
            "lr": 1e-2, "ema": 0.0,
            "log_every": 1,
            "model": {"base": str(tmp_path / family), "rank": 4, "alpha": 8.0, **(model or {})},
            "data": {"folder": str(tmp_path / f"{family}_data")},
            "loss": {"caption_dropout": 0.5, **(loss or {})},
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
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return task


def read_batch(task, count=3):
    return task.collate([task.dataset[index] for index in range(count)])


def merged(network, task):
    """A copy of the base in float64 whose self-attention holds the LoRA in its matrices,
    and attends within each row as at first.
    """
    network = copy.deepcopy(network).double()
    network.set_attn_processor({name: fresh_processor(name, network) for name in network.attn_processors})
    for path, layer in task.model.updates.items():
        network.get_submodule(path).weight.data += (
            layer.scale * layer.up.detach().double() @ layer.down.detach().double()
        )
    return network


def fresh_processor(name, network):
    from diffusers.models.attention_processor import AttnProcessor

    return AttnProcessor()


class PairedAttention:
    """Equation 1, written out: image rows first, then their maps, whose projections are those
    of another network.
    """

    def __init__(self, other, pairs):
        self.other, self.pairs = other, pairs

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        x, maps = hidden_states[: self.pairs], hidden_states[self.pairs :]
        out = []
        keys = torch.cat([attn.to_k(x), self.other.to_k(maps)], dim=1)
        values = torch.cat([attn.to_v(x), self.other.to_v(maps)], dim=1)
        for own, rows in ((attn, x), (self.other, maps)):
            q, k, v = (
                part.unflatten(2, (attn.heads, -1)).transpose(1, 2) for part in (own.to_q(rows), keys, values)
            )
            scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
            mixed = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
            out.append(own.to_out[0](mixed))
        return (
            torch.cat(out) / attn.rescale_output_factor
            + (hidden_states if attn.residual_connection else 0)
        )


def draw(batch, generator, dropout, empty):
    """The draws of a loss in their order: whose prompt is empty, the times, the image's noise, the maps'."""
    count = len(batch["latent"])
    dropped = torch.rand(count, generator=generator) < dropout
    t = torch.randint(1000, (count,), generator=generator)
    noises = [torch.randn(batch["latent"].shape, generator=generator).double() for _ in range(2)]
    prompt = {
        name: torch.stack([empty[name] if gone else row for row, gone in zip(batch[name], dropped)]).double()
        for name in batch
        if name in ("context", "pooled", "context_mask")
    }
    return prompt, t, noises


def closed_form(network, family, prediction, batch, prompt, t, noises, streams):
    """Both terms of equation 5 with the noise schedule written out, for streams of (clean, noise);
    float64 throughout.
    """
    steps = torch.arange(1000, dtype=torch.float64) / 999
    betas = (
        1e-4 + steps * (0.02 - 1e-4)
        if family.startswith("pixart")
        else (0.00085**0.5 + steps * (0.012**0.5 - 0.00085**0.5)) ** 2
    )
    kept = (1 - betas).cumprod(0)[t][:, None, None, None]
    clean = {"image": batch["latent"].double(), "intrinsic": batch["intrinsic_latent"].double()}
    noise = dict(zip(("image", "intrinsic"), noises))
    rows = torch.cat([kept.sqrt() * clean[s] + (1 - kept).sqrt() * noise[s] for s in streams])
    prompt = {name: torch.cat([part] * len(streams)) for name, part in prompt.items()}
    more = {}
    if family == "sdxl":
        ids = torch.tensor([[64, 64, 0, 0, 64, 64]], dtype=torch.float64).repeat(len(rows), 1)
        more["added_cond_kwargs"] = {"text_embeds": prompt["pooled"], "time_ids": ids}
    if family.startswith("pixart"):
        size = {"resolution": None, "aspect_ratio": None}
        if family == "pixart_1024":
            size = {
                "resolution": torch.full((len(rows), 2), 64.0, dtype=torch.float64),
                "aspect_ratio": torch.ones(len(rows), 1, dtype=torch.float64),
            }
        more |= {"encoder_attention_mask": prompt["context_mask"], "added_cond_kwargs": size}
    out = network(
        rows, timestep=torch.cat([t] * len(streams)), encoder_hidden_states=prompt["context"], **more
    ).sample[:, :4]
    wanted = {
        s: noise[s] if prediction == "epsilon" else kept.sqrt() * noise[s] - (1 - kept).sqrt() * clean[s]
        for s in streams
    }
    return {
        s: float((guess - wanted[s]).square().mean()) for s, guess in zip(streams, out.chunk(len(streams)))
    }


@pytest.mark.parametrize("family, prediction", BASES)
def test_loss_is_equation_5(small, family, prediction):
    """Against float64, with the attention, the noise schedule and the LoRA written out."""
    task = build(small(family, prediction, loss={"intrinsic_weight": 0.7}))
    batch, base = read_batch(task), task.companions[0]
    value, parts = task.loss(task.model, batch, torch.Generator().manual_seed(4))

    prompt, t, noises = draw(batch, torch.Generator().manual_seed(4), 0.5, task.loss.keywords["empty"])
    with_lora = merged(base, task)
    plain = copy.deepcopy(base).double()
    ours = {
        name: PairedAttention(with_lora.get_submodule(name.removesuffix(".processor")), len(t))
        for name in plain.attn_processors
        if name.endswith("attn1.processor")
    }
    plain.set_attn_processor(
        {name: ours.get(name) or fresh_processor(name, plain) for name in plain.attn_processors}
    )
    with torch.no_grad():
        wanted = closed_form(plain, family, prediction, batch, prompt, t, noises, ("image", "intrinsic"))
    assert float(parts["image"]) == pytest.approx(wanted["image"], rel=2e-5)
    assert float(parts["intrinsic"]) == pytest.approx(0.7 * wanted["intrinsic"], rel=2e-5)
    assert float(value.detach()) == pytest.approx(wanted["image"] + 0.7 * wanted["intrinsic"], rel=2e-5)


def test_domains_may_share_their_noise(small):
    """Then the maps' noised latents differ from the image's by the clean ones alone,
    as where sampling starts.
    """
    task, inputs = build(small(loss={"noise": "shared"})), []
    batch, base = read_batch(task), task.loss.keywords["base"]
    base.network.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    task.loss(task.model, batch, torch.Generator().manual_seed(4))
    _, t, noises = draw(batch, torch.Generator().manual_seed(4), 0.5, task.loss.keywords["empty"])
    kept = base.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    apart = kept.sqrt() * (batch["latent"].float() - batch["intrinsic_latent"].float())
    image, intrinsic = inputs[0].chunk(2)
    torch.testing.assert_close(image - intrinsic, apart, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        image, kept.sqrt() * batch["latent"].float() + (1 - kept).sqrt() * noises[0].float()
    )


def test_without_the_image_domain_the_maps_know_of_no_image(small):
    """The paper's ablation is the plain loss of a base whose matrices hold the LoRA."""
    task = build(small(loss={"domains": "intrinsic"}))
    batch = read_batch(task)
    value, parts = task.loss(task.model, batch, torch.Generator().manual_seed(4))
    other, _ = task.loss(
        task.model, {**batch, "latent": batch["latent"] + 1}, torch.Generator().manual_seed(4)
    )
    assert parts.keys() == {"intrinsic"} and torch.equal(value, other)

    prompt, t, noises = draw(batch, torch.Generator().manual_seed(4), 0.5, task.loss.keywords["empty"])
    with torch.no_grad():
        network = merged(task.companions[0], task)
        wanted = closed_form(network, "sd21", "epsilon", batch, prompt, t, noises, ("intrinsic",))
    assert float(value.detach()) == pytest.approx(wanted["intrinsic"], rel=2e-5)


@pytest.mark.parametrize("family", ["sd21", "sdxl", "pixart"])
def test_steps_change_the_lora_and_nothing_else(small, family):
    recipe = small(family)
    task = training_lora.build(recipe)
    base = task.companions[0]
    before = {name: value.clone() for name, value in base.state_dict().items()}
    first = {name: value.clone() for name, value in task.model.state_dict().items()}
    assert len(first) == 2 * len(PARTS) * sum(name.endswith(".attn1") for name, _ in base.named_modules())
    assert not any(value.any() for name, value in first.items() if name.endswith("up")), (
        "a LoRA starts as nothing"
    )
    Path(recipe.output).mkdir()
    train(recipe, task)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert not any(torch.equal(value, first[name]) for name, value in task.model.state_dict().items())


def test_the_images_term_trains_the_lora_through_keys_and_values_alone(small):
    task = build(small())
    batch, generator = read_batch(task), torch.Generator().manual_seed(4)
    base, coupling = task.loss.keywords["base"], task.loss.keywords["coupling"]
    x = torch.randn(6, 4, 8, 8, generator=generator)
    with coupling.call(Rows(("prompt",), 3)):
        out = base.predict(x, torch.full((6,), 500), {"context": torch.cat([batch["context"]] * 2)})
    out[:3].square().sum().backward()
    last = [path for path in task.model.paths if path.startswith("up_blocks")][-4:]
    moved = {
        path.rpartition("attn1.")[2]: bool(task.model.updates[path].up.grad.any())
        for path in last
        if task.model.updates[path].up.grad is not None
    }
    assert moved["to_k"] and moved["to_v"]
    assert not moved.get("to_q") and not moved.get("to_out.0"), (
        "nothing after the last layer brings the maps back to the image"
    )


def test_resuming_is_bit_exact(small):
    whole = run_recipe(small(steps=4), BUILDERS)
    part = small(steps=4, stop=2, output=str(Path(whole.checkpoint).parent.parent / "parted"))
    run_recipe(part, BUILDERS)
    resumed = run_recipe(Recipe.from_json(part.to_json() | {"stop": 0}), BUILDERS, resume=True)
    for group in ("model", "optimizer"):
        one, two = (load_file(run.checkpoint / f"{group}.safetensors") for run in (whole, resumed))
        assert one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


BUILDERS = {"intrinsic_lora": training_lora.build}


@pytest.mark.parametrize("names", ["peft", "kohya"])
@pytest.mark.parametrize("family", ["sd21", "pixart"])
def test_the_shipped_lora_gives_the_trained_models_output(small, tmp_path, family, names):
    task = build(small(family, model={"names": names}))
    task.export(tmp_path, {name: value.detach() for name, value in task.model.state_dict().items()})
    base = load_backbone(tmp_path / family, family)
    file = tmp_path / training_lora.LORA_FILE
    lora = read_lora(
        read_tensors(file), projections(base.network), base=family, name=file.name,
        metadata=read_header(file).metadata
    )  # fmt: skip
    coupling, layers = couple(base.network, lora)
    theirs, batch = task.loss.keywords, read_batch(task)
    rows = Rows(("prompt",), 3)
    x = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    prompt = {name: torch.cat([batch[name]] * 2) for name in batch if name.startswith("context")}
    with (
        torch.no_grad(), theirs["coupling"].call(rows),
        coupling.call(rows, {layer.block: 1.0 for layer in layers}),
    ):
        one, two = (each.predict(x, torch.full((6,), 300), prompt) for each in (theirs["base"], base))
    assert torch.equal(one, two) and lora.keys() == set(task.model.paths)
    assert all(part.scale == 2 for part in lora.values())


@pytest.mark.parametrize("family, place, change, name", [
    ("sd21", "unet", {"cross_attention_dim": 768}, "sd15"),
    ("sd21", "unet", {"cross_attention_dim": 1024}, "sd21"),
    ("pixart", "vae", {"scaling_factor": 0.13025}, "pixart_sigma"),
    ("pixart", "vae", {"scaling_factor": 0.18215}, "pixart"),
    ("pixart", None, {}, "pixart"),
])  # fmt: skip
def test_bases_of_one_layout_are_told_apart_in_the_shipped_file(
    small, write_base, tmp_path, family, place, change, name
):
    """As ComfyUI's node tells them: their LoRAs have the same names and widths."""
    task = build(small(family))
    base, folder = task.loss.keywords["base"], write_base(tmp_path / "published", family)
    if place is not None:
        (folder / place).mkdir(exist_ok=True)
        path = folder / place / "config.json"
        path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | change))
    kind_of_base = replace(base, kind=find_kind(folder, family))
    partial(task.export, base=kind_of_base)(
        tmp_path, {key: value.detach() for key, value in task.model.state_dict().items()}
    )
    assert kind_of_base.name == read_header(tmp_path / training_lora.LORA_FILE).metadata["base"] == name


def test_a_shortened_product_is_the_nearest_for_its_inputs():
    """Eckart and Young: of what a product says of all inputs, its smallest singular values are lost
    and no more; float64.
    """
    generator = torch.Generator().manual_seed(0)
    down, up, x = (torch.randn(*shape, generator=generator).double() for shape in ((6, 12), (9, 6), (50, 12)))
    x[:, :4] *= 100  # the longest directions are not those with the largest inputs
    new_down, new_up = truncate_svd(down, up, 3, x.T @ x / len(x))
    short, full = (x @ (one @ two).double().T for one, two in ((new_up, new_down), (up, down)))
    assert (
        float((short - full).norm())
        == pytest.approx(float(torch.linalg.svdvals(full)[3:].norm()), rel=1e-4)
    )
    torch.testing.assert_close(new_down.norm(dim=1), new_up.norm(dim=0))


@pytest.mark.parametrize("domains", ["both", "intrinsic"])
def test_a_shipped_lora_may_have_a_lower_rank(small, tmp_path, domains):
    """Ranks and scale as the recipe says, cut by what each projection hears of the maps,
    and the run's own weights untouched.
    """
    task = build(small(model={"ship_rank": {"to_q": 3, "to_v": 2}}, loss={"domains": domains}))
    before = {name: value.detach().clone() for name, value in task.model.state_dict().items()}
    state, network = {name: 1.5 * value for name, value in before.items()}, task.companions[0]
    path = next(path for path in task.model.paths if path.endswith("to_v"))
    inputs = []
    network.get_submodule(path).register_forward_hook(lambda module, given, out: inputs.append(given[0]))
    task.export(tmp_path, state)
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    file = tmp_path / training_lora.LORA_FILE
    metadata = read_header(file).metadata
    short = read_lora(
        read_tensors(file), projections(network), base="sd21", name=file.name, metadata=metadata
    )
    assert {len(part.down) for name, part in short.items() if name.endswith("to_q")} == {3}
    assert {len(part.down) for name, part in short.items() if name.endswith("to_k")} == {4}
    assert {part.scale for part in short.values()} == {2.0}
    x = torch.cat(
        [each[-(len(each) // (2 if domains == "both" else 1)) :].flatten(0, 1) for each in inputs]
    ).double()
    whole = (
        state[f"layers.{training_lora.flat(path)}.up"].double()
        @ state[f"layers.{training_lora.flat(path)}.down"].double()
    )
    lost = torch.linalg.svdvals(x @ whole.T)[2:].norm()
    assert (
        float((x @ (short[path].up.double() @ short[path].down.double() - whole).T).norm())
        == pytest.approx(float(lost), rel=1e-3)
    )
    assert lost > 1e-3, "a LoRA of rank 2 would prove nothing"


def test_training_goes_on_from_a_shipped_lora(small, tmp_path):
    task = build(small())
    task.export(tmp_path, {name: value.detach() for name, value in task.model.state_dict().items()})
    file = str(tmp_path / training_lora.LORA_FILE)
    other = training_lora.build(small(model={"weights": file, "alpha": 0.0}))
    x = torch.randn(2, 32)
    path = next(path for path in task.model.paths if task.model.updates[path].down.shape[1] == 32)
    torch.testing.assert_close(other.model.updates[path](x), task.model.updates[path](x))
    with pytest.raises(ValueError, match="Expected rank 8 for .*, got rank 4"):
        training_lora.build(small(model={"weights": file, "rank": 8}))


def test_checkpointing_changes_no_gradient(small):
    gradients = []
    for checkpointing in (False, True):
        task = build(small(model={"checkpointing": checkpointing}))
        task.companions[0].train(checkpointing)
        task.loss(task.model, read_batch(task), torch.Generator().manual_seed(4))[0].backward()
        gradients.append({name: value.grad for name, value in task.model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


@pytest.mark.parametrize("family", ["sd21", "sdxl", "pixart"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_trains_in_mixed_precision(small, family, precision):
    """On float16 latents and prompts, as the folder has them, which bfloat16 autocast does not join."""
    outcome = run_recipe(small(family, model={"precision": precision}, mixed_precision="bf16"), BUILDERS)
    assert outcome.ending == "finished" and outcome.loss > 0
    shipped = load_file(outcome.checkpoint.parent / training_lora.LORA_FILE)
    assert {value.dtype for value in shipped.values()} == {torch.float32}


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.json")), ids=lambda path: path.stem)
def test_committed_recipes_are_valid(path):
    recipe = Recipe.read(path)
    if recipe.system == "intrinsic_lora":
        settings, loss = training_lora.LoraSettings(**recipe.model), training_lora.LoraLoss(**recipe.loss)
        assert (
            recipe.preset in training_lora.FAMILIES
            and settings.rank == 32
            and settings.scale == 1
            and loss.domains == "both"
        )
        assert loss.noise == "independent" and not settings.places, "as the paper trains"
        assert bool(settings.ship_rank) == path.stem.startswith("tiny")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model": {"base": ""}}, "as base of the recipe's model, got none"),
        ({"model": {"rank": 0}}, "rank 0"),
        (
            {"model": {"names": "a1111"}},
            "Expected one of peft, kohya as names of the recipe's model, got 'a1111'",
        ),
        ({"model": {"precision": "float16"}}, "one of float32, bfloat16"),
        ({"model": {"rnk": 4}}, "did you mean 'rank'"),
        ({"model": {"ship_rank": 5}}, "Expected ship_rank of the recipe's model from 0 to 4"),
        ({"model": {"ship_rank": {"to_x": 2}}}, "for each of to_q, to_k, to_v, to_out.0"),
        ({"loss": {"domains": "image"}}, "one of both, intrinsic"),
        ({"loss": {"noise": "same"}}, "one of independent, shared"),
        ({"loss": {"caption_dropout": 2}}, "from 0 to 1"),
        ({"preset": "sd3"}, "one of sd21, sdxl, pixart"),
        ({"preset": "pixart"}, "got none for context_mask"),
        ({"data": {}}, "spatialweave intrinsics encode"),
        ({"model": {"base": "nowhere"}}, "neither unet/config.json nor transformer/config.json"),
    ],
)  # fmt: skip
def test_a_recipe_that_cannot_work_is_refused(small, changes, words):
    recipe = small(**changes)
    with pytest.raises(ValueError, match=r"\S") as error:
        training_lora.build(recipe)
    assert words in str(error.value)


def test_a_base_of_another_family_or_kind_is_refused(small, tmp_path, write_base, write_latents):
    recipe = small("sdxl")
    write_latents(tmp_path / "other", "sd21")
    with pytest.raises(
        ValueError, match="Expected a base of the family sd21 in .*, as the preset says, got sdxl"
    ):
        training_lora.build(Recipe.from_json(recipe.to_json() | {"preset": "sd21"}))
    with pytest.raises(ValueError, match="lacks pooled|got none for pooled"):
        training_lora.build(
            Recipe.from_json(recipe.to_json() | {"data": {"folder": str(tmp_path / "other")}})
        )
    config = tmp_path / "sdxl" / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "UNet3D"}))
    with pytest.raises(
        ValueError, match="Expected the base of SD2.1, SDXL or PixArt in .*, got UNet3D with text_time"
    ):
        training_lora.build(recipe)


def test_what_a_base_predicts_and_its_files_are_checked(small, tmp_path):
    recipe = small(prediction="sample")
    with pytest.raises(ValueError, match="predicts epsilon or v_prediction in .*, got 'sample'"):
        training_lora.build(recipe)
    for file in (tmp_path / "sd21" / "unet").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(ValueError, match="Expected a base that diffusers loads in "):
        training_lora.build(recipe)
    (tmp_path / "sd21" / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(ValueError, match="scheduler_config.json, got a missing or damaged file"):
        training_lora.build(recipe)


def test_a_folder_that_lacks_the_empty_prompt_is_refused(small, tmp_path):
    recipe = small("sdxl")
    empty = tmp_path / "sdxl_data" / training_lora.EMPTY_PROMPT
    tensors = load_file(empty)
    save_file({"context": tensors["context"]}, empty)
    with pytest.raises(ValueError, match="empty_context.safetensors, .* got none for pooled"):
        training_lora.build(recipe)
    empty.unlink()
    with pytest.raises(ValueError, match="or set caption_dropout to 0"):
        training_lora.build(recipe)
    training_lora.build(Recipe.from_json(recipe.to_json() | {"loss": {"caption_dropout": 0}}))


def test_latents_of_another_base_are_refused(small, tmp_path, write_latents):
    recipe = small()
    shard = tmp_path / "sd21_data" / "shard-00000.safetensors"
    save_file(load_file(shard) | {"context": torch.zeros(6, 5, 7)}, shard)
    with pytest.raises(
        ValueError,
        match=(
            "Expected samples of a sd21 base in .* 4 channels and a context of width 24, got .* and width 7"
        ),
    ):
        training_lora.build(recipe)


@pytest.mark.parametrize("family", ["sd21", "pixart"])
def test_a_lora_may_start_at_its_own_place(small, family):
    """What it adds to the logits, written out in float64: of a query with the key of its own place
    in the image `places` above the mean.
    """
    task = training_lora.build(small(family, model={"places": 5.0, "rank": 20}))
    network, samples = task.companions[0], [task.dataset[index] for index in range(len(task.dataset))]
    count, generator = len(samples), torch.Generator().manual_seed(0)
    times = torch.linspace(0, 999, count).long()[torch.randperm(count, generator=generator)]
    noise = torch.randn(count, *samples[0]["latent"].shape, generator=generator)
    base = load_backbone(small(family).model["base"], family)  # without processors of ours, each row alone
    inputs = {}
    for path in task.model.paths:
        if path.endswith("to_q"):
            base.network.get_submodule(path).register_forward_hook(
                lambda module, given, out, path=path: inputs.update({path: given[0]})
            )
    clean = torch.cat(
        [torch.stack([sample[key].float() for sample in samples]) for key in ("latent", "intrinsic_latent")]
    )
    prompt = {
        name: torch.stack([s[name].float() for s in samples]).repeat(2, 1, 1)
        for name in samples[0]
        if name == "context"
    }
    prompt |= {
        name: torch.stack([s[name].float() for s in samples]).repeat(2, 1)
        for name in samples[0]
        if name == "context_mask"
    }
    with torch.no_grad():
        base.predict(
            base.add_noise(clean, noise.repeat(2, 1, 1, 1), times.repeat(2)), times.repeat(2), prompt
        )
    for path, layer in task.model.updates.items():
        if not path.endswith("to_q"):
            assert not layer.up.any()
            continue
        attn = network.get_submodule(path.removesuffix(".to_q"))
        image, maps = inputs[path].double().chunk(2)
        added = maps @ (layer.scale * layer.up.double() @ layer.down.double()).T
        query, key = (
            x.unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for x in (added, image @ attn.to_k.weight.double().T)
        )
        logits = query @ key.transpose(2, 3) / key.shape[-1] ** 0.5
        above = logits.diagonal(dim1=2, dim2=3).mean() - logits.mean()
        assert above.item() == pytest.approx(5.0, rel=1e-3)
    with pytest.raises(
        ValueError, match="Expected places of the recipe's model to be 0, or above 0 with rank 16 or more"
    ):
        training_lora.build(small(family, model={"places": 5.0, "rank": 8}))
