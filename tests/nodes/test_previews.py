"""Both streams are shown while they are sampled, by core's own preview messages."""

import pytest

pytestmark = pytest.mark.comfyui
FILE = "inside_previews.py"


@pytest.fixture(scope="module")
def previews(inside, tiny_weights):
    inside("inside_sampling.py", "start", weights=tiny_weights)
    return lambda function, **kwargs: inside(FILE, function, **kwargs)


@pytest.mark.parametrize(
    ("log2_alpha", "size", "batch"),
    [(0.0, (64, 48), 1), (5.0, (64, 48), 2), (-5.0, (50, 70), 1)],
    ids=["together", "image first", "depth first"],
)
def test_every_step_shows_the_image_with_its_depth_at_its_right(previews, log2_alpha, size, batch):
    """Compared with the run's result, which the last step's prediction is;
    an 8-bit picture rounds to 1/255.
    """
    seen = previews("previews", log2_alpha=log2_alpha, height=size[0], width=size[1], batch=batch)
    height, width = (-(-side // 16) * 16 for side in size)
    assert seen["count"] == 3 and seen["shape"] == [height, 2 * width, 3]
    assert max(seen["depth"], seen["image"]) < 2 / 255
    assert seen["moved"] > 0.005, "every step shows the same"
    assert seen["forgotten"]


def test_previews_switched_off_are_not_made_and_change_nothing(previews):
    assert previews("without") == {"sent": 0, "same": True}


def test_cores_denoised_output_stays_as_it_was(previews):
    seen = previews("denoised_output")
    assert seen["difference"] < 1e-5 and seen["previews"] == 3


def test_a_flux2_latent_keeps_cores_colours(previews):
    seen = previews("flux2")
    assert seen["shape"] == [256, 512, 3] and seen["left"] < 1 / 255
    assert sum(seen["near"]) > 2.5


def test_a_failed_run_leaves_nothing_in_the_preview(previews):
    assert previews("after_an_error")
