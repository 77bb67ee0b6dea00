"""The door for arrays: what numpy and torch make, as float32 of this machine, or one sentence that names
array and file.
"""

import numpy as np
import pytest
import torch

from spatialweave.models.core.geometry.arrays import (
    ArrayError,
    as_float_map,
    as_float_tensor,
    as_image,
    as_mask,
)

VALUES = [[1, 2, 3], [4, 5, 6]]
KINDS = [
    "<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "i1", "u1", "<i2", ">i2", "<u2", ">u2", "<i4", ">u4", "<i8",
    ">i8", "<u8", ">u8",
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_type_of_numpy_becomes_float32(kind):
    found = as_float_map(np.array(VALUES, kind))
    assert found.dtype == torch.float32 and found.tolist() == [VALUES]


@pytest.mark.parametrize(
    "kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint16, torch.int64], ids=str
)
def test_every_number_type_of_torch_becomes_float32(kind):
    found = as_float_map(torch.tensor(VALUES).to(kind))
    assert found.dtype == torch.float32 and found.tolist() == [VALUES]


def test_views_of_memory_are_read_as_they_are_and_copied():
    array = np.array(VALUES, np.float32)
    array.flags.writeable = False
    assert as_float_map(array[::-1, ::-1]).tolist() == [[[6, 5, 4], [3, 2, 1]]]
    assert as_float_map(array.T).tolist() == [[[1, 4], [2, 5], [3, 6]]]
    found = as_float_map(array)
    found[0, 0, 0] = 9
    assert array[0, 0] == 1


def test_what_a_masked_array_hides_is_nan():
    found = as_float_map(np.ma.masked_equal(np.array(VALUES), 4))
    assert found.isnan().tolist() == [[[False] * 3, [True, False, False]]]


def test_numbers_beyond_float32_are_infinite():
    assert as_float_tensor(np.array([1e300, -1e300]), name="x").tolist() == [float("inf"), -float("inf")]


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.array([["1", "2"]]), "text"),
        (np.array([[b"1"]]), "text"),
        (np.ones((2, 2), complex), "complex numbers"),
        (np.array([[1, None]], object), "objects"),
        (np.zeros((2, 2), [("a", "f4")]), "records"),
        (np.zeros((2, 2), "V2"), "records"),
        (np.zeros((2, 2), "M8[s]"), "dates"),
        (np.ones((2, 2), bool), "truth values"),
        ([[1, 2], [3]], "rows of unequal lengths"),
        (torch.ones(2, 2, dtype=torch.complex64), "complex numbers"),
        (torch.eye(2).to_sparse(), "a sparse tensor"),
    ],
)
def test_what_is_no_real_number_is_refused_by_name(array, word):
    with pytest.raises(
        ArrayError, match=rf"Expected (real )?numbers in the array 'depth' of d\.npz, got {word}"
    ):
        as_float_map(array, source="d.npz")


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize <= 8, reason="long double is double here")
def test_long_doubles_are_refused_by_name():
    with pytest.raises(
        ArrayError,
        match=r"Expected numbers of up to 64 bits in the array 'depth' of d\.npz, got long doubles",
    ):
        as_float_map(np.ones((2, 2), np.longdouble), source="d.npz")


@pytest.mark.parametrize(
    ("shape", "maps"),
    [
        ((3, 5), (1, 3, 5)), ((3, 1), (1, 3, 1)), ((2, 3, 5), (2, 3, 5)), ((1, 3, 5), (1, 3, 5)),
        ((3, 5, 1), (1, 3, 5)), ((1, 5, 1), (1, 5, 1)), ((5, 1, 1), (5, 1, 1)), ((1, 1, 1), (1, 1, 1)),
        ((2, 1, 3, 5), (2, 3, 5)), ((2, 3, 5, 1), (2, 3, 5)), ((1, 1, 3, 5), (1, 3, 5)),
        ((1, 3, 5, 1), (1, 3, 5)),
        ((2, 1, 3, 1), (2, 3, 1)),
    ],
    ids=str,
)  # fmt: skip
def test_layouts(shape, maps):
    numbers = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    found = as_float_map(numbers)
    assert tuple(found.shape) == maps and found.flatten().tolist() == numbers.flatten().tolist()


def test_a_known_size_decides_between_layouts():
    assert tuple(as_float_map(np.ones((3, 5, 1)), size=(5, 1)).shape) == (3, 5, 1)
    assert tuple(as_float_map(np.ones((1, 5, 1)), size=(1, 5)).shape) == (1, 1, 5)
    assert tuple(as_float_map(np.ones((2, 1, 3, 1)), size=(1, 3)).shape) == (2, 1, 3)
    assert tuple(as_mask(np.ones((3, 5, 1), bool), size=(3, 5)).shape) == (1, 3, 5)


@pytest.mark.parametrize("shape", [(), (5,), (1, 1, 1, 4, 4), (2, 3, 5, 3), (1, 2, 3, 5)], ids=str)
def test_other_layouts_are_refused_by_name(shape):
    with pytest.raises(ArrayError, match=r"in the array 'depth' of d\.npz, .*got \("):
        as_float_map(np.ones(shape), source="d.npz")


@pytest.mark.parametrize(
    "given",
    [
        [[True, False]], np.array([[1, 0]]), np.array([[255, 0]], np.uint8),
        np.array([[65535, 0]], np.uint16), [[0.5, 0.49]], [[1.0, 0.0]],
    ],
)
def test_masks(given):
    found = as_mask(given)
    assert found.dtype == torch.bool and found.tolist() == [[[True, False]]]


@pytest.mark.parametrize(
    "given", [[[0, 3]], [[7, 255]], [[-1, 0]], [[0.0, 255.0]], [[float("nan"), 1.0]], [[-0.7, 1.0]]], ids=str
)
def test_other_masks_are_refused_by_name(given):
    with pytest.raises(
        ArrayError, match=r"in the array 'mask' of d\.npz, got values from .* Save it as bool"
    ):
        as_mask(given, source="d.npz")


def test_images_are_scaled_by_their_type():
    values = np.array([[[0, 51, 255]]])
    expected = torch.tensor([[[0, 0.2, 1]]])
    assert torch.equal(as_image(values.astype(np.uint8)), expected)
    assert torch.equal(as_image((values * 257).astype(">u2")), expected)
    assert torch.equal(as_image(torch.from_numpy(values.astype(np.uint8))), expected)
    assert torch.equal(as_image(expected.double()), expected)


@pytest.mark.parametrize("given", [[[[0.0, 255.0, 1.0]]], [[[0.0, 1.01, 1.0]]], [[[-0.2, 1.0, 1.0]]]])
def test_floats_outside_0_to_1_are_no_image(given):
    with pytest.raises(
        ArrayError,
        match=r"Expected floats from 0 to 1 in the array 'image' of d\.npz, got .* Divide by the full scale",
    ):
        as_image(given, source="d.npz")


def test_an_image_that_is_not_a_number_is_refused():
    with pytest.raises(ArrayError, match="Expected floats from 0 to 1 in the array 'image', got NaN"):
        as_image([[[0.0, float("nan"), 1.0]]])


def test_resampled_images_and_masks_may_overshoot():
    assert as_image([[[-0.1, 0.5, 1.2]]], overshoot=0.5).tolist() == [[[0, 0.5, 1]]]
    assert as_mask([[-0.1, 1.2]]).tolist() == [[[False, True]]]


def test_whole_numbers_without_a_full_scale_are_no_image():
    with pytest.raises(
        ArrayError, match=r"Expected 8 or 16 bits or floats from 0 to 1 in the array 'image', got int64"
    ):
        as_image([[[0, 128, 255]]])
