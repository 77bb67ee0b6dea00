"""The comparison must fail where it should: a test tool that always passes tests nothing."""

import pytest
import torch

from spatialweave.kernels.testing import TOLERANCES, assert_close, nan_filled, poisoned_memory


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_assert_close_accepts_and_rejects_around_the_tolerance(dtype):
    rtol, atol = TOLERANCES[dtype]
    one = torch.ones(3, 5, dtype=torch.float64)
    assert_close(one + 0.9 * (rtol + atol), one, dtype=dtype)
    with pytest.raises(AssertionError, match=r"first at \(0, 0\)"):
        assert_close(one + 1.2 * (rtol + atol), one, dtype=dtype)


def test_assert_close_rejects_nan_and_shape():
    with pytest.raises(AssertionError, match="nan"):
        assert_close(nan_filled(2), torch.zeros(2))
    with pytest.raises(AssertionError, match="shape"):
        assert_close(torch.zeros(2, 1), torch.zeros(2))
    with pytest.raises(AssertionError):
        assert_close(torch.tensor([1, 2]), torch.tensor([1, 3]))


def test_assert_close_takes_the_coarser_dtype():
    exact = torch.linspace(0.1, 1, 7)
    assert_close(exact.bfloat16(), exact)


def test_poisoned_memory_fills_and_restores():
    before = torch.are_deterministic_algorithms_enabled()
    with poisoned_memory():
        assert torch.empty(4, 3).isnan().all()
    assert torch.are_deterministic_algorithms_enabled() == before
