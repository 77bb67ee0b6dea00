"""Wrong inputs of intrinsic co-generation: each is refused in one sentence that says what to do, and leaves nothing in the model."""

import pytest

pytestmark = pytest.mark.comfyui
FILE = "inside_intrinsic_errors.py"

REFUSALS = {
    "PixArt-alpha's LoRA on Sigma": ["pixart.safetensors", "family pixart,", "a PixArtSigma arrived, of the family pixart_sigma"],
    "SD2.1's LoRA on SD1.5": ["sd21.safetensors", "family sd21", "a SD15 arrived, of the family sd15", "load such a base"],
    "SD1.5's LoRA on SD2.1": ["sd15.safetensors", "family sd15", "a SD20 arrived, of the family sd21", "load such a base"],
    "SDXL's refiner": ["A SDXLRefiner arrived", "a refiner", "load SD1.5, SD2.1, SDXL or PixArt"],
    "unCLIP": ["A SD21UnclipL arrived", "reads a picture's embedding", "load SD1.5, SD2.1, SDXL or PixArt"],
    "another base": ["Flux model arrived", "SD1.5, SD2.1, SDXL or PixArt"],
    "an editing base": ["SD15_instructpix2pix", "reads a picture beside its latent", "load the plain base"],
    "another base's LoRA": ["wide.safetensors", "another base"],
    "SDXL's LoRA on SD2.1": ["xl.safetensors", "SD20"],
    "unknown layer": ["names layer 10", "1 to 9"],
    "plain latent": ["A plain latent (1, 4, 8, 8) arrived", "Join Intrinsic Latent"],
    "two shapes": ["(1, 1, 64, 64)", "of one shape"],
    "plain model": ["A plain SD20 model arrived", "Intrinsic Co-Generation"],
    "batches": ["2 images and 3 sets of maps"],
    "sizes": ["8 x 8 and 8 x 6"],
    "channels": ["(1, 16, 8, 8)", "(batch, 4, h, w)"],
    "plain to split": ["(1, 4, 8, 8)", "no image with its maps"],
    "attention taken": ["Self-attention middle 0 0", "already replaced", "inside_intrinsic"],
    "bypass": ["bypass mode", "share_image_loras"],
    "twice": ["twice"],
    "dpm_adaptive": ["The sampler dpm_adaptive", "choose euler"],
    "lcm_upscale": ["The sampler lcm_upscale", "choose euler"],
    "ar_video": ["The sampler ar_video", "choose euler"],
    "a LoRA that names another base": ["sdxl.safetensors", "family sdxl", "of the family sd21", "load such a base"],
    "PixArt's LoRA on SD2.1": ["intrinsic_pixart.safetensors", "of SD20", "trained on this base"],
    "SD2.1's LoRA on PixArt": ["intrinsic_sd21.safetensors", "of PixArtAlpha", "trained on this base"],
    "an ordinary LoRA": ["style.safetensors", "no self-attention projection", "Load LoRA instead"],
    "no LoRA": ["vae.safetensors", "decoder.conv_in.weight", "choose an intrinsic LoRA"],
    "an inpainting base": ["An inpainting or editing SD20", "load the plain base"],
    "a DoRA": ["A DoRA changes", "use an ordinary LoRA", "share_image_loras"],
    "a LoRA of a norm": ["norm1.weight", "LayerNorm", "take that LoRA out", "share_image_loras"],
    "hooks": ["hooks", "Load LoRA instead", "share_image_loras"],
    "attention taken in PixArt": ["PixArt's attention 2", "take it out"],
    "rows one by one": ["1 rows arrived", "regroups the batch", "take it out"],
    "rows left out": ["1 latents came to a step, wanted 2", "regroups"],
    "several GPUs": ["Several GPUs", "take the multi-GPU node out"],
    "channels of a pair": ["(1, 16, 8, 8) and (1, 16, 8, 8)", "4 channels", "Join Intrinsic Latent"],
    "a plain model samples the pair": ["My sampler (node 8)", "whose model is plain", "Intrinsic Co-Generation"],
    "a plain guider samples the pair": ["My sampler (node 8)", "whose guider is plain", "Intrinsic Co-Generation"],
    "a pair to join, as image": ["joint latent arrived at image", "Split Intrinsic Latent"],
    "a pair to join, as maps": ["joint latent arrived at maps", "Split Intrinsic Latent"],
    "layers that are no numbers": ["'middle'", '"3-7"'],
    "a block that is not there": ["layer 16", "read as blocks", "0 to 15"],
    "a stage without attention": ["no layer with self-attention", "choose among these"],
    "a curve that is none": ["'900 is 1'", "1000: 0"],
    "no steps to plot": ["no steps", "scheduler node"],
}


@pytest.mark.parametrize("case", REFUSALS)
def test_wrong_input_is_refused_in_one_sentence_and_leaves_nothing(inside, case):
    result = inside(FILE, "refused", case=case)
    sentence = result["sentence"]
    assert sentence and sentence.endswith(".") and sentence.count(". ") == 0 and "\n" not in sentence
    assert not [part for part in REFUSALS[case] if part not in sentence], sentence
    assert result["left"] == 0


def test_a_graph_as_it_should_be_is_not_refused(inside):
    assert inside(FILE, "sound_graphs") == [1, 4, 8, 8]


def test_core_takes_a_pixart_that_reads_no_size_for_sigma(inside):
    """So the workflow names alpha's base of 1024 pixels: that of 512 would get SDXL's latents. When this fails, its note can go."""
    assert inside(FILE, "pixart_by_its_inputs") == [["PixArtAlpha", 0.18215], ["PixArtSigma", 0.13025]]
