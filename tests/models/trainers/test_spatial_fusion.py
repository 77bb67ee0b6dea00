"""Training of depth adapters: resumable encoding, each base, one batch overfit, bit-exact resume."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from spatialweave.models.core.training.loop import run_recipe
from spatialweave.models.core.training.recipe import Recipe
from spatialweave.models.spatial_fusion.training import ADAPTER_FILE
from spatialweave.models.spatial_fusion.weights import load_adapter
from spatialweave.models.trainers import spatial_fusion
from spatialweave.models.trainers.builders import BUILDERS

diffusers = pytest.importorskip("diffusers", reason="the trainer's extra is not installed")
SIDE = 64


@pytest.fixture
def source(tmp_path):
    """A dataset folder of loose files: images by Pillow, depth as .npy in metres with holes, captions."""
    folder, rng = tmp_path / "source", np.random.default_rng(0)
    folder.mkdir()
    lines = []
    for i in range(5):
        cells = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(cells).resize((SIDE, SIDE), Image.BICUBIC).save(folder / f"{i}.png")
        depth = (rng.random((SIDE, SIDE)) * 70000 + 1).astype(np.float32)  # beyond half precision
        depth[:9] = np.inf
        np.save(folder / f"{i}.npy", depth)
        captions = ["a red ball", "a blue box"]
        lines.append({"image": f"{i}.png", "depth": f"{i}.npy", "caption": captions[0], "captions": captions})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture
def tiny_base(write_tiny, tmp_path, monkeypatch):
    """The tiny base's layout with random weights, in place of the file that ships."""
    folder = tmp_path / "base"
    folder.mkdir()
    write_tiny(folder, 5)
    path, load = folder / "base.safetensors", spatial_fusion.load_tiny
    monkeypatch.setattr(spatial_fusion, "load_tiny", lambda **more: load(path, **more))
    return path


def recipe(source, tmp_path, **changes):
    data = {"source": str(source), "folder": str(tmp_path / "encoded"), "shard_size": 2, "captions": 2}
    values = {
        "system": "depth_adapter", "steps": 4, "batch_size": 2, "lr": 1e-3, "data": data, "ema": 0.5,
        "output": str(tmp_path / "run"),
    }  # fmt: skip
    return Recipe.from_json({**values, **changes})


def test_shards_hold_the_latents_depth_and_captions_of_the_source(source, tiny_base, tmp_path):
    task = BUILDERS["depth_adapter"](recipe(source, tmp_path))
    sample = task.dataset[3]
    assert len(task.dataset) == 5 and set(sample) >= {"latent", "depth", "mask", "context"}
    depth = np.load(source / "3.npy")
    known = np.isfinite(depth)
    want = np.where(known, depth / np.median(depth[known]), 0)
    assert np.abs(sample["depth"].numpy() - want).max() < 2e-3 and np.array_equal(
        sample["mask"].numpy(), known
    )
    base = spatial_fusion.load_tiny()
    image = (
        torch.from_numpy(np.asarray(Image.open(source / "3.png"))).movedim(-1, 0)[None].float() / 127.5 - 1
    )
    with torch.no_grad():
        latent = base.autoencoder.module.encode(image).latent_dist.mode() * 1.7
        context = base.prompts.encode(["a red ball", "a blue box", ""])["context"]
    assert (sample["latent"] - latent[0]).abs().max() < 1e-2 * latent.abs().max()
    assert (sample["context"] - context[:2]).abs().max() < 1e-2
    empty = load_file(tmp_path / "encoded" / "empty_context.safetensors")["context"]
    assert (empty - context[2]).abs().max() < 1e-2


def test_encoding_goes_on_where_it_stopped_and_refuses_other_settings(source, tiny_base, tmp_path):
    BUILDERS["depth_adapter"](recipe(source, tmp_path))
    folder = tmp_path / "encoded"
    files = sorted(folder.glob("*.safetensors"))
    stamps = {file.name: file.stat().st_mtime_ns for file in files}
    BUILDERS["depth_adapter"](recipe(source, tmp_path))
    assert {file.name: file.stat().st_mtime_ns for file in files} == stamps
    before = (folder / "shard-00001.safetensors").read_bytes()
    (folder / "shard-00001.safetensors").unlink()
    BUILDERS["depth_adapter"](recipe(source, tmp_path))
    assert (folder / "shard-00001.safetensors").read_bytes() == before
    assert (folder / "shard-00000.safetensors").stat().st_mtime_ns == stamps["shard-00000.safetensors"]
    data = {"source": str(source), "folder": str(folder), "captions": 1}
    with pytest.raises(ValueError, match="captions 2, not 1"):
        BUILDERS["depth_adapter"](recipe(source, tmp_path, data=data))


def test_samples_without_a_known_pixel_are_left_out_by_name(source, tiny_base, tmp_path, caplog):
    np.save(source / "1.npy", np.full((SIDE, SIDE), np.inf, np.float32))
    task = BUILDERS["depth_adapter"](recipe(source, tmp_path))
    assert len(task.dataset) == 4 and "Sample 1" in caplog.text and "known depth pixel" in caplog.text


def test_a_run_starts_at_the_base_and_overfits_one_batch(source, tiny_base, tmp_path):
    task = BUILDERS["depth_adapter"](recipe(source, tmp_path, loss={"caption_dropout": 0.0}))
    batch = task.collate([task.dataset[i] for i in range(4)])
    draws = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    first, logs = task.loss(task.model, batch, draws())
    assert float(logs["addend"]) == 0
    optimizer, losses = torch.optim.Adam(task.model.parameters(), lr=3e-3), []
    for _ in range(60):
        loss, _ = task.loss(task.model, batch, draws())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == float(first.detach()) and losses[-1] < 0.9 * losses[0], (losses[0], losses[-1])
    assert not any(value.requires_grad for value in task.companions[0].parameters())


def test_a_run_resumes_bit_for_bit_and_ships_a_file_that_loads(source, tiny_base, tmp_path):
    whole = run_recipe(recipe(source, tmp_path, output=str(tmp_path / "whole")), BUILDERS)
    parts = {"output": str(tmp_path / "parts")}
    run_recipe(recipe(source, tmp_path, stop=2, **parts), BUILDERS)
    second = run_recipe(recipe(source, tmp_path, **parts), BUILDERS, resume=True)
    states = [load_file(each.checkpoint / "model.safetensors") for each in (whole, second)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    adapter = load_adapter(tmp_path / "parts" / ADAPTER_FILE)
    assert adapter.config.latent_channels == 8 and adapter.out.weight.any()
    assert load_file(tmp_path / "whole" / ADAPTER_FILE)["out.weight"].dtype == torch.float16
    more = recipe(source, tmp_path, model={"weights": str(tmp_path / "whole" / ADAPTER_FILE)})
    task = BUILDERS["depth_adapter"](more)
    assert torch.equal(task.model.out.weight, load_adapter(tmp_path / "whole" / ADAPTER_FILE).out.weight)
    other = {**more.model, "config": {"widths": [8, 8, 8]}}
    with pytest.raises(ValueError, match="Expected an adapter of the recipe's config"):
        BUILDERS["depth_adapter"](recipe(source, tmp_path, model=other))


def test_what_a_recipe_cannot_mean_is_a_sentence(source, tiny_base, tmp_path):
    for changes, words in (
        ({"preset": "sd9"}, "Expected preset of the recipe as one of tiny, sd15"),
        ({"preset": "sdxl"}, "Expected the folder of a diffusers pipeline"),
        ({"model": {"base": str(tmp_path)}}, 'none for "tiny"'),
        ({"preset": "flux", "model": {"base": str(tmp_path)}}, "Expected a FLUX.1 pipeline"),
        ({"loss": {"caption_dropout": 2.0}}, "caption_dropout from 0 to 1"),
        ({"data": {"folder": "x", "captions": 0}}, "captions, shard_size and batch of at least 1"),
        ({"model": {"config": {"code": "inverse"}}}, "code"),
    ):
        with pytest.raises(ValueError, match=words):
            BUILDERS["depth_adapter"](recipe(source, tmp_path, **changes))


def small_flux(folder):
    """A FLUX pipeline's network and autoencoder, random and small."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = diffusers.FluxTransformer2DModel(
            in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=32, num_attention_heads=2,
            joint_attention_dim=24, pooled_projection_dim=16, guidance_embeds=True,
            axes_dims_rope=(8, 12, 12),
        )  # fmt: skip
        for value in network.parameters():
            if value.ndim > 1:
                torch.nn.init.normal_(value, std=value[0].numel() ** -0.5)
    network.save_pretrained(folder / "transformer")
    return network


def write_encoded(folder, channels, side, **prompt):
    """An encoded dataset of random numbers."""
    from safetensors.torch import save_file

    folder.mkdir()
    draw = torch.Generator().manual_seed(1)
    tensors = {
        "latent": torch.randn(4, channels, side, side, generator=draw),
        "depth": torch.rand(4, side * 8, side * 8, generator=draw) + 0.5,
        **{name: torch.randn(4, 1, *shape, generator=draw) for name, shape in prompt.items()},
    }
    save_file({name: value.half() for name, value in tensors.items()}, folder / "shard-00000.safetensors")
    empty = {name: torch.zeros(shape).half() for name, shape in prompt.items()}
    save_file(empty, folder / "empty_context.safetensors")
    lines = [json.dumps({"shard": "shard-00000.safetensors", "row": i, "caption": "x"}) for i in range(4)]
    (folder / "manifest.jsonl").write_text("\n".join(lines))


def test_flux_trains_and_its_base_reads_what_the_pipeline_gives_it(tmp_path):
    """The velocity equals the network's own, called as diffusers' pipeline does."""
    network = small_flux(tmp_path / "flux")
    base = spatial_fusion.load_base_model(
        spatial_fusion.DepthAdapterSettings(base=str(tmp_path / "flux")), "flux"
    )
    x, level = torch.randn(2, 16, 4, 6), torch.tensor([0.3, 0.8])
    prompt = {"context": torch.randn(2, 5, 24), "pooled": torch.randn(2, 16)}
    pipeline = diffusers.FluxPipeline
    with torch.no_grad():
        want = network(
            hidden_states=pipeline._pack_latents(x, 2, 16, 4, 6), timestep=level, guidance=torch.ones(2),
            pooled_projections=prompt["pooled"], encoder_hidden_states=prompt["context"],
            txt_ids=torch.zeros(5, 3),
            img_ids=pipeline._prepare_latent_image_ids(2, 2, 3, torch.device("cpu"), torch.float32),
        ).sample  # fmt: skip
        want = pipeline._unpack_latents(want, 32, 48, 8)
        assert (base.predict(x, level, prompt) - want).abs().max() < 1e-5
    noise = torch.randn_like(x)
    clean = base.add_noise(x, noise, torch.zeros(2))
    assert torch.equal(clean, x) and torch.equal(base.target(x, noise, level), noise - x)
    write_encoded(tmp_path / "encoded", 16, 4, context=(5, 24), pooled=(16,))
    values = {
        "system": "depth_adapter", "preset": "flux", "steps": 2, "batch_size": 2, "lr": 1e-3,
        "data": {"folder": str(tmp_path / "encoded")}, "model": {"base": str(tmp_path / "flux")},
        "output": str(tmp_path / "run"),
    }  # fmt: skip
    assert run_recipe(Recipe.from_json(values), BUILDERS).ending == "finished"
    assert load_adapter(tmp_path / "run" / ADAPTER_FILE).config.latent_format == "Flux"


def small_unet(folder, family):
    """A UNet and scheduler in diffusers' layout, random and small."""
    more = {}
    if family == "sdxl":
        more = {
            "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 16,
        }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = diffusers.UNet2DConditionModel(
            sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
            cross_attention_dim=768 if family == "sd15" else 24, attention_head_dim=(2, 4), **more,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
    network.save_pretrained(folder / "unet")
    diffusers.DDPMScheduler(beta_schedule="scaled_linear").save_pretrained(folder / "scheduler")


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_bases_of_the_ddpm_family_train_and_ship_an_adapter_for_their_latents(tmp_path, family):
    small_unet(tmp_path / "base", family)
    shapes = {"context": (5, 768 if family == "sd15" else 24)}
    if family == "sdxl":
        shapes["pooled"] = (16,)
    write_encoded(tmp_path / "encoded", 4, 4, **shapes)
    values = {
        "system": "depth_adapter", "preset": family, "steps": 2, "batch_size": 2, "lr": 1e-3,
        "data": {"folder": str(tmp_path / "encoded")}, "model": {"base": str(tmp_path / "base")},
        "output": str(tmp_path / "run"),
    }  # fmt: skip
    assert run_recipe(Recipe.from_json(values), BUILDERS).ending == "finished"
    config = load_adapter(tmp_path / "run" / ADAPTER_FILE).config
    assert (config.latent_format, config.base) == ("SDXL" if family == "sdxl" else "SD15", family)
    other = "sdxl" if family != "sdxl" else "sd21"
    with pytest.raises(ValueError, match="Expected a base"):
        BUILDERS["depth_adapter"](Recipe.from_json({**values, "preset": other}))
