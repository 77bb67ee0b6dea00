"""Matrices in eight bits: what comes back, what stays exact, and files whose scales do not fit."""

import json
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from spatialweave.models.core.weights.files import WeightsError, read_header, read_tensors, write_tensors
from spatialweave.models.core.weights.int8_rows import LEAST


@pytest.fixture
def state():
    noise = torch.Generator().manual_seed(0)
    matrix = torch.randn(64, 96, generator=noise) * torch.logspace(-6, 2, 64)[:, None]
    matrix[3] = 0
    kernel = torch.randn(32, 16, 3, 3, generator=noise)
    return {
        "layer.weight": matrix, "conv.weight": kernel.half(), "layer.bias": torch.randn(64, generator=noise),
        "small": torch.randn(8, 8, generator=noise), "index": torch.arange(LEAST).view(64, -1),
    }  # fmt: skip


def test_no_value_is_off_by_more_than_half_a_step_of_its_row(state, tmp_path):
    path = write_tensors(tmp_path / "a.safetensors", state, {}, kind="test", int8=True)
    read = read_tensors(path)
    assert read.keys() == state.keys()
    for name in ("layer.weight", "conv.weight"):
        rows, back = state[name].double().flatten(1), read[name].double().flatten(1)
        step = rows.abs().amax(1, keepdim=True) / 127
        # float16 rounds what was read: by 2^-11 of it, or by half of its smallest number
        bound = step * 0.5001 + rows.abs() * 2**-11 + 2.0**-25
        assert ((back - rows).abs() <= bound).all()
        assert read[name].dtype == torch.float16
    for name in ("layer.bias", "small", "index"):
        assert torch.equal(read[name], state[name])


def test_another_reader_finds_integers_and_their_scales(state, tmp_path):
    path = write_tensors(tmp_path / "a.safetensors", state, {"note": "x"}, kind="test", int8=True)
    stored = load_file(path)
    scale = stored["layer.weight.int8_scale"].double()
    assert stored["layer.weight"].dtype == torch.int8
    exact = stored["layer.weight"].double() * scale[:, None]
    assert torch.equal(read_tensors(path)["layer.weight"], exact.half())
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"spatialweave": "test", "int8_rows": "1", "note": "x"}
    header = read_header(path)
    assert header.shapes.keys() == state.keys() and header.dtypes["conv.weight"] == "F16"


@pytest.mark.parametrize("fault", ["missing", "half", "short", "of nothing"])
def test_scales_that_do_not_fit_are_named(fault, state, tmp_path):
    path = write_tensors(tmp_path / "a.safetensors", state, {}, kind="test", int8=True)
    stored = load_file(path)
    name = "layer.weight.int8_scale"
    scale = stored.pop(name)
    if fault == "half":
        stored[name] = scale.half()
    elif fault == "short":
        stored[name] = scale[:-1]
    elif fault == "of nothing":
        del stored["layer.weight"]
        stored[name] = scale
    save_file(stored, path, metadata={"int8_rows": "1"})
    with pytest.raises(WeightsError, match=r"layer\.weight.*a\.safetensors"):
        read_tensors(path)


def test_names_like_scales_mean_nothing_in_other_files(tmp_path):
    tensors = {"a": torch.ones(4, 4, dtype=torch.int8), "a.int8_scale": torch.ones(4)}
    path = tmp_path / "a.safetensors"
    save_file(tensors, path)
    assert read_tensors(path).keys() == tensors.keys()
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert "__metadata__" not in json.loads(path.read_bytes()[8 : 8 + length])


def test_all_weights_that_ship_are_at_most_40_megabytes(pack):
    files = [name for name in pack.archive() if name.endswith(".safetensors")]
    sizes = {name: (pack.root / name).stat().st_size for name in files}
    assert sizes and sum(sizes.values()) <= 40e6, sizes
