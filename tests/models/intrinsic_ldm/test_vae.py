"""The intrinsic VAE's pure parts, and segmentation as colors."""

import pytest
import torch
import torch.nn.functional as F

from spatialweave.models.intrinsic_ldm.config import CHANNELS, MAPS
from spatialweave.models.intrinsic_ldm.maps import segmentation as segments
from spatialweave.models.intrinsic_ldm.vae import (
    drop_maps,
    latent_scale,
    map_slices,
    split_maps,
    stack_maps,
    vae_losses,
    widen_state,
)


def seeded(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_maps_survive_stacking_and_a_missing_one_is_zero():
    maps = {name: seeded(2, width, 4, 6) for name, width in MAPS.items()}
    assert all(torch.equal(back, maps[name]) for name, back in split_maps(stack_maps(maps)).items())
    back = split_maps(stack_maps(maps | {"normals": None}))
    assert not back["normals"].any() and torch.equal(back["line"], maps["line"])


@pytest.mark.parametrize("maps, words", [
    ({}, "Expected maps of depth, normals, segmentation, line, got none"),
    ({"albedo": seeded(1, 3, 4, 4)}, "'albedo'"),
    ({"depth": seeded(1, 3, 4, 4)}, "Expected depth (b, 1, h, w)"),
    ({"depth": seeded(1, 1, 4, 4), "line": seeded(1, 1, 4, 5)}, "one batch and size"),
])  # fmt: skip
def test_maps_that_do_not_fit_are_refused(maps, words):
    with pytest.raises(ValueError, match=r"\.$") as error:
        stack_maps(maps)
    assert words in str(error.value)


def test_a_tenth_of_the_maps_is_dropped_each_by_itself():
    dropped = drop_maps(torch.ones(4000, CHANNELS, 1, 1), torch.Generator().manual_seed(1))
    gone = torch.stack([part.flatten(1).sum(1) == 0 for part in split_maps(dropped).values()], dim=1).float()
    assert all(0.08 < share < 0.12 for share in gone.mean(0).tolist())
    assert abs(float((gone[:, 0] * gone[:, 1]).mean()) - 0.01) < 0.006
    assert all(part.flatten(1).sum(1).unique().numel() == 2 for part in split_maps(dropped).values()), (
        "a map goes as a whole"
    )


def test_first_weights_are_the_bases():
    state = {"encoder.conv_in.weight": seeded(6, 3, 3, 3), "encoder.conv_in.bias": seeded(6)}
    state |= {"decoder.conv_out.weight": seeded(3, 6, 3, 3), "decoder.conv_out.bias": seeded(3)}
    wide = widen_state(state)
    assert (
        wide["encoder.conv_in.weight"].shape == (6, 8, 3, 3)
        and wide["decoder.conv_out.weight"].shape == (8, 6, 3, 3)
    )
    grey = seeded(1, 1, 5, 5)
    same = F.conv2d(grey.expand(-1, 8, -1, -1), wide["encoder.conv_in.weight"], state["encoder.conv_in.bias"])
    mean, whole = state["encoder.conv_in.weight"].mean(1, keepdim=True), state["encoder.conv_in.weight"]
    want = (
        (2 * F.conv2d(grey.expand(-1, 3, -1, -1), whole) + 2 * F.conv2d(grey, mean)) / 4
        + state["encoder.conv_in.bias"].view(-1, 1, 1)
    )
    torch.testing.assert_close(same, want)
    code = seeded(1, 6, 5, 5)
    colors = F.conv2d(code, state["decoder.conv_out.weight"], state["decoder.conv_out.bias"])
    maps = split_maps(F.conv2d(code, wide["decoder.conv_out.weight"], wide["decoder.conv_out.bias"]))
    torch.testing.assert_close(maps["normals"], colors)
    torch.testing.assert_close(maps["depth"], colors.mean(1, keepdim=True))
    with pytest.raises(ValueError, match="with 3 channels in encoder.conv_in, got 8"):
        widen_state(wide)


def test_losses_are_zero_only_for_the_target_and_the_prior():
    target = seeded(2, CHANNELS, 4, 4)
    zero = torch.zeros(2, 4, 2, 2)
    losses = vae_losses(target, target, zero, zero, perceptual=lambda a, b: (a - b).square().mean((1, 2, 3)))
    assert all(float(loss) == pytest.approx(0, abs=1e-6) for loss in losses.values())
    turned = split_maps(target)["normals"].roll(1, dims=1)
    other = stack_maps(split_maps(target) | {"normals": turned})
    losses = vae_losses(other, target, zero + 1, zero)
    assert losses["depth"] == losses["line"] == 0 < losses["normals_angle"]
    assert float(losses["divergence"]) == pytest.approx(1e-6 * 0.5 * 16)


def test_a_pixel_of_a_line_may_count_for_many_of_the_paper():
    """One pixel of 16 is a line: a blank page is wrong there by 2, a full one is right there alone."""
    target = torch.full((1, CHANNELS, 4, 4), -1.0)
    target[:, map_slices()["line"], 1, 2] = 1.0
    zero = torch.zeros(1, 4, 2, 2)
    for balance, blank, full in ((1.0, 2 / 16, 30 / 16), (15.0, 30 / 30, 30 / 30)):
        found = [
            vae_losses(torch.full_like(target, value), target, zero, zero, line_balance=balance)
            for value in (-1.0, 1.0)
        ]
        assert [float(losses["line"]) for losses in found] == pytest.approx([blank, full])
        assert [float(losses["depth"]) for losses in found] == [0.0, 2.0], "the other maps know no balance"


def test_a_pixel_of_a_segment_may_count_for_many_of_the_ground():
    """One pixel of 16 is red: black is wrong there by 2 in one channel of three, red everywhere but there."""
    target = torch.full((1, CHANNELS, 4, 4), -1.0)
    reds = map_slices()["segmentation"].start
    target[:, reds, 1, 2] = 1.0
    red = torch.full_like(target, -1.0)
    red[:, reds] = 1.0
    zero = torch.zeros(1, 4, 2, 2)
    for balance, black, all_red in ((1.0, 2 / 48, 30 / 48), (15.0, 30 / 90, 30 / 90)):
        found = [
            vae_losses(out, target, zero, zero, segment_balance=balance)
            for out in (torch.full_like(target, -1.0), red)
        ]
        assert [float(losses["segmentation"]) for losses in found] == pytest.approx([black, all_red])


def test_the_measured_scale_gives_unit_spread():
    latents = seeded(8, 4, 16, 16) * 5.3
    assert float((latents * latent_scale(latents)).std()) == pytest.approx(1, rel=1e-5)


def picture_of_masks():
    ids = torch.zeros(2, 64, 64, dtype=torch.long)
    ids[0, 4:20, 4:30], ids[0, 30:60, 8:20], ids[0, 40:50, 40:60] = 7, 3, 900
    ids[1, 30:60, 8:20] = 11
    return ids


def test_masks_come_back_through_noisy_colors_with_the_same_ids():
    ids = picture_of_masks()
    colors, left_out = segments.encode_segments(ids)
    noisy = colors + 0.03 * torch.randn(colors.shape, generator=torch.Generator().manual_seed(2))
    back, present = segments.decode_segments(noisy)
    assert left_out == [0, 0] and [len(numbers) for numbers in present] == [3, 1]
    for index in (0, 1):
        regions = [ids[index] == number for number in ids[index].unique()]
        assert all(len(back[index][region].unique()) == 1 for region in regions)
    assert back[0, 40, 10] == back[1, 40, 10], "the same place has the same id in both pictures"


def test_specks_are_background_and_too_many_masks_are_counted():
    colors, _ = segments.encode_segments(picture_of_masks())
    colors[0, 0, 0] = torch.tensor([1.0, 1 / 3, 0])
    assert segments.decode_segments(colors)[0][0, 0, 0] == 0
    many = torch.arange(80).reshape(8, 10).repeat_interleave(4, 0).repeat_interleave(4, 1)[None]
    colors, left_out = segments.encode_segments(many)
    assert (
        left_out == [79 - segments.COLORS]
        and len(segments.decode_segments(colors, smallest=0)[1][0]) == segments.COLORS
    )
