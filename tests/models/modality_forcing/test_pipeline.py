"""The pipeline around a network that knows the answer, with a codec that loses nothing: what comes out can be
written down.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from spatialweave.kernels.testing import assert_close
from spatialweave.models.core.geometry.camera import intrinsics_from_fov
from spatialweave.models.core.geometry.view import View
from spatialweave.models.modality_forcing.config import PipelineDefaults, SamplingDefaults
from spatialweave.models.modality_forcing.depth_code import depth_to_net
from spatialweave.models.modality_forcing.inputs import read_given_depth, read_given_image, scale_to_trained
from spatialweave.models.modality_forcing.network import ModalityForcing
from spatialweave.models.modality_forcing.pipeline import TINY_NETWORK, ModalityForcingPipeline
from spatialweave.models.modality_forcing.sampling import draw_noise, make_schedule, sample

NAN, INF = float("nan"), float("inf")
FEW = PipelineDefaults(
    16,
    SamplingDefaults(3, 4.0, 5.0),
    SamplingDefaults(2),
    SamplingDefaults(3, 4.0),
    SamplingDefaults(4, 2.0, -5.0),
)


class LosslessCodec:
    """4 x 4 pixels are 48 channels."""

    def encode(self, image):
        return F.pixel_unshuffle(image, 4)

    def decode(self, latent):
        return F.pixel_shuffle(latent, 4)


class LetterEncoder:
    """A row per character, up to six; the empty prompt is zeros."""

    def encode(self, texts):
        context = torch.zeros(len(texts), 6, 10)
        for row, text in zip(context, texts, strict=True):
            for i, letter in enumerate(text[:6]):
                row[i] = torch.linspace(-1, 1, 10) * (ord(letter) - 96) / 5
        return context


class Oracle(ModalityForcing):
    """Knows the one picture and depth there are (as far as they go), and remembers what it was called with.
    """

    def __init__(self, config, image, net):
        super().__init__(config)
        self.latent, self.net, self.calls = LosslessCodec().encode(image.movedim(-1, 1) * 2 - 1), net, []

    def forward(self, img, depth, context, t_rgb, t_depth, **kwargs):
        self.check_inputs(img, depth, context)
        self.calls.append(
            {"img": img, "depth": depth, "context": context, "t_rgb": t_rgb, "t_depth": t_depth}
        )
        return (img - self.latent) / t_rgb.clamp(min=1e-9)[:, None, None, None], self.net.expand_as(depth)


@pytest.fixture
def config(small_config):
    return replace(small_config, in_channels=48)


@pytest.fixture
def make_oracle(config):
    """make_oracle(image b h w 3, raw depth b 1 h w) -> (pipeline, oracle); sizes must be multiples of 4."""

    def make(image, depth, **arguments):
        oracle = Oracle(config, image, depth_to_net(depth))
        return ModalityForcingPipeline(
            oracle, config, LosslessCodec(), LetterEncoder(), defaults=FEW, **arguments
        ), oracle

    return make


@pytest.fixture
def pipeline(config, make_network):
    return ModalityForcingPipeline(
        make_network(config), config, LosslessCodec(), LetterEncoder(), defaults=FEW
    )


def scene(height=8, width=12, batch=1):
    image = torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(0))
    depth = torch.rand(batch, 1, height, width, generator=torch.Generator().manual_seed(1)) * 3 + 0.5
    return image, depth


# --- the three modes ----------------------------------------------------------------------------------------


def test_joint_makes_the_picture_and_its_depth(make_oracle):
    image, depth = scene()
    pipeline, oracle = make_oracle(image, depth)
    result = pipeline("cat", height=8, width=12, seed=3)
    assert_close(result.image, image)
    assert_close(result.view.depth, (depth / depth.mean())[:, 0])
    assert result.view.units == "relative" and result.view.mask.all() and result.view.intrinsics is None
    assert torch.equal(result.view.image, result.image) and result.alpha is None
    assert result.notes == () and result.seed == 3 and result.seconds > 0
    rgb, net = draw_noise(3, (1, 48, 2, 3), (1, 1, 8, 12))
    assert torch.equal(oracle.calls[0]["img"], rgb) and torch.equal(oracle.calls[0]["depth"], net)
    schedule = make_schedule("joint", 3, log2_alpha=5.0)
    assert [float(call["t_depth"]) for call in oracle.calls[::2]] == schedule.t_depth[:-1].tolist()


def test_image_to_depth_keeps_the_picture(make_oracle):
    image, depth = scene(batch=2)
    pipeline, oracle = make_oracle(image, depth)
    result = pipeline(mode="image_to_depth", image=image)
    assert torch.equal(result.image, image)
    assert_close(result.view.depth, (depth / depth.mean((1, 2, 3), keepdim=True))[:, 0])
    assert len(oracle.calls) == 2 and all(not call["t_rgb"].any() for call in oracle.calls)
    assert_close(oracle.calls[1]["img"], oracle.latent)


def test_depth_to_image_keeps_the_depth_with_its_units_and_camera(make_oracle):
    image, depth = scene()
    view = View.from_depth(depth, units="metric", intrinsics=intrinsics_from_fov(60.0, 12, 8))
    pipeline, oracle = make_oracle(image, depth)
    result = pipeline("cat", mode="depth_to_image", depth=view)
    assert_close(result.image, image)
    assert torch.equal(result.view.depth, view.depth) and result.view.units == "metric"
    assert torch.equal(result.view.intrinsics, view.intrinsics) and torch.equal(
        result.view.image, result.image
    )
    assert all(
        torch.equal(call["depth"], depth_to_net(depth)) and not call["t_depth"].any() for call in oracle.calls
    )


def test_a_run_is_the_samplers_run(pipeline):
    result = pipeline(
        "dog", height=8, width=12, guidance=3.0, steps=4, log2_alpha=-7.0, seed=7, x0_t_min=0.05
    )
    encoder, noise = LetterEncoder(), draw_noise(7, (1, 48, 2, 3), (1, 1, 8, 12))
    with torch.no_grad():
        rgb, net = sample(
            pipeline.network, *noise, make_schedule("joint", 4, log2_alpha=-7.0),
            context=encoder.encode(["dog"]), null_context=encoder.encode([""]), guidance=3.0, x0_t_min=0.05,
        )  # fmt: skip
    assert torch.equal(result.rgb_latent, rgb) and torch.equal(result.depth_net, net)
    assert not torch.equal(
        pipeline("dog", height=8, width=12, guidance=3.0, steps=4, log2_alpha=-7.0, seed=7).depth_net, net
    )


def test_same_seed_same_result_and_another_seed_another(pipeline):
    one, two, other = (pipeline("dog", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.image, two.image) and torch.equal(one.view.depth, two.view.depth)
    assert not torch.equal(one.image, other.image)
    assert one.image.shape == (1, 16, 16, 3)  # the preset's size


# --- guidance, order, refine --------------------------------------------------------------------------------


def test_guidance_acts_by_default_and_never_on_the_empty_prompt(make_oracle):
    for prompt, calls in (("cat", 6), ("", 3), (("", "cat"), 6)):
        pipeline, oracle = make_oracle(*scene())
        pipeline(prompt, height=8, width=12)
        assert len(oracle.calls) == calls
    pipeline, oracle = make_oracle(*scene())
    pipeline("cat", height=8, width=12, guidance=1.0)
    assert len(oracle.calls) == 3


def test_order_is_the_default_or_the_callers(make_oracle):
    for given, used in ((None, 5.0), (0, 0.0), (-3.0, -3.0)):
        pipeline, oracle = make_oracle(*scene())
        pipeline(height=8, width=12, log2_alpha=given)
        assert float(oracle.calls[1]["t_depth"]) == float(
            make_schedule("joint", 3, log2_alpha=used).t_depth[1]
        )
    (note,) = pipeline(mode="image_to_depth", image=scene()[0], log2_alpha=1.0).notes
    assert note == "log2_alpha orders the two streams of a joint run; it has no effect in image_to_depth."


def test_refine_makes_the_depth_again_from_the_finished_image(make_oracle):
    pipeline, oracle = make_oracle(*scene())
    steps = []
    result = pipeline(
        "cat",
        height=8,
        width=12,
        refine=True,
        on_step=lambda step, total, latents: steps.append((step, total)),
    )
    assert steps == [(i, 6) for i in range(1, 7)]
    assert len(oracle.calls) == 6 + 3  # guided, then not
    assert all(
        torch.equal(call["img"], result.rgb_latent) and not call["t_rgb"].any() for call in oracle.calls[6:]
    )
    assert torch.equal(oracle.calls[6]["depth"], oracle.calls[0]["depth"])  # the same seed


def test_joint_with_a_depth_keeps_it_where_it_is_known(make_oracle):
    image, depth = scene()
    known = torch.full((1, 1, 8, 12), NAN)
    known[..., :6] = 2 * depth[..., :6]
    pipeline, oracle = make_oracle(image, depth)
    result = pipeline("cat", depth=known)
    assert_close(result.image, image)
    kept = torch.isfinite(known)
    assert_close(result.depth_net[kept], depth_to_net(known)[kept])
    assert_close(result.depth_net[~kept], oracle.net[~kept])
    assert (
        len(oracle.calls) == 8
        and "48 of 96 depth pixels (50.0%) are invalid and left out: 48 NaN." in result.notes
    )
    assert float(oracle.calls[2]["t_depth"]) < float(oracle.calls[2]["t_rgb"])  # depth first


# --- sizes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(7, 10), (1, 1), (13, 4)])
def test_any_size_comes_back_as_it_came(pipeline, size):
    image, depth = scene(*size)
    asked, given = {"height": size[0], "width": size[1]}, {"mode": "image_to_depth", "image": image}
    for arguments in (asked, given, {"mode": "depth_to_image", "depth": depth}):
        result = pipeline("cat", **arguments)
        assert result.image.shape == (1, *size, 3) and result.view.depth.shape == (1, *size)
        assert result.rgb_latent.shape[-2:] == (-(-size[0] // 4), -(-size[1] // 4))
        assert any(
            note.startswith(f"{size[0]} x {size[1]} (height x width) is not a multiple of 4")
            for note in result.notes
        )


def test_padding_repeats_the_edges(make_oracle):
    image, depth = scene(8, 12)
    image[:, 7:], depth[..., 7:, :] = image[:, 6:7], depth[..., 6:7, :]
    image[:, :, 10:], depth[..., 10:] = image[:, :, 9:10], depth[..., 9:10]
    pipeline, oracle = make_oracle(image, depth)
    result = pipeline(mode="image_to_depth", image=image[:, :7, :10])
    assert_close(oracle.calls[0]["img"], oracle.latent)
    assert result.image.shape == (1, 7, 10, 3)
    pipeline(mode="depth_to_image", depth=depth[..., :7, :10])
    seen, wanted = oracle.calls[-1]["depth"], depth_to_net(depth[..., :7, :10])
    assert torch.equal(seen[..., :7, :10], wanted) and torch.equal(seen[..., 7:, :10], wanted[..., 6:, :])
    assert torch.equal(seen[..., 10:], seen[..., 9:10].expand(-1, -1, -1, 2))


def test_a_size_asked_for_resizes_what_is_given(pipeline):
    image, depth = scene(16, 24)
    result = pipeline(mode="image_to_depth", image=image, height=8, width=12)
    assert_close(result.image, image.reshape(1, 8, 2, 12, 2, 3).mean((2, 4)))  # area averaging
    assert "The image was resized from 16 x 24 to 8 x 12 (height x width)." in result.notes
    view = View.from_depth(depth, units="metric", intrinsics=intrinsics_from_fov(60.0, 24, 16))
    result = pipeline(mode="depth_to_image", depth=view, height=8, width=12)
    assert torch.equal(result.view.depth, view.depth[:, ::2, ::2])  # nearest pixel
    assert_close(result.view.intrinsics[0], intrinsics_from_fov(60.0, 12, 8))


@pytest.mark.parametrize(("height", "width"), [(0, 8), (8, -1), (8.5, 8)])
def test_impossible_sizes_are_refused(pipeline, height, width):
    with pytest.raises(
        ValueError,
        match=f"Expected a height and width of at least 1, in whole numbers, got {height} x {width}",
    ):
        pipeline(height=height, width=width)


# --- pictures and depth as people have them -----------------------------------------------------------------


def test_rgba_hands_its_alpha_on(pipeline):
    image = (torch.rand(8, 8, 4, generator=torch.Generator().manual_seed(0)) * 255).byte().numpy()
    result = pipeline(mode="image_to_depth", image=Image.fromarray(image))
    assert_close(result.image[0], torch.from_numpy(image[..., :3]) / 255)
    assert_close(result.alpha[0], torch.from_numpy(image[..., 3]) / 255)
    assert sum("alpha" in note for note in result.notes) == 1


GREY = {
    "16 bit": np.full((8, 8), 32768, dtype=np.uint16),
    "float": torch.full((1, 8, 8, 1), 0.5),
    "pillow": Image.new("L", (8, 8), 128),
}


@pytest.mark.parametrize("image", GREY.values(), ids=GREY)
def test_grey_pictures_work(pipeline, image):
    result = pipeline(mode="image_to_depth", image=image)
    assert_close(result.image, torch.full((1, 8, 8, 3), 0.5), atol=0.003)
    assert "gray" in result.notes[0]


@pytest.mark.parametrize("bad", [NAN, INF, 0.0, -1.0])
def test_missing_depth_is_noise_to_the_network_and_missing_in_the_result(make_oracle, bad):
    image, depth = scene()
    depth[..., 2:4, 5:] = bad
    pipeline, oracle = make_oracle(image, scene()[1])
    result = pipeline("cat", mode="depth_to_image", depth=depth)
    hole = torch.zeros(1, 1, 8, 12, dtype=torch.bool)
    hole[..., 2:4, 5:] = True
    seen, (_, noise) = oracle.calls[0]["depth"], draw_noise(0, (1, 48, 2, 3), (1, 1, 8, 12))
    assert torch.equal(seen[hole], noise[hole])
    assert torch.equal(seen[~hole], depth_to_net(depth)[~hole])
    assert torch.equal(result.view.mask, ~hole[:, 0]) and not result.view.depth[hole[:, 0]].any()
    assert len(result.notes) == 1 and result.notes[0].startswith(
        "14 of 96 depth pixels (14.6%) are invalid and left out: 14 "
    )


def test_one_valid_pixel_is_enough_and_none_is_refused(pipeline):
    depth = torch.full((1, 1, 8, 8), NAN)
    depth[..., 3, 3] = 5.0
    assert pipeline(mode="depth_to_image", depth=depth).view.mask.sum() == 1
    for nothing in (torch.zeros(8, 8), torch.full((8, 8), NAN), np.full((8, 8), -2.0)):
        with pytest.raises(
            ValueError,
            match=r"Expected a valid pixel \(finite and above 0\), got none among 64 in depth map 0 of 1",
        ):
            pipeline(mode="depth_to_image", depth=nothing)


def test_constant_depth_works(make_oracle):
    pipeline, oracle = make_oracle(*scene())
    pipeline(mode="depth_to_image", depth=torch.full((8, 12), 7.0))
    assert torch.equal(oracle.calls[0]["depth"], torch.ones(1, 1, 8, 12))


def test_depth_may_be_an_array_a_16_bit_picture_or_a_view_with_holes(pipeline):
    depth = (
        (torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) * 60000 + 1).to(torch.uint16).numpy()
    )
    results = [
        pipeline(mode="depth_to_image", depth=d)
        for d in (depth, depth[..., None], Image.fromarray(depth), torch.from_numpy(depth))
    ]
    assert all(torch.equal(result.image, results[0].image) for result in results)
    assert torch.equal(results[0].view.depth[0], torch.from_numpy(depth.astype(np.float32)))
    view = View.from_depth(torch.ones(1, 8, 8), units="metric", mask=torch.eye(8, dtype=torch.bool)[None])
    assert (
        "56 of 64 depth pixels (87.5%) are invalid and left out."
        in pipeline(mode="depth_to_image", depth=view).notes
    )


def test_depth_the_network_makes_too_far_or_behind_is_reported(make_oracle):
    image, depth = scene()
    pipeline, oracle = make_oracle(image, depth)
    oracle.net[0, 0, 0, :3], oracle.net[0, 0, 1, :2] = torch.tensor([1.995, 2.0, 5.0]), -0.5
    result = pipeline(height=8, width=12)
    assert result.view.depth[0, 0, :3].tolist() == pytest.approx([100.0] * 3, rel=1e-3)
    assert (~result.view.mask).sum() == 2 and not result.view.mask[0, 1, :2].any()
    assert (
        result.notes[0] == "3 of 96 depth pixels lie beyond 100 times the mean and were set to that distance."
    )
    assert (
        result.notes[1]
        == "In the sampled depth, 2 of 96 depth pixels (2.1%) are invalid and left out: 2 zero or negative."
    )


# --- batches ------------------------------------------------------------------------------------------------


def test_one_serves_all_and_each_keeps_its_place(make_oracle):
    image, depth = scene(batch=3)
    pipeline, oracle = make_oracle(image, depth)
    result = pipeline(["a", "b", "c"], mode="depth_to_image", depth=depth)
    assert_close(result.image, image)
    assert_close(oracle.calls[0]["context"], LetterEncoder().encode(["a", "b", "c"]))
    result = pipeline("a", mode="depth_to_image", depth=depth[:1], batch_size=3)
    assert result.view.depth.shape == (3, 8, 12) and result.image.shape == (3, 8, 12, 3)
    result = pipeline(["a", "b", "c"], mode="image_to_depth", image=image[:1])
    assert result.image.shape == (3, 8, 12, 3) and result.view.depth.shape == (3, 8, 12)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            {"prompt": ["a", "b"], "batch_size": 3},
            r"Expected equal batch sizes, or 1, got 2 \(prompts\) and 3 \(batch_size\)",
        ),
        (
            {"prompt": ["a"] * 4, "mode": "depth_to_image", "depth": torch.ones(3, 8, 8)},
            r"4 \(prompts\) and 3 \(depth maps\)",
        ),
        (
            {"mode": "image_to_depth", "image": torch.zeros(4, 8, 8, 3), "batch_size": 2},
            r"2 \(batch_size\) and 4 \(images\)",
        ),
        ({"batch_size": 0}, r"Expected whole numbers of at least 1, got \{'prompts': 1, 'batch_size': 0\}"),
        ({"prompt": []}, r"Expected whole numbers of at least 1, got \{'prompts': 0, 'batch_size': 1\}"),
    ],
)  # fmt: skip
def test_batches_that_do_not_match_are_refused_with_both_counts(pipeline, arguments, said):
    with pytest.raises(ValueError, match=said):
        pipeline(arguments.pop("prompt", ""), **arguments)


@pytest.mark.parametrize(("orientation", "turned"), [(1, 0), (3, 2), (6, 1), (8, 3)])
def test_pillow_images_are_taken_upright(tmp_path, orientation, turned):
    upright = np.zeros((12, 8, 3), np.uint8)
    upright[:6] = (200, 30, 30)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.rot90(upright, turned).copy()).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(np.rot90(np.arange(96, dtype=np.uint16).reshape(12, 8) + 1, turned).copy()).save(
        tmp_path / "d.png", exif=exif
    )
    with Image.open(tmp_path / "a.png") as image, Image.open(tmp_path / "d.png") as depth:
        assert np.array_equal((read_given_image(image, (None, None)).rgb[0] * 255).round().numpy(), upright)
        assert read_given_depth(depth, (None, None))[0].depth.flatten().tolist() == list(range(1, 97))


def test_pillow_depths_keep_what_sixteen_bits_cannot_hold():
    wide = np.array([[70000, 1], [2, 3]], np.int32)
    assert read_given_depth(Image.fromarray(wide), (None, None))[0].depth[0].tolist() == wide.tolist()
    with_alpha = Image.merge("LA", [Image.new("L", (4, 6), 9), Image.new("L", (4, 6), 255)])
    assert read_given_depth(with_alpha, (None, None))[0].depth.shape == (1, 6, 4)


# --- faults -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"mode": "depth"}, "Expected one of the modes joint, image_to_depth, depth_to_image, got 'depth'"),
        ({"mode": "image_to_depth"}, "Expected an image for mode image_to_depth, got none"),
        ({"mode": "depth_to_image"}, "Expected a depth for mode depth_to_image, got none"),
        ({"image": torch.zeros(8, 8, 3)}, "Expected no image for mode joint, which samples it, got one"),
        (
            {"mode": "image_to_depth", "image": torch.zeros(8, 8, 3), "depth": torch.ones(8, 8)},
            "Expected no depth for mode image_to_depth, which samples it, got one",
        ),
        (
            {"mode": "depth_to_image", "image": torch.zeros(8, 8, 3), "depth": torch.ones(8, 8)},
            "Expected no image for mode depth_to_image, which samples it, got one",
        ),
        (
            {"mode": "image_to_depth", "image": torch.zeros(8, 8, 3), "refine": True},
            "Expected mode joint for refine, which samples the depth again from the finished "
            "image, got image_to_depth",
        ),
        (
            {"mode": "depth_to_image", "depth": torch.ones(8, 8, 3)},
            r"one value per pixel, got shape \(8, 8, 3\), a color image",
        ),
        (
            {"mode": "image_to_depth", "image": torch.full((8, 8, 3), 255.0)},
            r"in \[0, 1\], got floats from 255 to 255. Divide them by",
        ),
        ({"steps": 0}, "Expected a whole number of steps, at least 1, got 0"),
        ({"guidance": INF}, "Expected a finite guidance, got inf"),
        ({"log2_alpha": 50.0}, "Expected log2_alpha from -20 to 20, or None, got 50.0"),
        ({"seed": -1}, r"Expected a whole number from 0 to 2\^64 - 1 as the seed, got -1"),
        (
            {"seed": 2**64},
            r"Expected a whole number from 0 to 2\^64 - 1 as the seed, got 18446744073709551616",
        ),
        ({"seed": 1.5}, r"Expected a whole number from 0 to 2\^64 - 1 as the seed, got 1.5"),
        ({"x0_t_min": 1.0}, r"Expected x0_t_min from 0 \(exact\) to below 1, got 1.0"),
    ],
)  # fmt: skip
def test_wrong_requests_are_refused_in_a_sentence(pipeline, arguments, said):
    with pytest.raises(ValueError, match=said):
        pipeline("cat", **arguments)


def test_words_the_encoder_cannot_read_are_noted_once_per_prompt(make_oracle):
    pipeline, _ = make_oracle(
        *scene(), explain_prompt=lambda text: f"'{text}' is unknown." if "z" in text else None
    )
    assert pipeline(["zebra", "cat", "zebra"], height=8, width=12).notes == ("'zebra' is unknown.",)


def test_a_size_far_above_the_trained_one_is_a_note(make_oracle):
    pipeline, _ = make_oracle(*scene())
    pipeline.trained_size = 8
    assert pipeline("cat", height=8, width=12).notes == ()
    pipeline.trained_size = 4
    (note,) = pipeline("cat", height=8, width=12).notes
    assert note.startswith("This model was trained at 4 x 4 pixels; larger sizes, like this 8 x 12 (height x")
    assert "upscale_view" in note


@pytest.mark.parametrize(
    ("size", "scaled"), [((517, 1023), (65, 128)), ((128, 40), (128, 40)), ((4000, 1), (128, 1))]
)
def test_scaling_to_the_trained_size_keeps_the_aspect_ratio(size, scaled):
    assert scale_to_trained(size, 128) == scaled and scale_to_trained(size, None) == size


def test_a_stopped_run_leaves_nothing_behind(pipeline):
    def stop(step, *rest):
        raise KeyboardInterrupt

    wanted = pipeline("cat").image
    with pytest.raises(KeyboardInterrupt):
        pipeline("cat", on_step=stop)
    assert torch.equal(pipeline("cat").image, wanted)


def test_a_bfloat16_network_samples_in_a_float32_state(config, make_network):
    half = ModalityForcingPipeline(
        make_network(config, dtype=torch.bfloat16), config, LosslessCodec(), LetterEncoder(), defaults=FEW
    )
    result = half("cat")
    assert result.rgb_latent.dtype == result.depth_net.dtype == result.image.dtype == torch.float32
    assert torch.isfinite(result.image).all()


@pytest.mark.parametrize("name", ["klein_9b", "klein_4b"])
def test_presets_without_weights_say_what_to_do(name):
    with pytest.raises(
        ValueError,
        match=rf"Expected weights of {name}, which this pack does not include \(it includes those of "
        r"tiny\), got none",
    ):
        ModalityForcingPipeline.from_preset(name)


def test_unknown_preset_names_the_known_ones():
    with pytest.raises(ValueError, match="Expected one of the presets klein_9b, klein_4b, tiny, got 'huge'"):
        ModalityForcingPipeline.from_preset("huge")


@pytest.mark.skipif(
    not TINY_NETWORK.is_file(), reason=f"the tiny model is not trained yet: {TINY_NETWORK} is not there"
)
def test_the_tiny_preset_runs_in_all_modes():
    pipeline = ModalityForcingPipeline.from_preset("tiny")
    joint = pipeline("a red ball to the left of a blue box", steps=2)
    assert joint.image.shape == (1, 128, 128, 3)
    view = joint.view
    assert bool(
        (view.mask | view.sky).all() if view.sky is not None else view.mask.all()
    )  # every pixel is a depth or sky
    assert pipeline(mode="image_to_depth", image=joint.image, steps=2).view.depth.shape == (1, 128, 128)
    assert pipeline("a green cube", mode="depth_to_image", depth=joint.view, steps=2).image.shape == (
        1,
        128,
        128,
        3,
    )
    assert any("zebra" in note for note in pipeline("a zebra", steps=1).notes)
