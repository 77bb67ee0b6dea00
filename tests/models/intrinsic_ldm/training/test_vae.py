"""The intrinsic VAE's training: its start, the loss against float64, missing maps, and the shipped file
with its measured scale.
"""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spatialweave.models.core.training.loop import run_recipe
from spatialweave.models.core.training.recipe import Recipe
from spatialweave.models.core.weights.files import read_header
from spatialweave.models.intrinsic_ldm.config import VaeConfig
from spatialweave.models.intrinsic_ldm.training import vae as training_vae
from spatialweave.models.intrinsic_ldm.training.perceptual import TAPS, load_perceptual
from spatialweave.models.intrinsic_ldm.vae import drop_maps, map_slices, widen_state
from spatialweave.models.intrinsic_ldm.weights import load_intrinsic_vae, to_core_names, to_diffusers_names
from spatialweave.models.world.export.dataset import export_dataset

pytest.importorskip("accelerate", reason="the trainer's extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the trainer's extra is not installed")
BUILDERS = {"intrinsic_vae": training_vae.build}
RECIPES = Path(training_vae.__file__).parent / "recipes"
TINY = {"width": 32, "multiples": [1, 2], "blocks": 1}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps")
    export_dataset(folder / "all", count=5, size=32, seed=0, normals=True)
    export_dataset(folder / "no_normals", count=5, size=32, seed=0)
    return folder


@pytest.fixture
def recipe(world, tmp_path):
    """recipe(**changes) -> of a tiny autoencoder on the world's maps."""

    def make(folder="all", **changes):
        values = {
            "system": "intrinsic_vae", "steps": 3, "batch_size": 2, "lr": 1e-3, "ema": 0.0, "log_every": 1,
            "model": {"config": TINY}, "data": {"folder": str(world / folder)},
            "output": str(tmp_path / "run"),
        }  # fmt: skip
        return Recipe.from_json(values | changes)

    return make


def write_base(folder, **changes):
    """A base's own autoencoder with three channels, as diffusers saves it."""
    config = (
        VaeConfig(**TINY).for_diffusers()
        | {"in_channels": 3, "out_channels": 3, "scaling_factor": 0.13025}
        | changes
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = diffusers.AutoencoderKL(**config)
    model.save_pretrained(folder)
    return model.state_dict()


def test_first_weights_are_the_bases_from_a_folder_a_pipeline_a_file_and_a_checkpoint(recipe, tmp_path):
    base = write_base(tmp_path / "pipeline" / "vae")
    wanted = widen_state(base)
    core = {name: value.contiguous() for name, value in to_core_names(base).items()}
    save_file(core, tmp_path / "vae.safetensors")
    save_file(
        {f"first_stage_model.{name}": value for name, value in core.items()} | {"other": torch.zeros(1)},
        tmp_path / "whole.safetensors"
    )
    for place, config in (
        ("pipeline/vae", {}), ("pipeline", {}), ("vae.safetensors", TINY), ("whole.safetensors", TINY),
    ):
        model = training_vae.build(recipe(model={"base": str(tmp_path / place), "config": config})).model
        assert model.config.in_channels == model.config.out_channels == 8
        assert model.config.scaling_factor == (0.13025 if config == {} else VaeConfig.base_scale)
        own = model.state_dict()
        assert own.keys() == wanted.keys() and all(torch.equal(own[name], wanted[name]) for name in own)


def test_without_a_base_the_first_weights_follow_from_the_seed(recipe):
    one, two, three = (training_vae.build(recipe(seed=seed)).model.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["encoder.conv_in.weight"], three["encoder.conv_in.weight"])


def read_batch(task):
    return task.collate([task.dataset[index] for index in range(4)])


def test_loss_is_what_the_paper_is_read_as(recipe):
    """Written out in float64: masked input, one draw of the posterior, unmasked targets."""
    task = training_vae.build(recipe(loss={"drop": 0.5, "depth": 2.0, "divergence": 1e4}))
    batch = read_batch(task)
    value, parts = task.loss(task.model, batch, torch.Generator().manual_seed(3))

    generator, model, maps = (
        torch.Generator().manual_seed(3), copy.deepcopy(task.model).double(), batch["maps"].double(),
    )
    masked = drop_maps(batch["maps"], generator, 0.5).double()
    assert not torch.equal(masked, maps)
    with torch.no_grad():
        mean, log_variance = model.quant_conv(model.encoder(masked)).chunk(2, dim=1)
        latent = mean + log_variance.exp().sqrt() * torch.randn(mean.shape, generator=generator).double()
        out = model.decoder(model.post_quant_conv(latent))
    wanted = {name: (out[:, part] - maps[:, part]).abs().mean() for name, part in map_slices().items()}
    wanted["depth"] *= 2
    ours, theirs = out[:, map_slices()["normals"]], maps[:, map_slices()["normals"]]
    known = theirs.norm(dim=1) > 0
    cosine = (ours * theirs).sum(1)[known] / (ours.norm(dim=1) * theirs.norm(dim=1))[known]
    wanted["normals_angle"] = (1 - cosine).mean()
    divergence = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, log_variance.exp().sqrt()),
        torch.distributions.Normal(torch.zeros_like(mean), 1.0)
    )
    wanted["divergence"] = 1e4 * 1e-6 * divergence.sum(dim=(1, 2, 3)).mean()
    assert parts.keys() == wanted.keys()
    for name, part in parts.items():
        # exp(x) - 1 - x loses digits in float32
        assert (
            float(part)
            == pytest.approx(float(wanted[name]), rel=1e-3 if name == "divergence" else 1e-4)
        ), name
    assert float(value.detach()) == pytest.approx(float(sum(wanted.values())), rel=1e-3)


def test_a_map_that_the_dataset_lacks_is_not_learned(recipe):
    task = training_vae.build(recipe("no_normals"))
    batch = read_batch(task)
    assert batch["present"].tolist() == [[True, False, True, True]] * 4
    normals = map_slices()["normals"]
    assert not batch["maps"][:, normals].any()
    value, parts = task.loss(task.model, batch, torch.Generator().manual_seed(3))
    value.backward()
    assert parts["normals"] == parts["normals_angle"] == 0 < parts["depth"]
    gradient = task.model.decoder.conv_out.weight.grad
    assert not gradient[normals].any() and gradient[0].any()


def test_shipped_file_has_the_measured_scale_and_decodes_alike(recipe):
    outcome = run_recipe(recipe(model={"config": TINY, "measure": 3}), BUILDERS)
    file = load_intrinsic_vae(outcome.checkpoint.parent / training_vae.VAE_FILE)
    assert file.config == replace(VaeConfig(), **TINY)
    trained = load_file(outcome.checkpoint / "model.safetensors")
    shipped = to_diffusers_names(file.state)
    assert (
        shipped.keys() == trained.keys()
        and all(torch.equal(shipped[name], trained[name]) for name in trained)
    )

    model = training_vae.make_autoencoder(file.config)
    model.load_state_dict(shipped)
    dataset = training_vae.build(recipe()).dataset
    with torch.no_grad():
        # three of five, spread evenly
        means = [model.encode(dataset[index]["maps"][None]).latent_dist.mean for index in (0, 1, 3)]
    assert float((torch.cat(means) * file.latent_scale).std()) == pytest.approx(1, rel=1e-5)
    assert file.latent_scale != pytest.approx(VaeConfig.base_scale)


def test_training_goes_on_from_a_shipped_file_of_half_precision(recipe, tmp_path):
    outcome = run_recipe(recipe(model={"config": TINY, "ship": "float16", "measure": 1}), BUILDERS)
    file = tmp_path / "run" / training_vae.VAE_FILE
    assert set(read_header(file).dtypes.values()) == {"F16"}
    own = training_vae.build(recipe(model={"weights": str(file)})).model.state_dict()
    trained = load_file(outcome.checkpoint / "model.safetensors")
    assert all(
        own[name].dtype == torch.float32 and torch.equal(own[name], trained[name].half().float())
        for name in own
    )


def test_resuming_is_bit_exact(recipe, tmp_path):
    whole = run_recipe(recipe(steps=4), BUILDERS)
    part = recipe(steps=4, stop=2, output=str(tmp_path / "parted"))
    run_recipe(part, BUILDERS)
    resumed = run_recipe(Recipe.from_json(part.to_json() | {"stop": 0}), BUILDERS, resume=True)
    for group in ("model", "optimizer"):
        one, two = (load_file(run.checkpoint / f"{group}.safetensors") for run in (whole, resumed))
        assert one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


def test_one_picture_is_learned(recipe, world, tmp_path):
    """A hundred steps on one sample halve the loss of every map."""
    export_dataset(tmp_path / "one", count=1, size=32, seed=3, normals=True)
    logs = []
    settings = {
        "steps": 100, "batch_size": 1, "lr": 3e-3, "warmup": 10, "loss": {"drop": 0.0},
        "data": {"folder": str(tmp_path / "one")},
    }
    run_recipe(recipe(**settings), BUILDERS, on_log=logs.append)
    for name in ("depth", "normals", "segmentation", "line"):
        assert logs[-1][name] < 0.5 * logs[0][name], name


@pytest.fixture(scope="module")
def vgg(tmp_path_factory):
    """A file of random weights with torchvision's names and shapes, and its classifier's
    that are not wanted.
    """
    torchvision = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        shapes = {
            name: value.shape for name, value in torchvision.vgg16(weights=None).features.state_dict().items()
        }
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"features.{name}": torch.randn(shape, generator=generator)
        * (2 / (shape[1:].numel() or 1)) ** 0.5
        * (len(shape) > 1)
        for name, shape in shapes.items()
    }
    path = tmp_path_factory.mktemp("vgg") / "vgg16.safetensors"
    save_file(tensors | {"classifier.0.bias": torch.zeros(2)}, path)
    return path


def test_perceptual_distance_is_that_of_normalised_features(vgg):
    distance = load_perceptual(vgg)
    assert not any(parameter.requires_grad for parameter in distance.parameters())
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1 for _ in range(2))
    assert not distance(a, a).any() and (distance(a, b) > 0).all()

    def features(x):
        x = (
            ((x + 1) / 2 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
            / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        )
        found = []
        for number, layer in enumerate(distance.layers):
            x = layer(x)
            if number in TAPS:
                found.append((x / x.norm(dim=1, keepdim=True).clamp_min(1e-12)).clone())
        return found

    wanted = sum((one - two).square().sum(1).mean((1, 2)) for one, two in zip(features(a), features(b)))
    torch.testing.assert_close(distance(a, b), wanted)


def test_perceptual_part_counts_where_its_weights_are_named(recipe, vgg):
    batch = read_batch(training_vae.build(recipe()))
    task = training_vae.build(recipe(loss={"perceptual_weights": str(vgg), "perceptual": 0.5}))
    value, parts = task.loss(task.model, batch, torch.Generator().manual_seed(3))
    assert parts["perceptual"] > 0 and len(task.companions) == 1
    value.backward()
    assert task.model.encoder.conv_in.weight.grad.any()


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.json")), ids=lambda path: path.stem)
def test_committed_recipes_are_valid(path):
    recipe = Recipe.read(path)
    if recipe.system == "intrinsic_vae":
        settings, loss = training_vae.VaeSettings(**recipe.model), training_vae.VaeLoss(**recipe.loss)
        side = 128 if path.stem.startswith("tiny") else 512
        assert (
            loss.drop == 0.1 and (settings.base or settings.weights) and recipe.data["size"] == [side, side]
        )


@pytest.mark.parametrize("changes, words", [
    ({"model": {"base": "a", "weights": "b"}}, "Expected base or weights in the recipe's model, got both"),
    ({"model": {"config": {"wdth": 32}}}, "did you mean 'width'"),
    ({"model": {"config": {"width": 33}}}, "multiples of 32, the groups of its GroupNorm"),
    ({"model": {"measure": 0}}, "to be at least 1, got 0"),
    ({"model": {"ship": "int8"}}, "one of float32, float16, bfloat16"),
    (
        {"model": {"base": "nowhere.safetensors"}},
        "nowhere.safetensors, got no file of this name. Check the path",
    ),
    ({"loss": {"drop": 1.0}}, "from 0 to below 1"),
    ({"loss": {"depth": -1.0}}, "Expected depth of the recipe's loss to be at least 0, got -1.0"),
    ({"loss": {"line_balance": 0.0}}, "Expected line_balance of the recipe's loss above 0, got 0"),
    ({"loss": {"segment_balance": 0}}, "Expected segment_balance of the recipe's loss above 0, got 0"),
    ({"loss": {"lpips": 1.0}}, "unknown keys 'lpips'"),
    ({"data": {}}, "Expected a folder in the recipe's data, got none"),
    ({"data": {"folder": "nowhere"}}, "Expected a dataset folder with manifest.jsonl"),
])  # fmt: skip
def test_a_recipe_that_cannot_work_is_refused(recipe, changes, words):
    with pytest.raises(ValueError, match=r"\S") as error:
        training_vae.build(recipe(**changes))
    assert words in str(error.value)


def test_perceptual_weights_that_are_not_there_are_named(recipe):
    pytest.importorskip("torchvision", reason="the perceptual distance is torchvision's network")
    with pytest.raises(ValueError, match="nowhere.safetensors"):
        training_vae.build(recipe(loss={"perceptual_weights": "nowhere.safetensors"}))


def test_a_base_that_does_not_fit_is_refused(recipe, tmp_path, world):
    write_base(tmp_path / "vae")
    with pytest.raises(ValueError, match="Expected no config in the recipe's model"):
        training_vae.build(recipe(model={"base": str(tmp_path / "vae"), "config": TINY}))
    core = {
        name: value.contiguous()
        for name, value in to_core_names(load_file(next((tmp_path / "vae").glob("*.safetensors")))).items()
    }
    save_file(core, tmp_path / "vae.safetensors")
    with pytest.raises(ValueError, match="vae.safetensors, got others: .* missing"):
        training_vae.build(recipe(model={"base": str(tmp_path / "vae.safetensors")}))
    save_file({"some.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="Expected a KL autoencoder in "):
        training_vae.build(recipe(model={"base": str(tmp_path / "other.safetensors"), "config": TINY}))
    write_base(tmp_path / "grouped", norm_num_groups=16)
    with pytest.raises(ValueError, match="Expected GroupNorm of 32 groups, .* got 16"):
        training_vae.build(recipe(model={"base": str(tmp_path / "grouped")}))
    next((tmp_path / "grouped").glob("*.safetensors")).unlink()
    write_base(tmp_path / "empty")
    next((tmp_path / "empty").glob("*.safetensors")).unlink()
    with pytest.raises(ValueError, match="Expected diffusion_pytorch_model.safetensors in "):
        training_vae.build(recipe(model={"base": str(tmp_path / "empty")}))
    with pytest.raises(ValueError, match="sides that are multiples of 2, .* got 30 x 31 pixels"):
        training_vae.build(recipe(data={"folder": str(world / "all"), "size": [31, 30]}))
