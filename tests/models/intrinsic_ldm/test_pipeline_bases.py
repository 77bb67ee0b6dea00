"""Co-generation on SD2.1, SDXL and PixArt folders of diffusers, small and random:
the base's own image at weight 0, LoRA and files.
"""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file

from spatialweave.models.core.weights.files import WeightsError
from spatialweave.models.intrinsic_ldm.config import PRESETS, Preset, VaeConfig, find_preset
from spatialweave.models.intrinsic_ldm.network import projections
from spatialweave.models.intrinsic_ldm.schedules import OFF, Constant, Gaussian
from spatialweave.models.intrinsic_ldm.weights import save_intrinsic_vae

diffusers = pytest.importorskip("diffusers", reason="the trainer's extra is not installed")
pytest.importorskip("transformers", reason="ComfyUI's text encoders are not installed")
from spatialweave.models.intrinsic_ldm.pipeline import IntrinsicPipeline, choose_files  # noqa: E402

FAMILIES = ("sd21", "sdxl", "pixart")
SMALL = VaeConfig(width=32, multiples=(1, 1, 1, 2), blocks=1)
HEIGHT, WIDTH = 32, 48
PROMPTS = ["a red chair", "two cats"]


def write_lora(path, network, component, **metadata):
    generator, tensors = torch.Generator().manual_seed(4), {}
    for name, projection in projections(network).items():
        for end, shape in (("A", (2, projection.inputs)), ("B", (projection.outputs, 2))):
            tensors[f"{component}.{name}.lora_{end}.weight"] = torch.randn(*shape, generator=generator)
    save_file(tensors, path, metadata)


@pytest.fixture
def files(write_pipeline, tmp_path):
    """files(family) -> a base's folder, an intrinsic VAE and a LoRA for it, all random."""

    def write(family, **metadata):
        folder, name = write_pipeline(family), "transformer" if family == "pixart" else "unet"
        kind = diffusers.PixArtTransformer2DModel if family == "pixart" else diffusers.UNet2DConditionModel
        write_lora(tmp_path / "lora.safetensors", kind.from_pretrained(folder / name), name, **metadata)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(6)
            vae = diffusers.AutoencoderKL(**SMALL.for_diffusers())
        save_intrinsic_vae(tmp_path / "vae.safetensors", vae.state_dict(), SMALL, latent_scale=3.0)
        return {"base": folder, "vae": tmp_path / "vae.safetensors", "lora": tmp_path / "lora.safetensors"}

    return write


def sample_plainly(folder, family, prompt, noise, steps, guidance):
    """The image of diffusers' own pipeline, nothing of ours in it: (1, h, w, 3)."""
    base = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    base.set_progress_bar_config(disable=True)
    base.scheduler = diffusers.DDIMScheduler.from_pretrained(folder, subfolder="scheduler", clip_sample=False)
    more = {"clean_caption": False, "use_resolution_binning": False} if family == "pixart" else {}
    image = base(
        prompt, negative_prompt="", latents=noise, num_inference_steps=steps, guidance_scale=guidance,
        height=HEIGHT, width=WIDTH,
        output_type="pt", **more,
    ).images  # fmt: skip
    return image.movedim(1, -1)


@pytest.mark.parametrize("family", FAMILIES)
def test_with_weight_zero_the_image_is_that_of_diffusers_own_pipeline(files, family):
    weights = files(family)
    pipeline = IntrinsicPipeline.from_preset(family, weights=weights)
    asked = {"height": HEIGHT, "width": WIDTH, "steps": 3, "guidance": 3.0, "seed": 5}
    for index, prompt in enumerate(PROMPTS):
        noise = torch.randn(4, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(5 + index))[
            None
        ]
        want = sample_plainly(weights["base"], family, prompt, noise, 3, 3.0)
        alone, beside = pipeline(PROMPTS, maps=False, **asked), pipeline(PROMPTS, schedule=OFF, **asked)
        assert (alone.image[index] - want[0]).abs().max() < 1e-4 and torch.equal(alone.image, beside.image)
    assert want.std() > 0.01 and alone.maps is None and beside.maps.shape == (2, 8, HEIGHT, WIDTH)
    coupled = pipeline(PROMPTS, schedule=Constant(1.0), **asked)
    assert (coupled.image - alone.image).abs().max() > 0.01, "at weight 1 the image sees its maps"


@pytest.mark.parametrize("family", FAMILIES)
def test_five_lines_co_generate_on_a_folder(files, family):
    pipeline = IntrinsicPipeline.from_preset(family, weights=files(family))
    seen = []
    result = pipeline(
        PROMPTS[0], height=32, width=32, steps=2, seed=3, on_step=lambda *step: seen.append(step)
    )
    assert result.image.shape == (1, 32, 32, 3) and result.image.min() >= 0 and result.image.max() <= 1
    assert result.seed == 3 and result.seconds > 0 and result.notes == ()
    maps = result.decode_maps(near=1.0, far=9.0)
    assert maps.view.depth.shape == maps.ids.shape == (1, 32, 32) and maps.view.units == "relative"
    assert (
        torch.equal(maps.view.image, result.image)
        and maps.normals.shape == maps.line.shape == (1, 32, 32, 3)
    )
    assert [(step, steps) for step, steps, _ in seen] == [(1, 2), (2, 2)]
    assert all(set(latents) == {"image", "intrinsic"} for *_, latents in seen)
    again = pipeline(PROMPTS[0], schedule=Gaussian(), height=32, width=32, steps=2, seed=3)
    assert torch.equal(again.image, result.image) and torch.equal(again.maps, result.maps)
    with pytest.raises(ValueError, match="Expected a result with maps"):
        pipeline(PROMPTS[0], maps=False, height=32, width=32, steps=1).decode_maps()
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.seed = 4


def test_the_lora_acts_on_the_maps_and_on_the_image_through_them_alone(files, tmp_path):
    weights, asked = files("sd21"), {"height": 32, "width": 32, "steps": 2}
    write_lora_of_zeros = {"lora": tmp_path / "zero.safetensors"}
    network = diffusers.UNet2DConditionModel.from_pretrained(weights["base"] / "unet")
    nothing = {}
    for name, projection in projections(network).items():
        nothing |= {f"unet.{name}.lora_A.weight": torch.zeros(1, projection.inputs),
                    f"unet.{name}.lora_B.weight": torch.zeros(projection.outputs, 1)}  # fmt: skip
    save_file(nothing, write_lora_of_zeros["lora"])
    ours, without = (
        IntrinsicPipeline.from_preset("sd21", weights=weights | more) for more in ({}, write_lora_of_zeros)
    )
    one, other = (each(PROMPTS[0], schedule=OFF, **asked) for each in (ours, without))
    assert torch.equal(one.image, other.image) and not torch.equal(one.maps, other.maps)
    one, other = (each(PROMPTS[0], schedule=Constant(1.0), **asked) for each in (ours, without))
    assert not torch.equal(one.image, other.image)


def test_the_networks_compute_in_the_precision_asked_for(files):
    pipeline = IntrinsicPipeline.from_preset("sdxl", weights=files("sdxl"), dtype=torch.bfloat16)
    assert pipeline.backbone.network.dtype == torch.bfloat16 == pipeline.prompts.text.text_encoder.dtype
    assert pipeline.image_vae.dtype == pipeline.maps_vae.dtype == torch.float32
    result = pipeline(PROMPTS[0], height=32, width=32, steps=1)
    assert result.image.dtype == result.maps.dtype == torch.float32 and result.image.isfinite().all()


def test_files_that_do_not_belong_together_are_refused(files, tmp_path):
    weights = files("sd21", base="sdxl")
    with pytest.raises(
        ValueError, match="Expected a LoRA trained on sd21, got .*lora.safetensors, trained on sdxl"
    ):
        IntrinsicPipeline.from_preset("sd21", weights=weights)
    with pytest.raises(
        ValueError, match="Expected a base of the family pixart in .*, as the preset says, got sd21"
    ):
        IntrinsicPipeline.from_preset("pixart", weights=weights)
    with pytest.raises(WeightsError, match="Expected an intrinsic VAE .* got a LoRA"):
        IntrinsicPipeline.from_preset("sd21", weights=weights | {"vae": weights["lora"]})
    write_lora(
        weights["lora"],
        diffusers.UNet2DConditionModel.from_pretrained(weights["base"] / "unet"),
        "unet",
        base="sd21",
    )
    wide = VaeConfig(width=32, multiples=(1, 1, 1, 2), blocks=1, latent_channels=8)
    save_intrinsic_vae(
        tmp_path / "wide.safetensors",
        diffusers.AutoencoderKL(**wide.for_diffusers()).state_dict(),
        wide,
        latent_scale=1.0,
    )
    with pytest.raises(
        ValueError,
        match="Expected an intrinsic VAE with latents of 4 channels at 1/8 .*, got 8 channels at 1/8",
    ):
        IntrinsicPipeline.from_preset("sd21", weights=weights | {"vae": tmp_path / "wide.safetensors"})
    scheduler = weights["base"] / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"prediction_type": "sample"}))
    with pytest.raises(ValueError, match="predicts epsilon or v_prediction in .*, got 'sample'"):
        IntrinsicPipeline.from_preset("sd21", weights=weights)


def test_weights_left_out_or_misnamed_are_named():
    with pytest.raises(
        ValueError, match="Expected weights with base, vae, lora for the preset sdxl, got none for vae, lora"
    ):
        IntrinsicPipeline.from_preset("sdxl", weights={"base": "x"})
    with pytest.raises(
        ValueError, match="Expected weights as a mapping with base, vae, lora, got {'unet': 'x'}"
    ):
        IntrinsicPipeline.from_preset("tiny", weights={"unet": "x"})
    with pytest.raises(ValueError, match="Expected a preset of tiny, sd21, sdxl, pixart, got 'sd3'"):
        IntrinsicPipeline.from_preset("sd3")
    assert choose_files("tiny", {"lora": "mine"})["lora"].name == "mine"


def test_presets_are_checked_and_cannot_be_changed():
    assert (
        find_preset("sd21") is PRESETS["sd21"] and dataclasses.replace(PRESETS["sd21"], steps=50).steps == 50
    )
    with pytest.raises(TypeError):
        PRESETS["mine"] = PRESETS["sd21"]
    with pytest.raises(ValueError, match="Expected a family of sd21, sdxl, pixart, got 'flux'"):
        Preset("flux", 1024, 25, 4.0)
    for fault in ({"size": 0}, {"steps": 0}, {"guidance": -1.0}, {"guidance": float("nan")}):
        with pytest.raises(ValueError, match="Expected size and steps of at least 1"):
            dataclasses.replace(PRESETS["tiny"], **fault)
