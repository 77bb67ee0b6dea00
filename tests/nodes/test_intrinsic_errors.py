"""Wrong inputs of intrinsic co-generation: each is refused with what was expected, what came and what to do,
and leaves nothing in the model.
"""

import re

import pytest

pytestmark = pytest.mark.comfyui
FILE = "inside_intrinsic_errors.py"

REFUSALS = {
    "PixArt-alpha's LoRA on Sigma": [
        "trained on pixart_sigma, the base of PixArtSigma", "got pixart.safetensors, trained on pixart",
    ],
    "SD2.1's LoRA on SD1.5": [
        "trained on sd15, the base of SD15", "got sd21.safetensors, trained on sd21", "Load such a base",
    ],
    "SD1.5's LoRA on SD2.1": [
        "trained on sd21, the base of SD20", "got sd15.safetensors, trained on sd15", "Load such a base",
    ],
    "SDXL's refiner": [
        "Expected SD1.5, SD2.1, SDXL or PixArt", "got SDXLRefiner, a refiner", "Load the base model itself",
    ],
    "unCLIP": [
        "Expected SD1.5, SD2.1, SDXL or PixArt", "got SD21UnclipL", "image-conditioned model",
        "Load the base model itself",
    ],
    "another base": ["Expected a SD1.5, SD2.1, SDXL or PixArt model", "got Flux"],
    "an editing base": ["inpainting or editing SD15_instructpix2pix", "Load the base model itself"],
    "another base's LoRA": ["wide.safetensors", "Load the base that it was trained on"],
    "SDXL's LoRA on SD2.1": ["xl.safetensors", "SD20"],
    "unknown layer": ["got layer 10", "from 1 to 9"],
    "plain latent": ["got a plain one (1, 4, 8, 8)", "Join Intrinsic Latent"],
    "two shapes": ["(1, 1, 64, 64)", "of one shape"],
    "plain model": ["got a SD20 model without it", "Intrinsic Co-Generation"],
    "batches": ["Expected as many images as sets of maps", "got 2 and 3"],
    "sizes": ["got 8 x 8 and 8 x 6"],
    "channels": ["(1, 16, 8, 8)", "(b, 4, h, w)"],
    "plain to split": ["(1, 4, 8, 8)", "Expected a joint latent of an image and its maps"],
    "attention taken": ["self-attention in middle 0 0", "got a replacement", "inside_intrinsic"],
    "bypass": ["bypass mode", "share_image_loras"],
    "twice": ["Expected one Intrinsic Co-Generation", "got two"],
    "dpm_adaptive": ["got dpm_adaptive, which", "Choose euler"],
    "lcm_upscale": ["got lcm_upscale, which", "Choose euler"],
    "ar_video": ["got ar_video, which", "Choose euler"],
    "a LoRA that names another base": [
        "trained on sd21", "got sdxl.safetensors, trained on sdxl", "Load such a base",
    ],
    "PixArt's LoRA on SD2.1": ["intrinsic_pixart.safetensors", "projections of SD20", "trained on this base"],
    "SD2.1's LoRA on PixArt": [
        "intrinsic_sd21.safetensors", "projections of PixArtAlpha", "trained on this base",
    ],
    "an ordinary LoRA": ["style.safetensors", "Expected self-attention projections", "Load LoRA instead"],
    "no LoRA": ["vae.safetensors", "decoder.conv_in.weight", "Choose an intrinsic LoRA"],
    "an inpainting base": ["inpainting or editing SD20", "Load the base model itself"],
    "a DoRA": ["got a DoRA on", "Use an ordinary LoRA", "share_image_loras"],
    "a LoRA of a norm": ["norm1.weight", "LayerNorm", "Remove that LoRA", "share_image_loras"],
    "hooks": ["hooks", "Load LoRA instead", "share_image_loras"],
    "attention taken in PixArt": ["block 2 of PixArt", "Remove the node"],
    "rows one by one": ["got 1", "regroups the batch", "Remove it"],
    "rows left out": ["Expected 2 latents in a step, got 1", "regroups"],
    "several GPUs": ["got one split over several", "Remove the multi-GPU node"],
    "channels of a pair": ["(1, 16, 8, 8) and (1, 16, 8, 8)", "4 channels", "Join Intrinsic Latent"],
    "a plain model samples the pair": ["at model of My sampler (node 8)", "Intrinsic Co-Generation"],
    "a plain guider samples the pair": ["at guider of My sampler (node 8)", "Intrinsic Co-Generation"],
    "a pair to join, as image": ["Expected a plain latent at image_latent", "Split Intrinsic Latent"],
    "a pair to join, as maps": ["Expected a plain latent at maps_latent", "Split Intrinsic Latent"],
    "layers that are no numbers": ["'middle'", '"3-7"'],
    "a block that is not there": ["got layer 16", "blocks of this model", "from 0 to 15"],
    "a stage without attention": ["no layer with self-attention", "Choose among these"],
    "a curve that is none": ["'900 is 1'", "1000: 0"],
    "no steps to plot": ["Expected SIGMAS of one step or more", "scheduler node"],
}


@pytest.mark.parametrize("case", REFUSALS)
def test_wrong_input_is_refused_and_leaves_nothing(inside, case):
    result = inside(FILE, "refused", case=case)
    sentence = result["sentence"]
    assert sentence and re.fullmatch(r"Expected [^\n]+, got [^\n]+\. [A-Z][^\n]+\.", sentence), sentence
    assert not [part for part in REFUSALS[case] if part not in sentence], sentence
    assert result["left"] == 0


def test_a_graph_as_it_should_be_is_not_refused(inside):
    assert inside(FILE, "sound_graphs") == [1, 4, 8, 8]


def test_core_takes_a_pixart_that_reads_no_size_for_sigma(inside):
    """So the workflow names alpha's base of 1024 pixels: that of 512 would get SDXL's latents.
    When this fails, its note can go.
    """
    assert inside(FILE, "pixart_by_its_inputs") == [["PixArtAlpha", 0.18215], ["PixArtSigma", 0.13025]]
