"""Headers as others write them: what the safetensors library opens is read alike, what it refuses is refused
by name.
"""

import json
import struct

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from spatialweave.models.core.weights.files import (
    WeightsError,
    check_file,
    check_fit,
    describe,
    read_header,
    read_tensors,
)

A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
B = {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}


def write(path, header, data, pad=b""):
    """A file with any header; text is written as it is."""
    text = (header if isinstance(header, bytes) else json.dumps(header).encode()) + pad
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


GOOD = {
    "no metadata": ({"a": A}, 8, b""),
    "null metadata": ({"__metadata__": None, "a": A}, 8, b""),
    "spaces behind": ({"a": A}, 8, b"    "),
    "in another order": ({"b": B, "a": A}, 12, b""),
    "a field more": ({"a": {**A, "note": 1}}, 8, b""),
    "empty tensors": ({"e": {"dtype": "F32", "shape": [0, 3], "data_offsets": [0, 0]}, "a": A}, 8, b""),
    "an empty tensor behind": (
        {"a": A, "e": {"dtype": "F16", "shape": [5, 0], "data_offsets": [8, 8]}},
        8,
        b"",
    ),
    "a scalar": ({"s": {"dtype": "F64", "shape": [], "data_offsets": [0, 8]}}, 8, b""),
    "nothing": ({}, 0, b""),
}


@pytest.mark.parametrize("case", GOOD)
def test_what_the_library_opens_is_read_alike(tmp_path, case):
    header, size, pad = GOOD[case]
    path = write(tmp_path / "x.safetensors", header, bytes(size), pad)
    with safe_open(path, framework="pt") as file:
        wanted = {name: tuple(file.get_tensor(name).shape) for name in file.keys()}
    read = read_header(path)
    assert dict(read.shapes) == wanted and read.metadata == {}
    assert {name: tuple(value.shape) for name, value in read_tensors(path).items()} == wanted


REFUSED = {
    "a number in the metadata": (
        {"__metadata__": {"step": 7}, "a": A},
        8,
        r"metadata entry 'step' of .*x\.safetensors, got 7, .*\"7\"",
    ),
    "null in the metadata": (
        {"__metadata__": {"step": None}, "a": A},
        8,
        "metadata entry 'step' .* got null",
    ),
    "an object in the metadata": (
        {"__metadata__": {"r": {"k": 1}}, "a": A},
        8,
        "metadata entry 'r' .* got {\"k\": 1}",
    ),
    "a list as metadata": (
        {"__metadata__": ["x"], "a": A},
        8,
        r'object of texts as __metadata__ of .*x\.safetensors, got \["x"\]',
    ),
    "text as metadata": ({"__metadata__": "x", "a": A}, 8, "object of texts as __metadata__"),
    "overlapping": (
        {"a": A, "b": {**A, "data_offsets": [4, 12]}},
        12,
        r"Expected b of .* at byte 8, got 4: it overlaps the tensor before it",
    ),
    "the same bytes": ({"a": A, "b": A}, 8, "Expected b of .*: it overlaps the tensor before it"),
    "unused bytes": (
        {"a": A, "b": {**A, "data_offsets": [16, 24]}},
        24,
        "Expected b of .*: it leaves unused bytes before it",
    ),
    "before the data": ({"a": {**A, "data_offsets": [-8, 0]}}, 0, "the entry of 'a' is"),
    "backwards": ({"a": {**A, "data_offsets": [8, 0]}}, 8, "for a of .*, which is F32"),
    "too few bytes": (
        {"a": {**A, "shape": [3]}},
        8,
        r"Expected 12 bytes for a of .*, which is F32 \(3,\), got 8 in its header",
    ),
    "a fraction as side": ({"a": {**A, "shape": [2.0]}}, 8, "the entry of 'a' is"),
    "true as side": ({"a": {**A, "shape": [True, 2]}}, 8, "the entry of 'a' is"),
    "a negative side": ({"a": {**A, "shape": [-1, -2]}}, 8, "the entry of 'a' is"),
    "a side beyond counting": (
        {"a": {**A, "shape": [0, 10**30], "data_offsets": [0, 0]}},
        0,
        "the entry of 'a' is",
    ),
    "text as shape": ({"a": {**A, "shape": "22"}}, 8, "the entry of 'a' is"),
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, 8, "the entry of 'a' is"),
    "an unknown dtype": (
        {"a": {**A, "dtype": "Q4_0"}},
        8,
        r"Expected a of .*x\.safetensors in one of F64, .* got \"Q4_0\"\.",
    ),
    "no entry": ({"a": None}, 0, "the entry of 'a' is null"),
    "bytes behind the header": (
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}\0\0',
        8,
        "its header cannot be read",
    ),
    "no UTF-8": (
        b'{"a\xff":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        8,
        "its header cannot be read",
    ),
    "no JSON number": (
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,NaN]}}',
        8,
        "its header cannot be read",
    ),
    "nested too deep": (b'{"a":' + b"[" * 200_000, 8, "its header cannot be read"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_library_refuses_is_refused_by_name(tmp_path, case):
    header, size, said = REFUSED[case]
    path = write(tmp_path / "x.safetensors", header, bytes(size))
    with pytest.raises(SafetensorError), safe_open(path, framework="pt"):
        pass
    for read in (read_header, read_tensors, check_file):
        with pytest.raises(WeightsError, match=said) as error:
            read(path)
        assert "x.safetensors" in str(error.value) and str(error.value).endswith(".")


@pytest.mark.parametrize(
    "entry",
    [b'"a":%s,"a":%s', b'"b":%s,"a":{"dtype":"F32","dtype":"I32","shape":[0],"data_offsets":[0,0]},"c":%s'],
)
def test_a_name_that_occurs_twice_is_refused(tmp_path, entry):
    text = json.dumps(A).encode()
    path = write(tmp_path / "x.safetensors", b"{" + entry % (text, text) + b"}", bytes(8))
    with pytest.raises(
        WeightsError,
        match=r"Expected each name once in the header of .*x\.safetensors, got '(a|dtype)' twice",
    ):
        read_header(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"error": "no access", "code": 401}', "which is a JSON text"),
        (b'["a", "list", "of", "texts", "here"]', "which is a JSON text"),
        (b"\x93NUMPY" + bytes(90), "which is a NumPy array. Use the safetensors file"),
        (b"\x1f\x8b\x08" + bytes(90), "which is a gzip archive"),
        (b"\x89PNG\r\n\x1a\n" + bytes(90), "which is a PNG image"),
    ],
)
def test_other_files_under_this_name_are_called_what_they_are(tmp_path, content, said):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=rf"x\.safetensors, {said}"):
        read_header(tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "renamed.safetensors"])
@pytest.mark.parametrize("indent", [None, 2])
def test_the_index_of_a_model_in_parts_names_them(tmp_path, name, indent):
    parts = {f"layer.{i}.weight": f"model-0000{i % 5 + 1}-of-00005.safetensors" for i in range(10)}
    (tmp_path / name).write_text(
        json.dumps({"metadata": {"total_size": 9}, "weight_map": parts}, indent=indent)
    )
    with pytest.raises(
        WeightsError,
        match=r"is the index of a model saved in 5 parts \(model-00001-of-00005.safetensors, .* Join the",
    ):
        read_header(tmp_path / name)


@pytest.mark.parametrize(
    ("prefix", "makers"),
    [
        ("module.", "saved from DataParallel or Dist"),
        ("_orig_mod.", "saved from torch.compile, with"),
        ("module._orig_mod.", " inside torch"),
    ],
)
def test_what_a_wrapper_put_before_all_names_is_told(tmp_path, prefix, makers):
    state = {
        f"{prefix}decoder.conv_in.weight": torch.zeros(1),
        f"{prefix}encoder.conv_in.weight": torch.zeros(1),
    }
    save_file(state, tmp_path / "x.safetensors")
    said = describe(read_header(tmp_path / "x.safetensors"))
    assert (
        said.startswith("an image autoencoder (VAE) saved from ") and makers in said and f'"{prefix}"' in said
    )
    with pytest.raises(WeightsError, match=f'with "{prefix}" before every name'):
        check_fit({"decoder.conv_in.weight": (1,)}, {name: (1,) for name in state}, "x.safetensors")
    save_file(
        {**state, "step": torch.zeros(1)}, tmp_path / "x.safetensors"
    )  # not every name: no wrapper's work
    assert describe(read_header(tmp_path / "x.safetensors")) == "an image autoencoder (VAE)"


def test_one_part_of_several_is_told_where_something_is_missing():
    with pytest.raises(
        WeightsError, match=r"1 tensors missing .first: b.; it is part 2 of 3 of one model, so join all parts"
    ):
        check_fit({"a": (1,), "b": (1,)}, {"a": (1,)}, "model-00002-of-00003.safetensors")
    with pytest.raises(WeightsError, match=r"1 tensors missing .first: b.\.$"):
        check_fit({"a": (1,), "b": (1,)}, {"a": (1,)}, "model-00001-of-00001.safetensors")
