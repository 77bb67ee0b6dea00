"""View: what from_depth makes of good and bad depths, and the pictures it turns into."""

import numpy as np
import pytest
import torch

from spatialweave.models.core.geometry.camera import intrinsics_from_fov
from spatialweave.models.core.geometry.view import View, explain_invalid, percentile

NAN, INF = float("nan"), float("inf")


def raw_depth():
    return torch.tensor([[[1.0, 2.0, NAN], [INF, 0.0, -3.0]], [[4.0, 4.0, 4.0], [4.0, 4.0, -INF]]])


def test_from_depth_masks_bad_pixels_and_keeps_the_good_ones():
    view = View.from_depth(raw_depth(), units="metric")
    assert view.mask.tolist() == [[[True, True, False], [False] * 3], [[True] * 3, [True, True, False]]]
    assert view.depth.tolist() == [[[1.0, 2.0, 0.0], [0.0] * 3], [[4.0] * 3, [4.0, 4.0, 0.0]]]
    assert view.invalid_counts == (4, 1)
    assert len(view) == 2


def test_from_depth_joins_the_given_mask():
    view = View.from_depth(
        raw_depth()[1], units="relative", mask=torch.tensor([[True, False, True], [True, True, True]])
    )
    assert view.mask.tolist() == [[[True, False, True], [True, True, False]]]
    assert view.depth[0, 0, 1] == 0


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 5), (2, 1, 3, 5)], ids=str)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.uint16], ids=lambda d: d.__name__)
def test_from_depth_takes_layouts_and_number_types(shape, dtype):
    view = View.from_depth(np.full(shape, 7, dtype), units="metric")
    assert view.depth.dtype == torch.float32
    assert view.depth.shape == (2 if len(shape) > 2 else 1, 3, 5)
    assert bool((view.depth == 7).all())


def test_from_depth_underflow_counts_as_invalid():
    assert View.from_depth(torch.full((2, 2), 1e-60, dtype=torch.float64), units="metric").invalid_counts == (
        4,
    )


def test_one_is_broadcast_to_the_batch():
    view = View.from_depth(
        torch.ones(3, 2, 2),
        units="metric",
        image=torch.zeros(1, 2, 2, 3),
        intrinsics=intrinsics_from_fov(60.0, 2, 2),
    )
    assert view.image.shape == (3, 2, 2, 3)
    assert view.intrinsics.shape == (3, 3, 3)
    view = View.from_depth(
        torch.ones(2, 2), units="metric", image=torch.zeros(4, 2, 2, 3), world_to_cam=torch.eye(4)
    )
    assert len(view) == 4
    assert view.world_to_cam.shape == (4, 4, 4)


def test_batch_mismatch_names_both_counts():
    with pytest.raises(ValueError, match="4 of depth and 3 of image"):
        View.from_depth(torch.ones(4, 2, 2), units="metric", image=torch.zeros(3, 2, 2, 3))


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (
            {"image": torch.zeros(1, 2, 2, 4)},
            r"Expected image \(1, 2, 2, 3\) for .*, got \(1, 2, 2, 4\)\. Reshape it\.$",
        ),
        (
            {"image": torch.zeros(1, 5, 2, 3)},
            r"Expected image .*, got \(1, 5, 2, 3\)\. Bring the images to one size",
        ),
        ({"normals": torch.zeros(2, 3)}, r"Expected 4 axes in normals .* got the shape \(2, 3\)"),
        (
            {"intrinsics": torch.eye(4)},
            r"Expected intrinsics \(1, 3, 3\) for .*, got \(1, 4, 4\)\. Reshape it\.$",
        ),
        (
            {"mask": torch.ones(3, 2)},
            r"Expected a mask of the depth map's shape .*, got \(1, 3, 2\)\. Bring the images to one size",
        ),
    ],
)
def test_misfits_are_named(others, message):
    with pytest.raises(ValueError, match=message):
        View.from_depth(torch.ones(2, 2), units="metric", **others)


def test_unknown_units_and_fields_are_named():
    with pytest.raises(ValueError, match="units of .*metric.*got 'meters'"):
        View.from_depth(torch.ones(2, 2), units="meters")
    with pytest.raises(TypeError, match=r"got \['normal'\]"):
        View.from_depth(torch.ones(2, 2), units="metric", normal=torch.ones(2, 2, 3))
    with pytest.raises(ValueError, match="got an empty depth map"):
        View.from_depth(torch.ones(0, 2), units="metric")
    with pytest.raises(ValueError, match=r"Expected one channel in the array .depth., .*got \(2, 3, 4, 5\)"):
        View.from_depth(torch.ones(2, 3, 4, 5), units="metric")


def test_constructor_refuses_what_from_depth_would_mend():
    depth, mask = torch.ones(1, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"torch.float64 .* View.from_depth converts"):
        View(depth.double(), "metric", mask)
    with pytest.raises(ValueError, match="got a depth and a mask that disagree"):
        View(depth * NAN, "metric", mask)
    with pytest.raises(ValueError, match="got a depth and a mask that disagree"):
        View(depth, "metric", ~mask)
    with pytest.raises(ValueError, match="Expected a mask of the depth map's shape"):
        View(depth, "metric", mask[:, :1])


def test_indexing_takes_one_picture_of_every_field():
    view = View.from_depth(
        raw_depth(), units="metric", image=torch.rand(2, 2, 3, 3), intrinsics=intrinsics_from_fov(60.0, 3, 2)
    )
    assert torch.equal(view[-1].image, view.image[1:])
    assert view[1].depth.shape == (1, 2, 3)
    assert view[0].units == "metric"
    assert [len(one) for one in view] == [1, 1]
    with pytest.raises(IndexError, match="Expected an index below 2, the batch size, counted from 0, got 2"):
        view[2]


def test_describe_states_unit_direction_range_and_holes():
    line = View.from_depth(raw_depth(), units="metric").describe()
    assert line == "depth 2 x 2 x 3, 1 to 4 metres, larger = farther, 5 of 12 pixels invalid (41.7%)"
    assert "no valid pixel" in View.from_depth(torch.zeros(2, 2), units="relative").describe()


def test_require_valid_names_the_empty_picture():
    assert View.from_depth(raw_depth(), units="metric").require_valid().invalid_counts == (4, 1)
    with pytest.raises(
        ValueError,
        match=r"Expected a valid pixel \(finite and above 0\), got none among 4 in depth map 1 of 2",
    ):
        View.from_depth(torch.stack([torch.ones(2, 2), torch.zeros(2, 2)]), units="metric").require_valid()


def test_explain_invalid_counts_by_kind():
    assert explain_invalid(torch.ones(2, 2)) is None
    wanted = (
        "8 of 12 depth pixels (66.7%) are invalid and left out: 1 NaN, 2 infinite, 2 zero or "
        "negative, 3 masked out."
    )
    assert explain_invalid(raw_depth(), torch.tensor([False, True, True])) == wanted


@pytest.mark.parametrize("percent", [0, 1, 33.3, 50, 99.9, 100])
@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_percentile_equals_numpy(percent, count):
    values = torch.rand(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    assert float(percentile(values, percent)) == pytest.approx(
        np.percentile(values.numpy(), percent), rel=1e-12
    )


def test_control_image_is_white_near_black_far():
    depth = torch.tensor([[1.0, 2.0, 4.0, NAN]])
    view = View.from_depth(depth, units="metric")
    by_disparity = view.to_control_image(near_percentile=0, far_percentile=100)
    assert by_disparity.shape == (1, 1, 4, 3)
    torch.testing.assert_close(
        by_disparity[0, 0, :, 0], torch.tensor([1, (1 / 2 - 1 / 4) / (1 - 1 / 4), 0, 0])
    )
    by_log = view.to_control_image(spacing="log", near_percentile=0, far_percentile=100)
    torch.testing.assert_close(by_log[0, 0, :, 0], torch.tensor([1, 0.5, 0, 0]))
    by_depth = view.to_control_image(
        spacing="depth", near_percentile=0, far_percentile=100, invalid_gray=0.25
    )
    torch.testing.assert_close(by_depth[0, 0, :, 1], torch.tensor([1, 2 / 3, 0, 0.25]))


def test_control_image_percentiles_saturate_and_stand_alone_per_picture():
    ramp = torch.arange(1.0, 102.0).reshape(1, 101)
    view = View.from_depth(torch.stack([ramp, 1000 * ramp]), units="relative")
    gray = view.to_control_image(spacing="depth", near_percentile=10, far_percentile=80)[..., 0]
    torch.testing.assert_close(gray[0], gray[1])
    assert bool((gray[0, 0, :11] == 1).all()) and bool((gray[0, 0, 80:] == 0).all())
    torch.testing.assert_close(gray[0, 0, 45], torch.tensor(0.5))


def test_control_image_of_constant_or_empty_depth():
    assert bool((View.from_depth(torch.full((3, 3), 7.0), units="metric").to_control_image() == 0.5).all())
    assert bool(
        (View.from_depth(torch.zeros(3, 3), units="metric").to_control_image(invalid_gray=0.3) == 0.3).all()
    )


def test_control_image_refuses_bad_arguments():
    view = View.from_depth(torch.ones(2, 2), units="metric")
    with pytest.raises(ValueError, match="Expected a spacing of .*, got 'inverse'"):
        view.to_control_image(spacing="inverse")
    with pytest.raises(
        ValueError, match=r"Expected percentiles 0 <= near < far <= 100, got 90 \(near\) and 10 \(far\)"
    ):
        view.to_control_image(near_percentile=90, far_percentile=10)
