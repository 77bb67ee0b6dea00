"""The tiny system from files of random weights: sampling, pipeline, LoRA, connector, and what is refused."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from spatialweave.models.core.weights.files import WeightsError
from spatialweave.models.core.weights.header import read_header
from spatialweave.models.spatial_diff import sampling
from spatialweave.models.spatial_diff.config import find_preset
from spatialweave.models.spatial_diff.editor_files import (
    load_editor,
    load_text,
    new_text_encoder,
    read_editor_config,
    save_editor,
    save_text,
)
from spatialweave.models.spatial_diff.flux import PRESETS, Flux, FluxConfig
from spatialweave.models.spatial_diff.lora import LowRankLayers, merge_lora, save_lora
from spatialweave.models.spatial_diff.network import GeometryConnector
from spatialweave.models.spatial_diff.pipeline import Parts, SpatialDiffPipeline
from spatialweave.models.spatial_diff.weights import save_connector

TINY = PRESETS["tiny"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with every file of the tiny system, of random weights."""
    path = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    network = Flux(TINY)
    save_editor(path / "tiny_editor.safetensors", network.state_dict(), TINY)
    save_text(path / "tiny_text.safetensors", new_text_encoder(TINY.context_in_dim).state_dict())
    lora = LowRankLayers(network, 2, 4.0, torch.Generator().manual_seed(1))
    for layer in lora.layers.values():
        torch.nn.init.normal_(layer.up, std=0.1)
    save_lora(path / "tiny_lora.safetensors", lora.state_dict(), rank=2, alpha=4.0, dtype=torch.float32)
    save_connector(path / "tiny_connector.safetensors", GeometryConnector(find_preset("tiny")))
    return path


def make_image(size=(32, 48)):
    return np.random.default_rng(3).random((*size, 3), dtype=np.float32)


def edit(pipeline, **options):
    settings = {"image": make_image(), "steps": 2, "seed": 4} | options
    return pipeline(settings.pop("text", "move the red ball to the left"), **settings)


def test_sampling_follows_a_known_velocity_to_its_end():
    """With the exact velocity of straight lines, any number of steps ends on the clean data."""
    clean = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    noise = sampling.draw_latent_noise(5, (2, 3, 4, 4))
    seen = []
    out = sampling.sample(
        lambda x, t: noise - clean, noise, sampling.make_times(7, mu=0.5),
        on_step=lambda step, steps, latents: seen.append((step, steps, latents["image"])),
    )  # fmt: skip
    torch.testing.assert_close(out, clean)
    assert [step[:2] for step in seen] == [(i, 7) for i in range(1, 8)]
    torch.testing.assert_close(seen[0][2], clean)


def test_times_are_shifted_towards_the_noise():
    times = sampling.make_times(4, mu=math.log(3))
    torch.testing.assert_close(times, torch.tensor([1, 3 * 0.75 / 2.5, 0.75, 0.5, 0]))
    with pytest.raises(ValueError, match="at least 1"):
        sampling.make_times(0, mu=0.0)


def test_guidance_extrapolates_and_one_runs_the_prompted_network_alone():
    def never(x, t):
        raise AssertionError("the network without a prompt ran")

    one = sampling.guide_velocity(lambda x, t: x, never, 1)
    assert one(torch.ones(1), None) == 1
    assert sampling.guide_velocity(lambda x, t: 3 * x, lambda x, t: x, 2.0)(torch.ones(1), None) == 5


def test_the_pipeline_keeps_size_and_seed(folder):
    pipeline = SpatialDiffPipeline.from_preset("tiny", weights=folder)
    first, again, other = (edit(pipeline, image=make_image((33, 47)), seed=s) for s in (4, 4, 5))
    assert first.image.shape == (1, 33, 47, 3) and first.latent.shape == (1, 32, 3, 3)
    assert torch.equal(first.image, again.image) and not torch.equal(first.image, other.image)
    assert "padded to 48 x 48" in first.notes[0]


def test_an_object_of_a_color_that_the_image_lacks_is_a_note(folder):
    """Only a note: a script may know better."""
    image = np.full((32, 32, 3), 0.6, dtype=np.float32)
    image[8:20, 8:20] = (0.14, 0.31, 0.88)
    pipeline = SpatialDiffPipeline.from_preset("tiny", weights=folder)
    said = edit(pipeline, image=image, text="move the red ball behind the blue box", steps=1).notes
    assert said == (
        "Expected the red ball in the image, got an image whose solids are blue. Name an object that is "
        "there.",
    )
    assert edit(pipeline, image=image, text="move the blue box to the left", steps=1).notes == ()


def test_a_batch_is_what_its_images_are_alone(folder):
    pipeline = SpatialDiffPipeline.from_preset("tiny", weights=folder)
    texts, images = (
        ["move the red ball to the left", "put the box behind the cone"],
        [make_image(), 1 - make_image()],
    )
    both = pipeline(texts, image=np.stack(images), steps=1, seed=4)
    noise = sampling.draw_latent_noise(4, (2, 32, 2, 3))
    alone = pipeline(texts[0], image=images[0], steps=1, seed=4)
    assert torch.equal(sampling.draw_latent_noise(4, (1, 32, 2, 3))[0], noise[0])
    torch.testing.assert_close(both.latent[:1], alone.latent, rtol=0, atol=1e-4)


def test_lora_and_connector_each_change_the_image(folder):
    parts = Parts.of_folder(folder)
    results = [
        edit(SpatialDiffPipeline.from_parts(each)).image
        for each in (Parts(parts.editor, parts.text), Parts(*(parts.editor, parts.text, parts.lora)), parts)
    ]
    assert (results[0] - results[1]).abs().max() > 1e-4 and (results[1] - results[2]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"text": "move the red dog to the left"}, "'dog'"),
        (
            {"text": ["move the ball to the left"] * 3, "image": np.stack([make_image()] * 2)},
            "3 for 2 images",
        ),
        ({"steps": 0}, "at least 1"),
        ({"image": make_image((8, 8))}, "at least 16 pixels"),
    ],
)
def test_the_pipeline_refuses_with_a_sentence(folder, options, words):
    with pytest.raises(ValueError, match=words):
        edit(SpatialDiffPipeline.from_preset("tiny", weights=folder), **options)


def test_presets_without_weights_and_folders_without_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="preset tiny"):
        SpatialDiffPipeline.from_preset("kontext")
    with pytest.raises(ValueError, match=r"Expected tiny_editor.safetensors"):
        SpatialDiffPipeline.from_preset("tiny", weights=tmp_path)


def test_a_released_file_is_read_by_its_shapes(tmp_path):
    """Without metadata, under core's prefix and newer norm names: heads, axes and patches are FLUX.1's."""
    config = FluxConfig(
        context_in_dim=24, vec_in_dim=12, hidden_size=128, num_heads=1, depth=1, depth_single_blocks=2
    )
    torch.manual_seed(0)
    network = Flux(config)
    renamed = {
        "model.diffusion_model." + name.replace("_norm.scale", "_norm.weight"): value
        for name, value in network.state_dict().items()
    }
    save_file(renamed, tmp_path / "flux.safetensors")
    assert read_editor_config(read_header(tmp_path / "flux.safetensors"), "flux")[0] == config
    loaded = load_editor(tmp_path / "flux.safetensors")
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_wrong_files_are_named(folder, tmp_path):
    with pytest.raises(WeightsError, match="FLUX.1 editor, got"):
        load_editor(folder / "tiny_text.safetensors")
    with pytest.raises(WeightsError, match="text encoder of the tiny editor, got"):
        load_text(folder / "tiny_editor.safetensors", 128)
    with pytest.raises(WeightsError, match="lora_A"):
        merge_lora(Flux(TINY), folder / "tiny_editor.safetensors")
    state = load_file(folder / "tiny_lora.safetensors")
    save_file(
        {name.replace("blocks.0", "blocks.9"): value for name, value in state.items()}, tmp_path / "other"
    )
    with pytest.raises(WeightsError, match="LoRA of this network"):
        merge_lora(Flux(TINY), tmp_path / "other")
