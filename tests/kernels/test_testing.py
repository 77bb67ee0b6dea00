"""The comparison must fail where it should: a test tool that always passes tests nothing."""

import pytest
import torch

from spatialweave.kernels.testing import (
    BAND,
    TOLERANCES,
    GuardedMemory,
    assert_close,
    nan_filled,
    poisoned_memory,
)


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


@pytest.mark.parametrize("beside", [None, -1, 12, -BAND, 11 + BAND])
def test_guarded_memory_is_poisoned_and_sees_a_write_beside_it(beside):
    with GuardedMemory() as memory:
        made = [torch.empty(4, 3, dtype=torch.bfloat16), torch.empty_like(torch.ones(3, 4).T)]
        assert torch.empty(3, dtype=torch.int32).numel() == 3
    assert (
        [tuple(tensor.stride()) for tensor in made] == [(3, 1), (1, 4)]
        and all(bool(tensor.isnan().all()) for tensor in made)
    )
    if beside is not None:
        made[0].as_strided((1,), (1,), BAND + beside).fill_(1.0)
    assert len(memory.buffers) == 2 and memory.is_intact() == (beside is None)


def test_memory_that_nobody_took_is_not_intact():
    with GuardedMemory() as memory:
        pass
    assert not memory.is_intact()
