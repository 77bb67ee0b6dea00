"""The codes of the four maps against their closed forms, there and back;
masks as colors that were blurred on the way.
"""

import pytest
import torch
import torch.nn.functional as F

from spatialweave.models.core.geometry.align import align_view
from spatialweave.models.core.geometry.normals import normals_to_image
from spatialweave.models.core.geometry.view import View
from spatialweave.models.intrinsic_ldm.maps import channels as maps
from spatialweave.models.intrinsic_ldm.maps import segmentation as segments
from spatialweave.models.intrinsic_ldm.maps.codec import channels_to_maps, maps_to_channels
from spatialweave.models.intrinsic_ldm.maps.inputs import crop_maps, pad_maps, read_maps
from spatialweave.models.intrinsic_ldm.vae import MISSING, split_maps


def seeded(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_depth_code_is_linear_in_disparity_between_the_percentiles():
    # percentiles 2 and 98 lie on the values 0.104 and 0.296
    disparity = torch.linspace(0.1, 0.3, 101).reshape(1, 1, 1, 101)
    code = maps.encode_depth(1 / disparity)
    want = ((disparity - 0.104) / (0.296 - 0.104) * 2 - 1).clamp(-1, 1)
    torch.testing.assert_close(code, want, rtol=0, atol=2e-6)
    near, far = maps.depth_ends(1 / disparity)
    torch.testing.assert_close(torch.stack([near, far]), torch.tensor([[1 / 0.296], [1 / 0.104]]))


def test_depth_comes_back_clipped_when_its_ends_are_known():
    depth = seeded(3, 1, 16, 20).exp() * torch.tensor([1.0, 40.0, 0.01]).view(3, 1, 1, 1)
    near, far = maps.depth_ends(depth)
    back = maps.decode_depth(maps.encode_depth(depth), near=near, far=far)
    torch.testing.assert_close(
        back, depth.clamp(near.view(-1, 1, 1, 1), far.view(-1, 1, 1, 1)), rtol=1e-5, atol=0
    )


def test_depth_code_has_no_unit_and_any_two_ends_differ_by_scale_and_shift_of_disparity():
    depth = 1 + 4 * seeded(1, 1, 24, 24)
    torch.testing.assert_close(maps.encode_depth(depth * 1000), maps.encode_depth(depth), rtol=0, atol=1e-5)
    near, far = maps.depth_ends(depth)
    truth = View.from_depth(depth.clamp(near, far), units="metric")
    guess = View.from_depth(maps.decode_depth(maps.encode_depth(depth), near=3.0, far=70.0), units="relative")
    fitted, _ = align_view(guess, truth, fit="scale and shift", quantity="disparity")
    torch.testing.assert_close(fitted.depth, truth.depth, rtol=1e-4, atol=0)
    torch.testing.assert_close(guess.to_control_image(), truth.to_control_image(), rtol=0, atol=1e-4)


def test_pixels_without_depth_are_missing_sky_is_farthest_constant_depth_is_the_middle():
    depth = 1 + seeded(1, 1, 8, 8)
    depth[0, 0, 0, :4] = torch.tensor([torch.nan, torch.inf, 0.0, -2.0])
    mask, sky = torch.ones_like(depth, dtype=torch.bool), torch.isinf(depth)
    mask[0, 0, 1] = False
    code = maps.encode_depth(depth, mask, sky=sky)
    assert (
        code[0, 0, 0, :4].tolist() == [MISSING, -1.0, MISSING, MISSING] and (code[0, 0, 1] == MISSING).all()
    )
    assert not maps.encode_depth(torch.full((1, 1, 4, 4), 3.0)).any()
    assert not maps.encode_depth(torch.zeros(1, 1, 4, 4)).any()


def test_depth_refuses_other_shapes_and_ends_that_do_not_rise():
    with pytest.raises(ValueError, match=r"Expected depth \(b, 1, h, w\) .*\.$"):
        maps.encode_depth(torch.ones(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"Expected 0 < near <= far, got .*\.$"):
        maps.decode_depth(torch.zeros(1, 1, 2, 2), near=5.0, far=2.0)


def test_normals_are_the_colors_of_a_normal_map():
    normals = F.normalize(seeded(2, 3, 6, 6) - torch.tensor([0.5, 0.5, 1.2]).view(1, 3, 1, 1), dim=1)
    normals[:, :, 0, 0] = 0
    code = maps.encode_normals(normals)
    picture = normals_to_image(normals.movedim(1, -1))
    torch.testing.assert_close((code.movedim(1, -1) + 1)[:, 1:] / 2, picture[:, 1:])
    torch.testing.assert_close(maps.decode_normals(0.7 * code), normals)
    for style in ("opengl", "directx"):
        image = normals_to_image(normals.movedim(1, -1), style)
        torch.testing.assert_close(
            maps.normals_from_image(image, directx=style == "directx"), normals, rtol=0, atol=1e-6
        )


def test_line_and_missing_have_codes_of_their_own():
    assert maps.encode_line(torch.tensor([0.0, 1.0])).tolist() == [-1, 1] and MISSING == 0
    line = seeded(1, 1, 5, 5)
    torch.testing.assert_close(maps.decode_line(maps.encode_line(line)), line)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_is_missing_in_every_map(bad):
    """As one pixel of a map: the others keep their codes."""
    line, image = seeded(1, 1, 5, 5), 0.6 + 0.4 * seeded(1, 5, 5, 3)
    coded = maps.encode_line(line), maps.encode_normals(maps.normals_from_image(image))
    line[0, 0, 2, 3], image[0, 2, 3, 1] = bad, bad
    for code, want in zip(
        (maps.encode_line(line), maps.encode_normals(maps.normals_from_image(image))), coded, strict=True
    ):
        assert (code[:, :, 2, 3] == MISSING).all()
        code[:, :, 2, 3] = want[:, :, 2, 3]
        assert torch.equal(code, want)
    normals = F.normalize(seeded(1, 3, 4, 4), dim=1)
    normals[0, 2, 1, 1] = bad
    assert (
        (maps.encode_normals(normals)[0, :, 1, 1] == MISSING).all()
        and (maps.decode_normals(normals)[0, :, 1, 1] == 0).all()
    )


def test_maps_that_are_given_are_read_padded_and_cut_back():
    masks = given()["segmentation"]
    masks[0, 5, 6] = torch.nan
    found = read_maps(**given(segmentation=masks))
    assert (
        split_maps(found.stacked)["segmentation"][:, :, 5, 6] == MISSING
    ).all() and found.stacked.isfinite().all()
    assert (
        found.notes
        == ("1 of 1536 pixels of segmentation (0.1%) are NaN or infinite and are encoded as missing.",)
    )
    view = given()["depth"]
    holes = torch.zeros(2, 32, 48, dtype=torch.bool)
    holes[0, :3], holes[1, 20] = True, True
    sky = View.from_depth(view.depth.masked_fill(holes, torch.inf), units="metric")
    assert read_maps(depth=sky).notes == (), "sky has a code"
    gaps = View.from_depth(view.depth.masked_fill(holes, 0), units="metric")
    assert (
        read_maps(depth=gaps).notes
        == ("192 of 3072 pixels of depth (6.2%) are invalid and are encoded as missing.",)
    )
    padded, (note,) = pad_maps(found.stacked[:, :, :30, :41], 8)
    assert (
        padded.shape == (2, 8, 32, 48)
        and torch.equal(padded[..., 47], padded[..., 40])
        and "padded to 32 x 48" in note
    )
    whole, (note,) = crop_maps(padded, (30, 41), 8)
    assert torch.equal(whole, found.stacked[:, :, :30, :41]) and "cropped from 32 x 48 to 30 x 41" in note
    for same, notes in (pad_maps(padded, 8), crop_maps(padded, None, 8)):
        assert same is padded and notes == ()


def test_nearest_color_is_that_of_a_search():
    colors = 1.4 * seeded(4000, 3) - 0.2
    found = torch.cdist(colors, segments.palette()).argmin(dim=1)
    assert torch.equal(segments.nearest_colors(colors), found)
    assert torch.equal(segments.nearest_colors(segments.palette()), torch.arange(segments.COLORS + 1))


def scene(size=96):
    """Three masks on a background, one of them touching another."""
    masks = torch.zeros(3, size, size)
    masks[0, 10:60, 8:40], masks[1, 30:80, 40:90], masks[2, 66:90, 6:30] = 1, 1, 1
    return masks


def test_ids_of_masks_survive_the_colors_blurred_as_an_autoencoder_blurs():
    masks = scene()
    code, left_out = maps.encode_segmentation(segments.masks_to_ids(masks)[None])
    blurred = F.avg_pool2d(F.pad(code, (2, 2, 2, 2), mode="replicate"), 5, 1)
    noisy = blurred + 0.05 * torch.randn(code.shape, generator=torch.Generator().manual_seed(3))
    ids, (present,) = maps.decode_segmentation(noisy)
    exact, (wanted,) = maps.decode_segmentation(code)
    assert left_out == [0] and present == wanted and len(present) == 3
    found, truth = segments.ids_to_masks(ids[0], present), segments.ids_to_masks(exact[0], wanted)
    assert sorted(map(tuple, truth.flatten(1).tolist())) == sorted(map(tuple, masks.flatten(1).tolist()))
    overlap = (found * truth).sum((1, 2)) / torch.maximum(found, truth).sum((1, 2))
    assert overlap.min() > 0.93, "no border of a third color, and none lost to the background"


def test_pictures_without_masks_are_background():
    ids, present = maps.decode_segmentation(-torch.ones(2, 3, 16, 16))
    assert present == [[], []] and not ids.any()
    assert (
        segments.ids_to_masks(ids[0], []).shape == (1, 16, 16) and not segments.ids_to_masks(ids[0], []).any()
    )
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    assert maps.decode_segmentation(noise)[1] == [[]], "noise has no area of one color"


def test_of_two_masks_that_overlap_the_smaller_is_seen():
    masks = torch.zeros(2, 8, 8)
    masks[0, 2:4, 2:4], masks[1] = 1, 1
    assert segments.masks_to_ids(masks)[2, 2] == 1 and segments.masks_to_ids(masks)[0, 0] == 2


def given(**changes):
    view = View.from_depth(1 + seeded(2, 32, 48), units="metric")
    normals = normals_to_image(F.normalize(seeded(2, 32, 48, 3) - torch.tensor([0.5, 0.5, 1.5]), dim=-1))
    masks = torch.zeros(2, 32, 48)
    masks[0, 4:20, 4:20], masks[1, 8:30, 26:44] = 1, 1
    return {
        "depth": view, "normals": normals, "segmentation": masks, "line": (seeded(2, 32, 48) > 0.9).float(),
    } | changes


def test_pictures_come_back_from_the_eight_channels():
    maps_in = given()
    stacked, text = maps_to_channels(**maps_in)
    assert (
        stacked.shape == (2, 8, 32, 48)
        and text == "coded: depth, normals, segmentation, line; missing: none; masks: 2"
    )
    found = channels_to_maps(stacked)
    torch.testing.assert_close(found.normals, maps_in["normals"], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.line[..., 0], maps_in["line"])
    wanted = sorted(map(tuple, maps_in["segmentation"].flatten(1).tolist()))
    assert all(sorted(map(tuple, found.masks(index).flatten(1).tolist())) == wanted for index in (0, 1))
    assert found.view.units == "relative" and found.view.normals is not None
    assert "relative units" in found.describe(1) and "Align Depth" in found.describe(1)
    assert found.describe(1).endswith(f"image 1: {found.present[1][0]}, {found.present[1][1]}")
    with pytest.raises(ValueError, match="Expected an index below 2, the batch size, got 2"):
        found.masks(2)


@pytest.mark.parametrize("kept", ["depth", "normals", "segmentation", "line"])
def test_one_map_is_enough_and_the_others_read_missing(kept):
    stacked, text = maps_to_channels(
        **{name: value if name == kept else None for name, value in given().items()}
    )
    parts = split_maps(stacked)
    assert [name for name, part in parts.items() if part.any()] == [kept]
    assert (
        text.startswith(f"coded: {kept}; missing: ")
        and kept not in text.partition("missing")[2].partition(";")[0]
    )


WRONG = {
    "nothing": (
        {"depth": None, "normals": None, "segmentation": None, "line": None},
        ["Expected maps of depth, normals, segmentation, line, got none"],
    ),
    "sizes": ({"line": torch.zeros(2, 32, 40)}, ["depth 32 x 48", "line 32 x 40", "Resize them"]),
    "batches": ({"line": torch.zeros(3, 32, 48)}, ["2 of depth", "3 of line", "equally many"]),
    "grey normals": ({"normals": torch.zeros(2, 32, 48, 1)}, ["(2, 32, 48, 1)", "at normals"]),
    "depth without a pixel": (
        {"depth": View.from_depth(torch.zeros(1, 32, 48), units="metric")}, ["Expected a valid pixel"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_maps_that_do_not_fit_are_refused_in_one_sentence(case):
    changes, words = WRONG[case]
    with pytest.raises(ValueError, match=r"\.$") as error:
        maps_to_channels(**given(**changes))
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_masks_beyond_the_colors_are_counted():
    masks = torch.eye(70).repeat_interleave(2, 1).reshape(70, 10, 14)
    _, text = maps_to_channels(segmentation=masks)
    assert text.endswith("masks: 70, of which 7 have no color (there are 63)")


def test_a_depth_too_near_for_float32_is_missing_and_spoils_no_other():
    """1 / 1e-40 is infinite in float32: as the near end it would make every pixel NaN."""
    depth = torch.linspace(1, 4, 12).reshape(1, 1, 3, 4)
    spoilt = depth.clone()
    spoilt[0, 0, 1, 1] = 1e-40
    mask = torch.ones_like(depth, dtype=torch.bool)
    mask[0, 0, 1, 1] = False
    torch.testing.assert_close(maps.encode_depth(spoilt), maps.encode_depth(depth, mask), rtol=0, atol=0)
