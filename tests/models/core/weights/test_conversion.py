"""Files converted block by block: same names, aligned tensors, kept metadata, whole or not at all, in little
memory.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spatialweave.models.core.weights import conversion
from spatialweave.models.core.weights.conversion import convert_file
from spatialweave.models.core.weights.files import WeightsError, read_header
from spatialweave.models.core.weights.quantization import FORMATS, largest_magnitude
from spatialweave.models.core.weights.quantized_header import LAYERS, find_quantized_layers, plain_header

LARGEST = 2**26  # values of the one big tensor: 128 MiB in bfloat16


def make_state():
    generator = torch.Generator().manual_seed(0)
    return {
        "a.layer.weight": torch.randn(400, 64, generator=generator),
        "a.layer.bias": torch.randn(7, generator=generator),
        "a.norm.scale": torch.randn(5, generator=generator).bfloat16(),
        "alpha": torch.randn(1, generator=generator).half(),
        "odd.weight": torch.randn(24, 10, generator=generator),
        "none.weight": torch.zeros(0, 16),
    }


@pytest.fixture
def source(tmp_path):
    save_file(make_state(), tmp_path / "source.safetensors", metadata={"note": "kept", "config": "{}"})
    return tmp_path / "source.safetensors"


def plan(state, form):
    return {name: form if name == "a.layer.weight" else torch.bfloat16 for name in state}


@pytest.mark.parametrize("block", [128 * 64, 2**21])
@pytest.mark.parametrize("form", FORMATS)
def test_what_is_written_is_what_the_format_says(source, tmp_path, monkeypatch, form, block):
    monkeypatch.setattr(conversion, "BLOCK", block)  # small blocks: the matrix comes in four
    state, seen = make_state(), []
    target = convert_file(
        source,
        tmp_path / "x" / "out.safetensors",
        plan(state, form),
        {"added": "1"},
        lambda *done: seen.append(done),
    )
    read, header = load_file(target), read_header(target)
    matrix = state["a.layer.weight"]
    made = FORMATS[form].quantize(matrix, largest_magnitude(matrix))
    assert set(read) == {*state} | {f"a.layer.{suffix}" for suffix in made}
    for suffix, value in made.items():
        assert torch.equal(
            read[f"a.layer.{suffix}"].reshape(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8)
        ), suffix
    for name in set(state) - {"a.layer.weight"}:
        assert torch.equal(read[name], state[name].bfloat16()), name
    assert header.metadata["note"] == "kept" and header.metadata["added"] == "1"
    assert json.loads(header.metadata[LAYERS])["layers"] == {"a.layer": FORMATS[form].describe(matrix.shape)}
    assert seen[-1][0] == seen[-1][1] == sum(value.numel() * value.itemsize for value in state.values())
    assert not list(target.parent.glob("*.part"))


def test_plain_precisions_need_no_description(source, tmp_path):
    state = make_state()
    wanted = dict.fromkeys(state, torch.bfloat16) | {"a.layer.bias": torch.float32}
    target = convert_file(source, tmp_path / "out.safetensors", wanted, {})
    assert LAYERS not in read_header(target).metadata
    assert all(torch.equal(value, state[name].to(wanted[name])) for name, value in load_file(target).items())


def test_tensors_are_aligned_to_their_size(source, tmp_path):
    target = convert_file(source, tmp_path / "out.safetensors", plan(make_state(), "nvfp4"), {})
    header = read_header(target)
    sizes = {"F32": 4, "BF16": 2, "U8": 1, "F8_E4M3": 1}
    assert all(start % sizes[header.dtypes[name]] == 0 for name, (start, _) in header.byte_ranges.items())


@pytest.mark.parametrize("form", FORMATS)
def test_the_header_tells_what_the_layers_stand_for(source, tmp_path, form):
    target = convert_file(source, tmp_path / "out.safetensors", plan(make_state(), form), {})
    header = read_header(target)
    plain = plain_header(target, header)
    assert plain.shapes == {name: tuple(value.shape) for name, value in make_state().items()}
    assert find_quantized_layers(target, header) == {"a.layer": FORMATS[form].describe((400, 64))["format"]}
    assert plain_header(source, read_header(source)) == read_header(source)


def test_every_way_core_marks_a_quantised_layer_is_read(tmp_path):
    matrix, scale = torch.zeros(4, 6, dtype=torch.float8_e4m3fn), torch.ones(())
    mark = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    files = {
        "mark": {"x.weight": matrix, "x.weight_scale": scale, "x.comfy_quant": mark},
        "old": {
            "x.weight": matrix,
            "x.scale_weight": scale,
            "x.scale_input": scale.clone(),
            "scaled_fp8": torch.zeros(2),
        },
    }
    for name, state in files.items():
        save_file(state, tmp_path / name)
        plain = plain_header(tmp_path / name, read_header(tmp_path / name))
        assert plain.shapes == {"x.weight": (4, 6)} and plain.dtypes == {"x.weight": "F8_E4M3"}, name


def described(layers):
    return {LAYERS: json.dumps({"layers": layers})}


@pytest.mark.parametrize(
    ("state", "metadata", "said"),
    [
        (
            {"x.weight": torch.zeros(2, 2)},
            described({"x": {"format": "q4_k"}}),
            "Expected layer x of .* in one of the formats fl.*, got q4_k",
        ),
        (
            {"x.weight": torch.zeros(2, 2)},
            described({"x": {"format": "int8_tensorwise"}}),
            "Expected x.weight_scale in",
        ),
        (
            {"x.weight": torch.zeros(2, 2), "x.weight_scale": torch.ones(())},
            described({"x": {"format": "int8_tensorwise"}}),
            "Expected a matrix of I8 as the weight of layer x of .*file in int8_tensorwise, got "
            r"F32 \(2, 2\)",
        ),
        (
            {"x.weight": torch.zeros(2, 2)},
            described([1]),
            "to state how it is quantized, got an unreadable statement",
        ),
        (
            {"x.comfy_quant": torch.zeros(3, dtype=torch.uint8)},
            None,
            "to state how it is quantized, got an unreadable statement",
        ),
    ],
)
def test_a_quantised_file_that_cannot_be_read_is_named(tmp_path, state, metadata, said):
    save_file(state, tmp_path / "file", metadata=metadata)
    with pytest.raises(WeightsError, match=said):
        plain_header(tmp_path / "file", read_header(tmp_path / "file"))


def test_what_cannot_be_converted_is_refused_and_leaves_nothing(source, tmp_path):
    state = make_state()
    target = tmp_path / "new" / "out.safetensors"
    quantised = convert_file(source, tmp_path / "q.safetensors", plan(state, "int8"), {})
    with pytest.raises(
        WeightsError,
        match="Expected an unquantized source, got .*q.safetensors with a.layer.weight in I8: it is "
        "quantized already",
    ):
        convert_file(quantised, target, dict.fromkeys(read_header(quantised).shapes, "fp8"), {})
    with pytest.raises(WeightsError, match="which exists. Choose another name"):
        convert_file(source, quantised, plan(state, "fp8"), {})
    state["a.layer.weight"][300, 3] = float("inf")
    save_file(state, source)
    for form in FORMATS:
        with pytest.raises(
            WeightsError,
            match="Expected convertible numbers in a.layer.weight of .*source.safetensors, got a "
            "fault: it holds NaN or infinity",
        ):
            convert_file(source, target, plan(state, form), {})
    assert not list(target.parent.iterdir())


def test_an_interrupted_conversion_leaves_nothing(source, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_file(source, tmp_path / "new" / "out.safetensors", plan(make_state(), "fp8"), {}, stop)
    assert not list((tmp_path / "new").iterdir())


def test_a_full_disk_is_said_before_anything_is_written(source, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10})())
    with pytest.raises(
        OSError, match=r"Cannot write .*out\.safetensors: it needs 0.0 GB, and 0.0 GB are free"
    ):
        convert_file(source, tmp_path / "out.safetensors", plan(make_state(), "fp8"), {})


@pytest.fixture(scope="module")
def big_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("big")
    for name, rows in (("small", 1024), ("large", LARGEST // 4096)):
        save_file(
            {"x.weight": torch.full((rows, 4096), 0.5, dtype=torch.bfloat16)}, folder / f"{name}.safetensors"
        )
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="the measure is Unix's")
@pytest.mark.parametrize("form", FORMATS)
def test_memory_does_not_grow_with_the_tensor(big_files, tmp_path, form):
    """Asked for: a peak below 1.5 times the largest tensor and a constant.

    The file is read in blocks: most of it is the constant.
    """
    script = Path(__file__).with_name("inside_conversion.py")
    call = [
        sys.executable,
        "-I",
        str(script),
        str(big_files / "small.safetensors"),
        str(big_files / "large.safetensors"),
        form,
    ]
    rise = int(subprocess.run([*call, str(tmp_path)], capture_output=True, check=True, text=True).stdout)
    assert rise < 0.5 * LARGEST * 2
