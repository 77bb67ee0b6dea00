"""NaN and infinity are refused at loading, in every type that has them, by file and tensor."""

import math

import pytest
import torch
from safetensors.torch import save_file

from spatialweave.models.core.training.checkpoint import load_checkpoint, save_checkpoint
from spatialweave.models.core.weights.files import (
    WeightsError,
    check_file,
    check_finite,
    fill_module,
    is_finite,
    read_tensors,
)

WIDE = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64)
SMALL = (
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("place", [0, 7, 34])
def test_one_bad_number_is_found_wherever_it_is(dtype, bad, place):
    value = torch.linspace(-3, 3, 35).to(dtype)
    assert is_finite(value) and is_finite(value.reshape(5, 7).T)
    value[place] = bad
    assert not is_finite(value) and not is_finite(value.reshape(5, 7).T)


@pytest.mark.parametrize("dtype", SMALL, ids=str)
def test_every_code_of_the_small_floats_is_judged_as_torch_reads_it(dtype):
    codes = torch.arange(256, dtype=torch.uint8)
    wanted = codes.view(dtype).float().isfinite()
    assert [is_finite(codes[i : i + 1].view(dtype)) for i in range(256)] == wanted.tolist()
    good = codes[wanted].repeat(3)
    assert is_finite(good.view(dtype))
    for code in codes[~wanted]:
        assert not is_finite(torch.cat([good, code[None], good]).view(dtype)), int(code)


def test_what_has_no_such_numbers_is_let_through():
    for value in (
        torch.tensor([2**31 - 1, -1]),
        torch.tensor([True]),
        torch.full((3,), 255, dtype=torch.uint8),
        torch.zeros(0),
    ):
        assert is_finite(value)
    largest = torch.finfo(torch.float16).max
    assert is_finite(torch.full((9,), largest, dtype=torch.float16)) and is_finite(torch.full((9,), -3e38))


def test_the_file_the_tensor_and_the_numbers_are_named(tmp_path):
    bad = torch.ones(2, 3, dtype=torch.bfloat16)
    bad[1, 2], bad[0, 0], bad[0, 1] = math.nan, math.inf, -math.inf
    save_file({"good.weight": torch.ones(2), "bad.weight": bad}, tmp_path / "my.safetensors")
    for read in (read_tensors, check_file):
        with pytest.raises(WeightsError) as error:
            read(tmp_path / "my.safetensors")
        said = (
            f"Expected finite numbers in bad.weight of {tmp_path / 'my.safetensors'}, got 1 NaN "
            "and 2 infinite of 6. Use another file"
        )
        assert str(error.value).startswith(said)
    assert torch.equal(read_tensors(tmp_path / "my.safetensors", finite=False)["good.weight"], torch.ones(2))


def test_a_mark_may_hold_anything():
    check_finite({"scaled_fp8": torch.full((2,), 0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn)}, "x")


def test_a_checkpoint_with_nan_is_refused(tmp_path):
    folder = save_checkpoint(tmp_path, 3, {"model": {"w": torch.tensor([1.0, math.nan])}}, {}, keep=2)
    with pytest.raises(
        ValueError,
        match=(
            r"Expected finite numbers in w of .*model\.safetensors, "
            r"got 1 NaN of 2.*Use an older checkpoint"
        ),
    ):
        load_checkpoint(folder, ("model",))


def test_integers_do_not_pass_for_fractions():
    module = torch.nn.BatchNorm1d(2, device="meta")
    state = {
        "weight": torch.ones(2),
        "bias": torch.ones(2),
        "running_mean": torch.ones(2),
        "running_var": torch.ones(2),
    }
    state["num_batches_tracked"] = torch.tensor(3)
    fill_module(module, state, what="x.safetensors")
    with pytest.raises(
        WeightsError,
        match=r"Expected floating-point numbers in bias of x\.safetensors, got int8",
    ):
        fill_module(module, state | {"bias": torch.ones(2, dtype=torch.int8)}, what="x.safetensors")
