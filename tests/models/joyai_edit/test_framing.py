"""The way to a bucket and back: sizes, fractions, and the alignment of known points,
read off here without our code.
"""

import random

import numpy as np
import pytest
import torch

from spatialweave.models.joyai_edit.buckets import BUCKETS, core_crop, find_bucket
from spatialweave.models.joyai_edit.framing import fit_images, plan_framing, uncovered_mask, unfit_images


def odd_sizes(count, seed=15):
    rng = random.Random(seed)
    return [(rng.randrange(201, 1600, 2), rng.randrange(201, 1600, 2)) for _ in range(count)]


@pytest.mark.parametrize("mode", ["pad", "crop"])
def test_every_size_gets_an_exact_bucket_that_core_leaves_alone(mode):
    for height, width in [*odd_sizes(50), (1, 1), (4096, 4096), (300, 4000), (5000, 700), (2, 3000)]:
        framing = plan_framing(height, width, mode)
        assert framing.bucket == find_bucket(height, width) and framing.bucket in BUCKETS
        assert (
            find_bucket(*framing.bucket) == framing.bucket
            and core_crop(framing.bucket, framing.bucket) == (0, 0, *framing.bucket[::-1])
        )
        left, top, right, bottom = framing.taken
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        left, top, right, bottom = framing.placed
        assert 0 <= left < right <= framing.bucket[1] and 0 <= top < bottom <= framing.bucket[0]


def test_padding_keeps_the_whole_image_and_cropping_fills_the_bucket():
    padded, cropped = plan_framing(1080, 1920, "pad"), plan_framing(1080, 1920, "crop")
    assert (
        padded.taken == (0, 0, 1920, 1080)
        and padded.placed == (0, 6, 1344, 762)
        and padded.padding == (0, 6, 0, 6)
    )
    assert padded.cropped == 0 and padded.padded == pytest.approx(12 / 768)
    assert (
        cropped.placed == (0, 0, 1344, 768)
        and cropped.taken == (15, 0, 1905, 1080)
        and cropped.cropped == pytest.approx(30 / 1920)
    )
    assert padded.describe()[:3] == [
        "Bucket 1344 x 768 (width x height): 1920 x 1080 scaled by 0.7.",
        "Padding: left 0, top 6, right 0, bottom 6 pixels, 1.6% of the bucket.",
        "Nothing is cropped.",
    ]  # fmt: skip
    assert cropped.describe()[1:3] == [
        "No padding.",
        "Cropped: 1.6% of the image; x 15 to 1905, y 0 to 1080 is kept.",
    ]
    assert "ComfyUI alone would crop 1.6% of the image" in padded.describe()[3]


def test_far_from_any_bucket_is_said():
    said = "\n".join(plan_framing(300, 4000, "pad").describe())
    assert "13.3 times as long as wide and the buckets end at 4, so 70% of the bucket is padding" in said
    assert "70% of the image is cropped away" in "\n".join(plan_framing(300, 4000, "crop").describe())
    assert "edit it in parts" not in "\n".join(plan_framing(500, 2000, "pad").describe())


def test_the_originals_buckets_are_a_choice():
    assert plan_framing(768, 1024, "pad", "original").bucket == (896, 1152)


def test_an_image_of_a_buckets_size_is_left_bit_for_bit():
    image = torch.rand(2, 832, 1216, 3)
    framing = plan_framing(832, 1216)
    assert (
        framing.is_identity
        and fit_images(image, framing) is image
        and torch.equal(unfit_images(image, framing), image)
    )


def test_the_padding_repeats_the_edge():
    image = torch.rand(1, 320, 500, 3)
    framing = plan_framing(320, 500)
    fitted, (left, top, right, bottom) = fit_images(image, framing), framing.placed
    assert tuple(fitted.shape[1:3]) == framing.bucket and framing.padded > 0
    assert all(torch.equal(fitted[:, row], fitted[:, top]) for row in range(top))
    assert all(torch.equal(fitted[:, row], fitted[:, bottom - 1]) for row in range(bottom, framing.bucket[0]))
    assert all(torch.equal(fitted[:, :, column], fitted[:, :, left]) for column in range(left))
    assert all(
        torch.equal(fitted[:, :, column], fitted[:, :, right - 1])
        for column in range(right, framing.bucket[1])
    )


def dots(height, width, count=12, seed=3):
    """(h, w) with soft dots at known places, which do not touch;
    their centers (x, y) with pixel centers at .5.
    """
    rng = random.Random(seed * 7919 + height * 31 + width)
    radius = max(2.5, max(height, width) / 1024 * 4)
    apart, centers = 14 * radius, []
    for _ in range(4000):
        x, y = rng.uniform(8 * radius, width - 8 * radius), rng.uniform(8 * radius, height - 8 * radius)
        if all((x - a) ** 2 + (y - b) ** 2 > apart**2 for a, b in centers):
            centers.append((x, y))
        if len(centers) == count:
            break
    ys, xs = np.mgrid[:height, :width] + 0.5
    image = sum(np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * radius**2)) for x, y in centers)
    return image.clip(0, 1), centers, radius


def centroid(image, x, y, reach):
    """Center of mass of the dot near (x, y)."""
    rows, columns = (
        slice(max(0, int(y - reach)), int(y + reach) + 1),
        slice(max(0, int(x - reach)), int(x + reach) + 1),
    )
    part = image[rows, columns]
    part = np.where(part > 0.02, part, 0)
    ys, xs = (
        np.mgrid[rows.start : rows.start + part.shape[0], columns.start : columns.start + part.shape[1]] + 0.5
    )
    return (part * xs).sum() / part.sum(), (part * ys).sum() / part.sum()


@pytest.mark.parametrize("mode", ["pad", "crop"])
def test_known_points_come_back_where_they_were(mode):
    """Centers of mass of soft dots over odd sizes:
    mean displacement at most .05 px of the input, here far less.
    """
    errors = []
    for height, width in odd_sizes(12):
        image, centers, radius = dots(height, width)
        framing = plan_framing(height, width, mode)
        left, top, right, bottom = framing.taken
        tensor = torch.from_numpy(image).float()[None, ..., None].expand(1, height, width, 3)
        back = unfit_images(fit_images(tensor, framing), framing)[0, ..., 0].double().numpy()
        for x, y in centers:
            if left + 6 * radius < x < right - 6 * radius and top + 6 * radius < y < bottom - 6 * radius:
                before, after = (
                    centroid(image, x, y, 5 * radius),
                    centroid(back, x - left, y - top, 5 * radius),
                )
                errors.append(np.hypot(after[0] + left - before[0], after[1] + top - before[1]))
    assert len(errors) > 80 and np.mean(errors) < 0.01 and np.max(errors) < 0.05


def test_boxes_go_to_the_bucket_where_their_pixels_go():
    """A white rectangle, fitted, lies in the mapped box."""
    image = torch.zeros(1, 700, 1001, 3)
    image[:, 200:400, 300:650] = 1
    for mode in ("pad", "crop"):
        framing = plan_framing(700, 1001, mode)
        box = framing.to_bucket((300, 200, 650, 400))
        on = fit_images(image, framing)[0, ..., 0] > 0.5
        rows, columns = torch.nonzero(on.any(1)).flatten(), torch.nonzero(on.any(0)).flatten()
        found = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        assert all(abs(float(a) - b) <= 0.51 for a, b in zip(found, box))


def test_what_a_crop_leaves_out_is_marked():
    framing = plan_framing(620, 1000, "crop")
    mask = uncovered_mask(framing)
    assert mask.float().mean().item() == pytest.approx(framing.cropped) and framing.cropped > 0
    assert not uncovered_mask(plan_framing(620, 1000)).any()


def test_images_of_another_size_are_refused():
    framing = plan_framing(300, 500)
    with pytest.raises(ValueError, match=r"Expected an image of 500 x 300 \(width x height\), got 64 x 64"):
        fit_images(torch.zeros(1, 64, 64, 3), framing)
    with pytest.raises(ValueError, match=r"Expected an image of 1280 x 768 .*, got 64 x 64.*Joy: Fit"):
        unfit_images(torch.zeros(1, 64, 64, 3), framing)
    with pytest.raises(ValueError, match="Expected a mode of pad, crop, got 'stretch'"):
        plan_framing(300, 500, "stretch")
