"""The recipes that ship, and the builders that they name."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import spatialweave
from spatialweave.models.core.training.loop import run_recipe
from spatialweave.models.core.training.recipe import Recipe
from spatialweave.models.core.weights.files import read_header
from spatialweave.models.intrinsic_ldm import tiny
from spatialweave.models.intrinsic_ldm.data.encode import encode_dataset
from spatialweave.models.intrinsic_ldm.weights import load_intrinsic_vae
from spatialweave.models.tiny.text import PAD, tokenize
from spatialweave.models.tiny.weights import load_codec
from spatialweave.models.trainers.builders import BUILDERS
from spatialweave.models.world.export.dataset import export_dataset

ROOT = Path(spatialweave.__file__).parent
RECIPES = sorted(ROOT.glob("models/*/recipes/*.json"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_valid_and_has_a_builder(path):
    assert Recipe.read(path).system in BUILDERS


def shorten(name, tmp_path, **changes):
    values = json.loads(next(path for path in RECIPES if path.stem == name).read_text())
    data = values["data"] | {"folder": str(tmp_path / "world")}
    short = {
        "data": data,
        "steps": 2,
        "stop": 0,
        "warmup": 0,
        "batch_size": 4,
        "output": str(tmp_path / name),
    }
    return Recipe.from_json(values | short | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trainers")
    export_dataset(folder / "world", count=6, size=32, seed=0, split="train")
    return folder


def test_codec_recipe_trains_and_writes_a_codec_that_loads(folder):
    run_recipe(shorten("codec", folder, mixed_precision="no"), BUILDERS)
    codec = load_codec(folder / "codec" / "codec.safetensors")
    assert codec.decode(codec.encode(torch.zeros(1, 3, 32, 32))).shape == (1, 3, 32, 32)
    assert (codec.latent_std != 1).any()


def tiny_stages(system):
    stages = [path.stem for path in RECIPES if path.stem.startswith("tiny_") and system in path.parts]
    return sorted(stages, key=lambda stage: int(stage.split("_")[1]))


@pytest.mark.slow
def test_tiny_recipes_follow_one_another(folder):
    """Each of the five stages goes on from the weights of the one before, as its recipe says."""
    stages = tiny_stages("modality_forcing")
    assert len(stages) == 5
    for number, stage in enumerate(stages, start=1):
        whole = json.loads(next(path for path in RECIPES if path.stem == stage).read_text())
        model = {
            key: value.replace("runs/", f"{folder}/") if isinstance(value, str) else value
            for key, value in whole["model"].items()
        }
        outcome = run_recipe(
            shorten(
                stage, folder, steps=1, model=model, output=whole["output"].replace("runs/", f"{folder}/")
            ),
            BUILDERS,
        )
        assert outcome.ending == "finished"
        for name in ("network.safetensors", "text.safetensors"):  # what ships is half as large as what trains
            kind = {"F16"} if number in (2, 4, 5) else {"F32"}
            assert set(read_header(folder / f"tiny_{number}" / name).dtypes.values()) == kind


@pytest.mark.slow
def test_the_tiny_intrinsic_recipes_follow_one_another(tmp_path):
    """Autoencoder, base, the maps' autoencoder, base with maps and with pairs, LoRA: each goes on from those
    before, and what ships can be loaded."""
    pytest.importorskip("diffusers", reason="the trainer's extra is not installed")
    for name, normals in (("world", False), ("world_maps", True), ("world_pairs", True)):
        export_dataset(tmp_path / name, count=6, size=64, seed=0, split="train", normals=normals)

    def moved(values):
        return {
            key: value.replace("runs/", f"{tmp_path}/").replace("data/", f"{tmp_path}/")
            for key, value in values.items()
        }

    stages, ran = tiny_stages("intrinsic_ldm"), []
    for stage in stages:
        whole = json.loads(next(path for path in RECIPES if path.stem == stage).read_text())
        ran.append(tmp_path / whole["output"].removeprefix("runs/"))
        reads = next(whole["data"][key] for key in ("pairs", "maps", "folder") if key in whole["data"])
        latents = tmp_path / reads.removeprefix("data/")
        if (
            "latents" in latents.name and not latents.exists()
        ):  # the documentation encodes them before this stage
            base, vae = (
                next(run for run in reversed(ran[:-1]) if "base" in run.name),
                ran[4] / "intrinsic_vae.safetensors",
            )
            encode_dataset(tmp_path / latents.name.partition("_latents")[0], latents, base=base, vae=vae)
        model = whole.get("model", {})
        words = {key: value for key, value in model.items() if isinstance(value, str)}
        numbers = {key: value for key, value in whole["data"].items() if key in ("scenes", "maps_share")}
        data = moved({key: value for key, value in whole["data"].items() if isinstance(value, str)})
        changes = {
            "data": numbers | data,
            "model": model | moved(words),
            "output": str(ran[-1]),
            "warmup": 0,
            "batch_size": 4,
        }
        assert (
            run_recipe(Recipe.from_json(whole | changes | {"steps": 2, "stop": 0}), BUILDERS).ending
            == "finished"
        )
    kinds = [stage.split("_", 2)[2] for stage in stages]
    assert kinds == [*["image_vae"] * 2, "base", *["intrinsic_vae"] * 2, *["base"] * 5, "intrinsic_lora"]

    base, files = tiny.load_base(ran[9] / tiny.BASE_FILE.name), [ran[9] / tiny.BASE_FILE.name]
    assert {name: value.shape for name, value in base.vae.items()} == {
        n: v.shape for n, v in tiny.read_base_folder(ran[9]).vae.items()
    }
    maps = load_intrinsic_vae(ran[4] / "intrinsic_vae.safetensors")
    assert maps.config.base_scale == base.vae_scale and maps.config.multiples == tiny.VAE.multiples
    files += [ran[4] / "intrinsic_vae.safetensors", ran[10] / "intrinsic_lora.safetensors"]
    assert sum(file.stat().st_size for file in files) < 12e6, "all that ships of the tiny system"


def test_a_base_may_learn_from_maps_among_its_pictures(tmp_path):
    """A share of the samples; a map keeps its words, behind a padding word that no prompt begins with.

    Then a run goes on from it.
    """
    diffusers = pytest.importorskip("diffusers", reason="the trainer's extra is not installed")
    export_dataset(tmp_path / "world", count=6, size=32, seed=0, split="train")
    diffusers.AutoencoderKL(**tiny.VAE.for_diffusers(3)).save_pretrained(tmp_path / "vae")
    captions = ["a red ball", "a blue box on grass"]
    rows = [
        {"shard": "0.safetensors", "row": i, "index": i, "caption": text} for i, text in enumerate(captions)
    ]
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    latents = torch.randn(2, tiny.VAE.latent_channels, 4, 4, generator=torch.Generator().manual_seed(1))
    save_file({"intrinsic_latent": latents.half()}, tmp_path / "maps" / "0.safetensors")
    data = {
        "folder": str(tmp_path / "world"),
        "size": 32,
        "vae": str(tmp_path / "vae"),
        "maps": str(tmp_path / "maps"),
        "maps_share": 0.25,
    }
    recipe = {
        "system": "tiny_base",
        "steps": 2,
        "batch_size": 4,
        "warmup": 0,
        "data": data,
        "output": str(tmp_path / "one"),
    }
    recipe["loss"] = {"caption_dropout": 1.0}
    task = BUILDERS["tiny_base"](Recipe.from_json(recipe))
    samples = [task.dataset[i] for i in range(len(task.dataset))]
    assert [bool(sample["maps"]) for sample in samples] == [False] * 12 + [True] * 4
    assert (
        torch.equal(samples[13]["latent"], latents[1].half().float()) and (samples[13]["cells"] == -1).all()
    )
    assert (
        torch.equal(samples[13]["tokens"][0, 1:], tokenize(["a blue box on grass"])[0, :-1])
        and samples[13]["tokens"][0, 0] == PAD
    )
    assert all(sample["tokens"][0, 0] != PAD for sample in samples[:12])

    logged = []
    task.model.text_encoder.register_forward_pre_hook(lambda module, given: logged.append(given[0]))
    task.loss(task.model, task.collate([samples[0], samples[12]]), torch.Generator().manual_seed(0))
    assert (logged[0][0] == PAD).all() and torch.equal(logged[0][1], samples[12]["tokens"][0]), (
        "every caption is dropped but a map's"
    )

    assert run_recipe(Recipe.from_json(recipe), BUILDERS).ending == "finished"
    with pytest.raises(
        ValueError, match="Expected no noise in the recipe's loss for data without pairs, .* got 'shared'"
    ):
        BUILDERS["tiny_base"](Recipe.from_json(recipe | {"loss": {"noise": "shared"}}))
    onward = recipe | {
        "model": {"weights": str(tmp_path / "one")},
        "loss": {"position": 0.5},
        "output": str(tmp_path / "two"),
    }
    task, made = BUILDERS["tiny_base"](Recipe.from_json(onward)), tiny.read_base_folder(tmp_path / "one")
    assert all(
        torch.equal(value, made.unet[name].float()) for name, value in task.model.unet.state_dict().items()
    )
    assert all(
        torch.equal(value, made.text[name].float())
        for name, value in task.model.text_encoder.state_dict().items()
    )
    assert all(parameter.requires_grad for parameter in task.model.parameters())
    loss, parts = task.loss(task.model, task.collate(samples[:2]), torch.Generator().manual_seed(0))
    (part,) = torch.autograd.grad(loss, [task.model.reader.heads[0].weight])
    assert (
        len(task.model.reader.heads) == len(task.model.keys()) == 7
        and "position" in parts
        and part.abs().max() > 0
    )


def test_a_crop_beyond_the_pictures_is_refused(folder):
    data = {"folder": str(folder / "world"), "size": 32}
    with pytest.raises(
        ValueError, match="Expected crop of the recipe's loss within the images' 32 x 32 pixels, got 64"
    ):
        BUILDERS["tiny_image_vae"](Recipe("tiny_image_vae", 1, data=data, loss={"crop": 64}))


@pytest.mark.parametrize("objects", ["red ball", ["red ball", "no such thing"], [], [5], None])
def test_objects_that_the_world_does_not_know_are_named_by_line(tmp_path, objects):
    export_dataset(tmp_path / "files", 2, size=16, layout="files")
    manifest = tmp_path / "files" / "manifest.jsonl"
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    lines[1]["objects"] = objects
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(
        ValueError, match=r"Sample 1 \(line 2 of .*Expected \"objects\" as the world names them"
    ):
        BUILDERS["tiny_codec"](Recipe("tiny_codec", 1, data={"folder": str(tmp_path / "files")}))


@pytest.mark.parametrize("system", ["tiny_codec", "tiny_image_vae", "tiny_modality_forcing"])
def test_loose_pictures_of_the_world_train_as_shards_do(tmp_path, system):
    datasets = []
    for layout in ("files", "shards"):
        export_dataset(tmp_path / layout, 2, size=32, layout=layout, depth_type="float32")
        datasets.append(BUILDERS[system](Recipe(system, 1, data={"folder": str(tmp_path / layout)})).dataset)
    for index in range(4):
        loose, packed = (dataset[index] for dataset in datasets)
        assert loose.keys() == packed.keys()
        for key in packed:  # depth to the half millimetre of its PNG
            torch.testing.assert_close(
                loose[key], packed[key], rtol=0, atol=2e-3 if key == "depth_net" else 0, msg=key
            )


@pytest.mark.parametrize(
    "system", ["tiny_codec", "tiny_image_vae", "tiny_modality_forcing", "scorer", "predictor"]
)
def test_a_folder_without_segmentation_is_refused_in_a_sentence(tmp_path, system):
    export_dataset(tmp_path, 2, size=32, layout="files")
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace('"segmentation": ', '"labels": '))
    with pytest.raises(ValueError, match="segmentation"):
        BUILDERS[system](Recipe(system, 1, data={"folder": str(tmp_path)}))


def test_an_unknown_shipping_precision_is_refused(folder):
    with pytest.raises(
        ValueError, match="Expected one of float32, float16 as ship of the recipe's model, got 'int3'"
    ):
        run_recipe(
            shorten("tiny_1_text_to_image", folder, model={"ship": "int3"}, output=str(folder / "refused")),
            BUILDERS,
        )


@pytest.fixture
def pairs(tmp_path):
    """A folder as `intrinsics encode` writes it, of two random pictures and their maps; and the recipe of a
    base that learns from it."""
    diffusers = pytest.importorskip("diffusers", reason="the trainer's extra is not installed")
    captions = ["a red ball", "a blue box on grass"]
    rows = [
        {"shard": "0.safetensors", "row": i, "index": i, "caption": text} for i, text in enumerate(captions)
    ]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shape, generator = (2, tiny.VAE.latent_channels, 4, 4), torch.Generator().manual_seed(1)
    latents = {key: torch.randn(shape, generator=generator) for key in ("latent", "intrinsic_latent")}
    save_file(latents, tmp_path / "0.safetensors")
    diffusers.AutoencoderKL(**tiny.VAE.for_diffusers(3)).save_pretrained(tmp_path / "vae")
    recipe = {
        "system": "tiny_base",
        "steps": 2,
        "batch_size": 2,
        "warmup": 0,
        "output": str(tmp_path / "run"),
    }
    recipe["data"] = {"pairs": str(tmp_path), "vae": str(tmp_path / "vae")}
    recipe["loss"] = {"align": 0.0, "position": 0.5, "caption_dropout": 0.0}
    return recipe, captions, latents


def test_a_base_may_learn_from_pictures_with_their_maps(pairs):
    """Maps are said by their picture's words behind a padding word."""
    recipe, captions, latents = pairs
    task = BUILDERS["tiny_base"](Recipe.from_json(recipe))
    samples = [task.dataset[i] for i in range(len(task.dataset))]
    for i, (sample, words) in enumerate(zip(samples, tokenize(captions), strict=True)):
        assert all(torch.equal(sample[key], latent[i]) for key, latent in latents.items())
        assert torch.equal(sample["tokens"], words)
        assert sample["maps_tokens"][0] == PAD and torch.equal(sample["maps_tokens"][1:], words[:-1])
    logged = []
    task.model.text_encoder.register_forward_pre_hook(lambda module, given: logged.append(given[0]))
    task.loss(task.model, task.collate(samples), torch.Generator().manual_seed(0))
    assert torch.equal(logged[0], tokenize(captions)) and (logged[1][:, 0] == PAD).all()
    assert run_recipe(Recipe.from_json(recipe), BUILDERS).ending == "finished"
    assert tiny.load_base(Path(recipe["output"]) / tiny.BASE_FILE.name).unet


def test_maps_read_their_picture_and_pictures_no_maps(pairs):
    """What reads what, by the gradient of each domain's loss; and that the two noises are one only where they
    are to be."""
    recipe, _, _ = pairs
    task = BUILDERS["tiny_base"](Recipe.from_json(recipe))
    batch = task.collate([task.dataset[i] for i in range(2)])
    clean = [batch[key].requires_grad_() for key in ("latent", "intrinsic_latent")]

    def collect_inputs(task):
        """What came to the network and what it said, of pictures and of maps; the parts of the loss."""
        came, said = [], []
        handles = [task.model.unet.register_forward_pre_hook(lambda module, given: came.append(given[0]))]
        handles += [
            task.model.unet.register_forward_hook(lambda module, given, out: said.append(out[0].sum()))
        ]
        parts = task.loss(task.model, batch, torch.Generator().manual_seed(0))[1]
        for handle in handles:
            handle.remove()
        return came, said, parts

    came, said, parts = collect_inputs(task)
    assert parts.keys() == {"image", "intrinsic", "position"}
    of_image, of_maps = (
        torch.autograd.grad(each, clean, allow_unused=True, retain_graph=True) for each in said
    )
    assert of_image[0].abs().max() > 0 and of_image[1] is None
    assert of_maps[0].abs().max() > 0 and of_maps[1].abs().max() > 0

    def likeness(pair):
        return float(
            torch.nn.functional.cosine_similarity(*(each.detach().flatten() for each in pair), dim=0)
        )

    shared, _, _ = collect_inputs(
        BUILDERS["tiny_base"](Recipe.from_json(recipe | {"loss": recipe["loss"] | {"noise": "shared"}}))
    )
    assert abs(likeness(came)) < 0.3 and likeness(shared) > 0.7, "at these times noise is the greater part"


def test_pairs_that_are_to_tell_what_each_spot_shows_are_refused(pairs):
    recipe, _, _ = pairs
    with pytest.raises(
        ValueError, match="Expected align 0 in the recipe's loss for pairs, .* got 0.5. Set align to 0"
    ):
        BUILDERS["tiny_base"](Recipe.from_json(recipe | {"loss": {"align": 0.5}}))
    with pytest.raises(
        ValueError, match="Expected one of independent, shared as noise of the recipe's loss, got 'one'"
    ):
        BUILDERS["tiny_base"](Recipe.from_json(recipe | {"loss": recipe["loss"] | {"noise": "one"}}))
    with pytest.raises(ValueError, match="folder"):
        BUILDERS["tiny_base"](Recipe.from_json(recipe | {"data": recipe["data"] | {"folder": "data/world"}}))
    with pytest.raises(ValueError, match="Expected an autoencoder in diffusers' layout in nowhere"):
        BUILDERS["tiny_base"](Recipe.from_json(recipe | {"data": recipe["data"] | {"vae": "nowhere"}}))


def test_pairs_of_another_base_are_refused(pairs, tmp_path):
    recipe, _, _ = pairs
    latents = torch.zeros(2, 4, 4, 4)
    save_file({"latent": latents, "intrinsic_latent": latents.clone()}, tmp_path / "0.safetensors")
    with pytest.raises(ValueError, match=r"Expected latents of 8 channels, .* got \(4, 4, 4\)"):
        BUILDERS["tiny_base"](Recipe.from_json(recipe))


@pytest.mark.slow
def test_the_tiny_editors_recipes_follow_one_another(tmp_path):
    """Editor, editor, connector, and the four runs of the ladder: each goes on from those before."""
    from spatialweave.models.spatial_diff.data.encode import encode_triples
    from spatialweave.models.spatial_diff.data.encoders import TinyEncoders
    from spatialweave.models.spatial_diff.data.geometry import encode_geometry
    from spatialweave.models.spatial_diff.pipeline import Parts, SpatialDiffPipeline
    from spatialweave.models.trainers.spatial_diff import label_targets

    export_dataset(tmp_path / "moves", count=2, size=128, kind="moves")
    for name in ("moves_latents", "moves_latents_2"):
        encode_triples(tmp_path / "moves", tmp_path / name, TinyEncoders(), mirror=True, more=label_targets)
    encode_geometry(
        tmp_path / "moves", tmp_path / "moves_geometry", TinyEncoders(), mirror=True, pixels=True
    )

    def moved(value):
        return value.replace("runs/", f"{tmp_path}/").replace("data/", f"{tmp_path}/")

    stages = tiny_stages("spatial_diff")
    assert len(stages) == 7
    for stage in stages:
        whole = json.loads(next(path for path in RECIPES if path.stem == stage).read_text())
        for part in ("data", "model"):
            whole[part] = {k: moved(v) if isinstance(v, str) else v for k, v in whole[part].items()}
        short = {"steps": 1, "stop": 0, "warmup": 0, "batch_size": 2, "output": moved(whole["output"])}
        assert run_recipe(Recipe.from_json(whole | short), BUILDERS).ending == "finished"
    editor, ladder = Parts.of_folder(tmp_path / "tiny_editor_2"), tmp_path / "tiny_ladder" / "lds"
    parts = Parts(
        editor.editor, editor.text, ladder / "tiny_lora.safetensors", ladder / "tiny_connector.safetensors"
    )
    image = torch.rand(1, 128, 128, 3)
    pipeline = SpatialDiffPipeline.from_parts(parts)
    assert pipeline("move the ball to the left", image=image, steps=1).image.shape == (1, 128, 128, 3)
    sizes = [path.stat().st_size for path in (parts.editor, parts.text, parts.lora, parts.connector)]
    assert sum(sizes) + (ROOT / "models" / "vggt" / "tiny.safetensors").stat().st_size <= 16_000_000
