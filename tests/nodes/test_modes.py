"""Given and partly given streams: our nodes with core's KSampler against the plain pipeline, same files, same
seed.
"""

import pytest

pytestmark = pytest.mark.comfyui
FILE = "inside_modes.py"


@pytest.fixture(scope="module")
def modes(inside, tiny_weights):
    inside("inside_sampling.py", "start", weights=tiny_weights)
    return lambda function, **kwargs: inside(FILE, function, **kwargs)


CASES = {
    "image to depth": {"mode": "image_to_depth"},
    "image to depth, guided, batch, alpha channel": {
        "mode": "image_to_depth",
        "batch": 2,
        "channels": 4,
        "cfg": 3.0,
    },
    "image to depth, odd size": {"mode": "image_to_depth", "size": [50, 70]},
    "depth to image": {"mode": "depth_to_image"},
    "depth to image, holes, guided, batch": {"mode": "depth_to_image", "holes": True, "batch": 2, "cfg": 3.0},
    "depth to image, sky and holes, odd size": {
        "mode": "depth_to_image",
        "holes": True,
        "sky": True,
        "size": [50, 70],
    },
    "depth to image under an order": {"mode": "depth_to_image", "holes": True, "log2_alpha": 5.0},
    "partial depth": {"mode": "joint", "holes": True, "sky": True},
    "partial depth, depth first, odd size": {
        "mode": "joint",
        "holes": True,
        "log2_alpha": -5.0,
        "size": [50, 70],
        "cfg": 2.0,
    },
    "partial depth, the whole depth before the image": {"mode": "joint", "holes": True, "log2_alpha": -14.0},
    "sparse depth, to be completed": {"mode": "joint", "sparse": True, "log2_alpha": -5.0, "batch": 2},
    "sparse depth, for an image": {"mode": "depth_to_image", "sparse": True},
    "partial depth, image first": {"mode": "joint", "holes": True, "log2_alpha": 5.0},
}


@pytest.mark.parametrize("case", CASES)
def test_nodes_and_ksampler_give_what_the_pipeline_gives(modes, case):
    asked = CASES[case]
    result = modes("agreement", **asked)
    assert max(result["latent"], result["image"], result["depth"]) < 1e-4
    assert result["size"] > 0.1, "a comparison of zeros would prove nothing"
    assert result["kept"] == [True, True], "what was given must come back bit for bit"
    height, width = asked.get("size", [64, 48])
    assert result["shapes"] == [
        [asked.get("batch", 1), height, width, 3],
        [asked.get("batch", 1), height, width],
    ]
    assert result["missing"] or asked["mode"] != "depth_to_image"


def test_a_depth_refined_from_the_finished_picture_is_that_of_the_pipeline(modes):
    """The second run; masks left over from the first do not reach it."""
    result = modes("refined")
    assert max(result["difference"], result["masks_do_not_matter"]) < 1e-4
    assert result["kept"] and result["moved"] > 1e-3
    assert result["shapes"] == [[1, 50, 70, 3], [1, 50, 70]]


def test_masks_of_each_stream_say_what_is_sampled(modes):
    result = modes("inpainted")
    assert result["image_kept"] == result["depth_kept"] == 0
    assert min(result["image_moved"], result["depth_moved"]) > 0.05


def test_one_of_a_batch_serves_all(modes):
    assert modes("batches") == [[[3, 32, 4, 3], [3, 1, 64, 48]], [[2, 32, 4, 3], [2, 1, 64, 48]]]


REFUSALS = {
    "another model": ["got a SDXL model", "Load Modality Forcing"],
    "no valid depth": ["Expected a valid pixel"],
    "nothing given": ["Expected an image or a view, got neither", "Empty Joint Latent"],
    "all given": ["got an image and a depth without masks", "Mask a region"],
    "image without VAE": ["Expected a VAE to encode the image", "flux2-vae"],
    "mask without image": ["Expected the image that image_mask masks"],
    "mask without view": ["Expected the view that depth_mask masks"],
    "two sizes": ["an image of 80 x 48 and a view of 64 x 48", "Scale the image"],
    "two batches": ["2 (images) and 3 (depth maps)", "one for all"],
    "another VAE": ["got one with 4 at 1/8", "flux2-vae"],
}


@pytest.mark.parametrize("case", REFUSALS)
def test_wrong_parts_are_refused_with_the_remedy(modes, case):
    sentence = modes("refused", case=case)
    assert sentence and sentence.count(". ") <= 1 and "\n" not in sentence
    assert not [part for part in REFUSALS[case] if part not in sentence], sentence
