"""The intrinsic VAE as a core VAE, and the nodes that encode and decode with it, on small random autoencoders of core's own class."""

import pytest

pytestmark = pytest.mark.comfyui
FILE = "inside_intrinsic_maps.py"


@pytest.fixture(scope="module")
def maps(inside):
    inside("inside_intrinsic.py", "lora")  # the graph borrows its models
    return lambda function, **kwargs: inside(FILE, function, **kwargs)


def test_the_loader_gives_a_core_vae(maps):
    result = maps("hosted")
    assert result["vae"] and result["patcher"] and result["size"] and result["names"] and result["again"] and not result["lacks"]
    assert result["changed"] == ["post_quant_conv.weight", "quant_conv.bias", "quant_conv.weight"], "the scale is in them, in no other"
    assert result["stride"] == [4, 4] and result["channels"] == 4 and result["dtype"] == "torch.float32"


def test_nodes_do_what_the_network_does_in_the_bases_units(maps):
    result = maps("against_the_network")
    assert result["latent"] < 1e-5 and result["maps"] < 1e-3
    assert result["shapes"][:3] == [[2, 4, 8, 12], [2, 32, 48], [2, 32, 48, 3]] and result["shapes"][5] == [2, 32, 48, 3]
    assert result["units"] == "relative" and result["normals"] == [2, 32, 48, 3]
    assert result["texts"][0] == "coded: depth, normals, segmentation, line; missing: none; masks: 2"
    assert "relative units" in result["texts"][1] and "scale and shift" in result["texts"][1] and "ids of the masks" in result["texts"][1]


@pytest.mark.parametrize("multiples", [[1, 2], [1, 2, 2], [1, 1, 2, 4]])
def test_diffusers_with_the_same_weights_agrees(maps, multiples):
    result = maps("agreement_with_diffusers", settings={"width": 32, "multiples": multiples, "blocks": 2, "latent_channels": 4})
    if result is None:
        pytest.skip("diffusers is not installed, so its autoencoder was NOT compared: pip install -e .[train]")
    assert result["encoded"] < 1e-4 and result["decoded"] < 1e-4
    assert result["size"] > 0.05 and result["inside"] > 0.3


@pytest.mark.parametrize("naming", ["core", "diffusers"])
def test_widened_weights_are_the_bases_picture_in_every_map(maps, naming):
    result = maps("widened", naming=naming)
    assert max(result["colours"], result["grey"], result["encoded"]) < 1e-4 and min(result["spread"]) > 0.05


def test_tiles_and_what_core_does_when_memory_runs_out(maps):
    result = maps("tiles")
    assert result["encoded"] < 1e-5 and result["decoded"] < 1e-5, "one tile is the whole picture"
    assert result["small"] == [[1, 128, 192], [1, 128, 192, 3]] and result["finite"]
    assert result["fallen back"] < 1e-5 and result["calls"] == 2


@pytest.mark.parametrize("naming, dtype, metadata", [
    ("core", "float32", False), ("diffusers", "float32", True), ("diffusers", "float32", False), ("core", "float16", True),
    ("diffusers", "bfloat16", False),
])  # fmt: skip
def test_files_of_any_naming_and_precision_load(maps, naming, dtype, metadata):
    result = maps("any_file", naming=naming, dtype=dtype, metadata=metadata)
    assert result["stride"] == 8 and result["gap"] < {"float32": 1e-5, "float16": 0.02, "bfloat16": 0.2}[dtype]


def test_a_file_of_cores_save_vae_keeps_the_units(maps):
    assert maps("saved_by_core") < 1e-5


def test_odd_sizes_are_cropped_as_core_crops_the_picture(maps):
    assert maps("odd_size") == {"shape": [1, 4, 9, 6], "gap": 0.0}


def test_a_whole_graph(maps):
    result = maps("graph")
    assert result["straight"] == 0, "a joint latent is taken apart on the way"
    assert result["shapes"] == [[1, 64, 64], *[[1, 64, 64, 3]] * 4] and result["control"] == [1, 64, 64, 3]
    assert result["held"] < 1e-5 < 1e-3 < result["guided"], "maps under a noise mask stay, and the image reads them"
    assert result["masks"] == [3, [64, 64]] and result["unit"] == [0.0, 1.0]


def test_masks_that_find_no_colour_are_counted(maps):
    assert maps("noted", count=70).startswith("coded: segmentation; missing: depth, normals, line; masks: 70, of which 7 found no colour")


REFUSALS = {
    "no map": ["No map arrived", "depth, normals, segmentation, line"],
    "sizes": ["depth 32 x 48", "line 32 x 40"],
    "batches": ["2 of depth", "3 of line"],
    "tiny maps": ["2 x 8", "at least 4 pixels"],
    "no depth": ["no valid pixel"],
    "picture's VAE to encode": ["VAE of 3 channels", "Load Intrinsic VAE"],
    "picture's VAE to decode": ["VAE of 3 channels", "Load Intrinsic VAE"],
    "tile": ["tile size of 32", "at least 64"],
    "latent of another base": ["(1, 16, 8, 8)", "4, h, w", "Split Intrinsic Latent"],
    "three streams": ["no image with its maps"],
    "index": ["Picture 1", "batch of 1"],
    "ends": ["5 (near) and 2 (far)"],
    "picture of another size": ["The image (1, 8, 8, 3)", "(1, 32, 32)"],
    "core's VAE Encode": ["encodes maps and no picture", "Encode Intrinsics"],
    "core's VAE Decode": ["decodes maps and no picture", "Decode Intrinsics"],
    "core's tiled VAE Encode": ["Encode Intrinsics"],
    "core's tiled VAE Decode": ["Decode Intrinsics"],
    "file of a picture's VAE": ["rgb.safetensors", "an image autoencoder (VAE) with 3 channels in", "8 channels"],
    "file of a LoRA": ["lora.safetensors", "a LoRA", "intrinsic VAE"],
    "file that lacks a part": ["short.safetensors", "tensors missing", "decoder.mid"],
}


@pytest.mark.parametrize("case", REFUSALS)
def test_wrong_input_is_refused_in_one_sentence(maps, case):
    sentence = maps("refused", case=case)
    assert sentence and sentence.count(". ") == 0 and "\n" not in sentence
    assert not [part for part in REFUSALS[case] if part not in sentence], sentence
