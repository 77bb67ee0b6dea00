"""Weights files: what is written comes back, and what is not a good file is called by its name."""

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from spatialweave.models.core.weights.files import (
    Header,
    WeightsError,
    check_fit,
    describe,
    describe_keys,
    fill_module,
    read_header,
    read_tensors,
    write_tensors,
)

STATE = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2, dtype=torch.bfloat16)}


@pytest.fixture
def good(tmp_path):
    return write_tensors(tmp_path / "folder" / "good.safetensors", STATE, {"note": "kept"}, kind="test part")


def test_written_tensors_and_metadata_come_back(good):
    header, tensors = read_header(good), read_tensors(good)
    assert header.shapes == {"weight": (2, 3), "bias": (2,)} and header.dtypes == {
        "weight": "F32",
        "bias": "BF16",
    }
    assert header.metadata == {"spatialweave": "test part", "note": "kept"}
    assert all(
        torch.equal(tensors[name], value) and tensors[name].dtype == value.dtype
        for name, value in STATE.items()
    )
    assert describe(header) == "SpatialWeave's test part"
    assert not list(good.parent.glob("*.part"))


def test_a_failed_write_leaves_the_old_file_and_says_why(good, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(OSError, match=r"Cannot write .*new\.safetensors: File exists"):
        write_tensors(blocked / "new.safetensors", STATE, {}, kind="x")
    with pytest.raises(OSError, match="Cannot write"):
        write_tensors(blocked / "deeper" / "new.safetensors", STATE, {}, kind="x")
    good.with_name("good.safetensors.part").mkdir()  # the partial file cannot be made
    with pytest.raises(OSError, match="Cannot write"):
        write_tensors(good, {"other": torch.zeros(1)}, {}, kind="x")
    assert set(load_file(good)) == set(STATE)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"",
            r"Expected a safetensors file, got .*model\.safetensors of only 0 bytes: a download "
            "was probably interrupted",
        ),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "is a Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"PK\x03\x04" + bytes(40), r"is a PyTorch pickle \(zip\)"),
        (b"\x80\x02}q\x00" + bytes(40), "is a PyTorch pickle, which can run code"),
        (b"GGUF" + bytes(40), "is a GGUF file"),
        (b"something else entirely, and long", "which is damaged or of another kind"),
        (struct.pack("<Q", 10) + b'{"a": [1]}', "its header cannot be read"),
        (struct.pack("<Q", 2) + b"[]", "its header cannot be read"),
    ],
    ids=["empty", "lfs", "html", "zip", "pickle", "gguf", "text", "header", "list"],
)
def test_what_is_not_safetensors_is_named(tmp_path, content, said):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=said):
        read_header(path)


def test_missing_file_folder_and_lengths_are_named(good, tmp_path):
    with pytest.raises(WeightsError, match=r"nothing.safetensors, got no file of this name. Check the path"):
        read_header(tmp_path / "nothing.safetensors")
    with pytest.raises(WeightsError, match="got a folder. Name the file inside"):
        read_header(tmp_path)
    whole = good.read_bytes()
    good.write_bytes(whole[:-3])
    cut = rf"Expected {len(whole)} bytes in .*, got {len(whole) - 3}: it is cut off. Download it again"
    with pytest.raises(WeightsError, match=cut):
        read_header(good)
    good.write_bytes(whole + b"more")
    with pytest.raises(
        WeightsError,
        match=r"Expected 220 bytes in .*good\.safetensors, as its header promises, got 224: it is damaged",
    ):
        read_header(good)


def test_lengths_that_look_like_other_formats_are_still_safetensors(tmp_path):
    """The first byte of a safetensors file is the low byte of its header's length, which may be '<' or 0x80.
    """
    seen = set()
    for size in range(0, 300, 4):
        path = tmp_path / f"{size}.safetensors"
        save_file({"x": torch.zeros(1)}, path, metadata={"pad": "p" * size})
        read_header(path)
        seen.add(path.read_bytes()[0])
    assert 0x80 in seen


def test_a_file_damaged_behind_a_good_header_is_named(good):
    raw = good.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header["weight"]["shape"] = [2, 4]
    text = json.dumps(header).encode()
    good.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
    for read in (read_header, read_tensors):
        with pytest.raises(
            WeightsError,
            match=r"Expected 32 bytes for weight of .*, which is F32 \(2, 4\), got 24 in its header. "
            "The file is damaged",
        ):
            read(good)


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        (
            ["dit.depth_in.weight", "dit.double_stream_modulation_depth.lin.weight", "dit.img_in.weight"],
            "a Modality Forcing network",
        ),
        (
            ["double_stream_modulation_img.lin.weight", "double_blocks.0.img_attn.qkv.weight"],
            "a FLUX.2 text-to-image network",
        ),
        (["model.diffusion_model.double_stream_modulation_img.lin.weight"], "a FLUX.2 text-to-image network"),
        (["double_blocks.0.img_mod.lin.weight", "double_blocks.0.img_attn.qkv.weight"], "a FLUX.1 network"),
        (["transformer.single_blocks.0.linear1.lora_A.weight"], "a LoRA"),
        (
            ["aggregator.frame_blocks.0.attn.qkv.weight", "camera_head.trunk.0.attn.qkv.weight"],
            "a VGGT geometry encoder",
        ),
        (
            ["decoder.conv_in.weight", "encoder.conv_in.weight", "bn.running_mean"],
            "a FLUX.2 image autoencoder",
        ),
        (["decoder.conv_in.weight", "encoder.conv_in.weight"], "an image autoencoder"),
        (["model.layers.0.self_attn.q_proj.weight"], "a language model"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "a Stable Diffusion checkpoint"),
        (["b", "a.weight"], "a file of an unknown kind with 2 tensors, the first named a.weight"),
        ([], "a file of an unknown kind with 0 tensors"),
    ],
)  # fmt: skip
def test_files_are_recognised_by_their_keys(keys, name):
    assert describe_keys(keys).startswith(name)
    assert describe(Header({key: (1,) for key in keys}, {}, {})) == describe_keys(keys)


def test_fill_module_takes_the_modules_precision_and_nothing_else():
    layers = torch.nn
    module = layers.ModuleDict(
        {"a": layers.Bilinear(2, 1, 3, device="meta", dtype=torch.bfloat16), "b": layers.PReLU(device="meta")}
    )
    state = {"a.weight": torch.rand(3, 2, 1), "a.bias": torch.rand(3), "b.weight": torch.rand(1)}
    fill_module(module, state, what="It")
    assert {name: value.dtype for name, value in module.state_dict().items()} == {
        "a.weight": torch.bfloat16, "a.bias": torch.bfloat16, "b.weight": torch.float32,
    }  # fmt: skip
    assert torch.equal(module["a"].weight, state["a.weight"].bfloat16()) and module["b"].weight.requires_grad


def test_a_bad_fit_is_counted_and_named():
    wanted, got = {"a": (1,), "b": (2,), "c": (3,)}, {"b": (2, 2), "c": (3,), "d": (4,), "e": (5,)}
    with pytest.raises(WeightsError) as error:
        check_fit(wanted, got, "my.safetensors")
    assert str(error.value) == (
        "Expected the tensors of this network in my.safetensors, got others: 1 tensors "
        "missing (first: a); 2 tensors unknown (first: d); "
        "1 tensors of another shape (first: b is (2, 2), expected (2,))."
    )
