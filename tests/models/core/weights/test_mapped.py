"""Tensors read as views of a mapped file: the library's values, and nothing left behind."""

import gc
import os
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from spatialweave.models.core.weights.files import WeightsError, check_file, read_tensors
from spatialweave.models.core.weights.mapped import DTYPES

READS = 100


def test_every_dtype_reads_as_the_library_reads_it(tmp_path):
    codes = torch.arange(96, dtype=torch.uint8)
    state = {
        f"as {name}": codes.view(dtype).reshape(-1, 3).clone()
        for name, dtype in DTYPES.items()
        if name != "BOOL"
    }
    state |= {"bool": codes > 40, "one": torch.tensor(7.0), "none": torch.zeros(0, 3)}
    state |= {"left to the library": codes.view(torch.uint16), "complex": torch.full((2,), 1 + 2j)}
    save_file(state, tmp_path / "a.safetensors")
    found, expected = (
        read_tensors(tmp_path / "a.safetensors", finite=False), load_file(tmp_path / "a.safetensors"),
    )
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        assert value.ndim == 0 or torch.equal(found[name].view(torch.uint8), value.view(torch.uint8))
    assert found["one"] == 7


def test_a_tensor_that_is_written_to_leaves_the_file_as_it_is(tmp_path):
    save_file({"weight": torch.ones(4)}, tmp_path / "a.safetensors")
    read_tensors(tmp_path / "a.safetensors")["weight"].zero_()
    assert read_tensors(tmp_path / "a.safetensors")["weight"].tolist() == [1.0] * 4


@pytest.mark.parametrize("read", [read_tensors, check_file])
def test_reading_again_and_again_leaves_nothing_in_memory(read, tmp_path):
    """With the safetensors library two integers a tensor stay, 4000 objects here."""
    save_file({f"layer {number}": torch.ones(400) for number in range(20)}, tmp_path / "a.safetensors")

    def count():
        for _ in range(READS):
            read(tmp_path / "a.safetensors")
        gc.collect()
        return sys.getallocatedblocks()

    warm = count()
    assert count() - warm < 4 * READS


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names that are not UTF-8")
def test_a_name_that_is_not_utf_8_is_a_sentence(tmp_path):
    path = tmp_path / os.fsdecode(b"\xe9.safetensors")
    save_file({"weight": torch.ones(4)}, tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").rename(path)
    with pytest.raises(
        WeightsError, match=r"Expected a file name in UTF-8, got .*\.safetensors\. Rename it\."
    ):
        read_tensors(path)
