"""`spatialweave convert`: the right layers in the right precision, and what is no network refused by name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from spatialweave.models.cli import console as cli
from spatialweave.models.cli import convert
from spatialweave.models.core.weights.files import WeightsError, read_header
from spatialweave.models.core.weights.quantization import FORMATS
from spatialweave.models.core.weights.quantized_header import find_quantized_layers, plain_header
from spatialweave.models.modality_forcing.config import PRESETS, ModalityForcingConfig
from spatialweave.models.modality_forcing.quantize import CHOICES, convert_network, plan_precisions
from spatialweave.models.modality_forcing.weights import load_network, network_shapes, save_network

# widths that every format can hold
WIDE = ModalityForcingConfig(
    in_channels=16, context_in_dim=32, hidden_size=64, num_heads=2, axes_dim=(8, 8, 8, 8),
    num_double_blocks=1, num_single_blocks=2,
    num_depth_decoder_blocks=1, mlp_ratio=3.0, depth_patch=4, depth_channels=16, time_embed_dim=32,
)  # fmt: skip


@pytest.fixture
def saved(tmp_path, make_network):
    return save_network(
        tmp_path / "network.safetensors", make_network(WIDE), WIDE, {"trained": "never"}, dtype=torch.bfloat16
    )


def test_the_command_offers_what_there_is():
    assert list(CHOICES) == convert.WEIGHT_FORMATS


def test_bf16_keeps_the_depth_head_in_float32(saved, tmp_path):
    target = convert_network(saved, tmp_path / "out.safetensors", "bf16")
    before, after = load_file(saved), load_file(target)
    assert set(before) == set(after)
    for name, value in after.items():
        assert value.dtype == (torch.float32 if "depth_final_layer" in name else torch.bfloat16), name
        assert torch.equal(value.float(), before[name].float()), name
    network, config = load_network(target)
    assert config == WIDE and read_header(target).metadata["trained"] == "never"


@pytest.mark.parametrize("form", FORMATS)
def test_the_blocks_are_quantised_and_nothing_else(saved, tmp_path, form):
    target = convert_network(saved, tmp_path / "out.safetensors", form)
    header = read_header(target)
    layers = find_quantized_layers(target, header)
    matrices = {name for name, shape in network_shapes(WIDE).items() if "blocks." in name and len(shape) == 2}
    assert set(layers) == {f"dit.{name.removesuffix('.weight')}" for name in matrices}
    plain = plain_header(target, header)
    assert plain.shapes == read_header(saved).shapes
    for name, dtype in plain.dtypes.items():
        quantised = name.removeprefix("dit.") in matrices
        assert quantised or dtype == ("F32" if "depth_final_layer" in name else "BF16"), name
    assert target.stat().st_size < saved.stat().st_size


def test_a_file_without_metadata_gains_its_configuration(saved, tmp_path):
    save_file(load_file(saved), tmp_path / "bare.safetensors")
    target = convert_network(tmp_path / "bare.safetensors", tmp_path / "out.safetensors", "int8")
    stated = json.loads(read_header(target).metadata["config"])
    assert ModalityForcingConfig.from_json(stated).hidden_size == 64


def test_the_9b_network_shrinks_to_what_the_docs_say():
    shapes = network_shapes(PRESETS["klein_9b"])
    size = {"fp8": 1, "int8": 1, "nvfp4": 9 / 16}
    for form, gigabytes in (("bf16", 24.0), ("fp8", 12.7), ("int8", 12.7), ("nvfp4", 7.7)):
        plan = plan_precisions(shapes, form)
        bytes_of = {
            name: size[kind] if isinstance(kind, str) else kind.itemsize for name, kind in plan.items()
        }
        total = sum(torch.Size(shape).numel() * bytes_of[name] for name, shape in shapes.items())
        assert abs(total / 1e9 - gigabytes) < 0.05, form


def test_what_is_no_network_is_refused(saved, tmp_path):
    save_file({"double_stream_modulation_img.lin.weight": torch.zeros(2, 2)}, tmp_path / "klein.safetensors")
    with pytest.raises(
        WeightsError,
        match=r"Expected a Modality Forcing network \(keys dit.depth_in\.weight and others\), got "
        r".*klein\.safetensors, which is a FLUX.2 text-to-image network without a depth stream",
    ):
        convert_network(tmp_path / "klein.safetensors", tmp_path / "out.safetensors", "fp8")
    quantised = convert_network(saved, tmp_path / "q.safetensors", "fp8")
    with pytest.raises(
        WeightsError,
        match=r"Expected an unquantized Modality Forcing network, got .*q\.safetensors, which is quantized",
    ):
        convert_network(quantised, tmp_path / "out.safetensors", "int8")
    with pytest.raises(WeightsError, match="Expected one of the formats bf16, fp8, int8, nvfp4, got 'q4'"):
        convert_network(saved, tmp_path / "out.safetensors", "q4")
    with pytest.raises(WeightsError, match="which is quantized. Load it through ComfyUI"):
        load_network(quantised)


def test_the_command_says_what_it_wrote_and_refuses_to_overwrite(saved, tmp_path, capsys):
    target = tmp_path / "out.safetensors"
    assert cli.main(["convert", str(saved), str(target), "--format", "int8"]) == 0
    assert (
        f"{target}: {target.stat().st_size:,} bytes, from {saved.stat().st_size:,}" in capsys.readouterr().out
    )
    assert cli.main(["convert", str(saved), str(target), "--format", "int8"]) == 1
    assert "which exists. Choose another name" in capsys.readouterr().err
