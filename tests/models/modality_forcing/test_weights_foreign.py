"""Network files as other programs leave them: wrapped, in parts, with other metadata or types; read right, or
called what they are.
"""

import json
import math
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from spatialweave.models.core.weights.files import WeightsError, read_header
from spatialweave.models.modality_forcing.config import ModalityForcingConfig
from spatialweave.models.modality_forcing.quantize import convert_network
from spatialweave.models.modality_forcing.weights import load_network, save_network

# equal rotary axes and released constants: what shapes alone can tell
PLAIN = ModalityForcingConfig(
    in_channels=6, context_in_dim=10, hidden_size=32, num_heads=2, axes_dim=(4, 4, 4, 4), num_double_blocks=1,
    num_single_blocks=2,
    num_depth_decoder_blocks=1, mlp_ratio=2.0, depth_patch=4, depth_channels=16, time_embed_dim=32,
)  # fmt: skip


@pytest.fixture(scope="module")
def state(make_network):
    return {f"dit.{name}": value for name, value in make_network(PLAIN).state_dict().items()}


def assert_loads(path, state, dtype=torch.float32):
    network, config = load_network(path)
    assert config == PLAIN
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[f"dit.{name}"].to(value.dtype)), name
    assert network.img_in.weight.dtype == dtype


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "model.", "model.diffusion_model.", "diffusion_model."],
)
@pytest.mark.parametrize("kept", ["dit.", ""])
def test_what_wrappers_put_before_all_names_is_taken_off(tmp_path, state, prefix, kept):
    save_file(
        {prefix + kept + name.removeprefix("dit."): value for name, value in state.items()},
        tmp_path / "x.safetensors",
    )
    assert_loads(tmp_path / "x.safetensors", state)
    convert_network(tmp_path / "x.safetensors", tmp_path / "converted.safetensors", "bf16")
    rounded = {name: value if "depth_final" in name else value.bfloat16() for name, value in state.items()}
    assert_loads(tmp_path / "converted.safetensors", rounded, torch.bfloat16)


def test_blocks_compiled_by_themselves_load(tmp_path, state):
    save_file(
        {name.replace("blocks.0.", "blocks.0._orig_mod."): value for name, value in state.items()},
        tmp_path / "x.safetensors",
    )
    assert_loads(tmp_path / "x.safetensors", state)


def test_other_prefixes_and_two_sets_of_weights_are_named(tmp_path, state):
    path = tmp_path / "x.safetensors"
    save_file({f"student.{name}": value for name, value in state.items()}, path)
    with pytest.raises(
        WeightsError,
        match=r"Expected the keys dit.depth_in\.weight and others in .*x\.safetensors, got a "
        'Modality Forcing network with "student.dit." before its names',
    ):
        load_network(path)
    save_file(state | {f"module.{name}": value.clone() for name, value in state.items()}, path)
    with pytest.raises(WeightsError, match="tensors unknown .first: module.dit."):
        load_network(path)
    save_file(state | {"img_in.weight": state["dit.img_in.weight"].clone()}, path)
    said = r"Expected one img_in\.weight in .*x\.safetensors, got 'dit\.img_in\.weight' and 'img_in\.weight'"
    with pytest.raises(WeightsError, match=said):
        load_network(path)


@pytest.mark.parametrize("part", [1, 2, 3])
@pytest.mark.parametrize("stated", [True, False])
def test_one_part_of_several_is_said_to_be(tmp_path, state, make_network, part, stated):
    path = tmp_path / f"model-0000{part}-of-00003.safetensors"
    whole = read_header(save_network(tmp_path / "whole.safetensors", make_network(PLAIN), PLAIN))
    names = sorted(state)
    size = -(-len(names) // 3)
    share = names[size * (part - 1) : size * part]
    save_file({name: state[name] for name in share}, path, metadata=dict(whole.metadata) if stated else None)
    with pytest.raises(
        WeightsError, match=rf"{path.name}, which .*; it is part {part} of 3 of one model, so join all parts"
    ):
        load_network(path)
    with pytest.raises(WeightsError, match=f"it is part {part} of 3 of one model"):
        convert_network(path, tmp_path / "out.safetensors", "fp8")


FOREIGN = [
    '{"_class_name": "Flux2Transformer2DModel", "hidden_size": 7}',
    "{}",
    "[]",
    "not JSON",
    "{",
    '{"num_single_blocks": 1e9}',
    "7",
]


@pytest.mark.parametrize(
    "config", [*FOREIGN, '{"num_single_blocks": 1000000000}', '{"hidden_size": "32"}', "[" * 100_000]
)
def test_another_programs_config_does_not_count_where_the_shapes_tell_all(tmp_path, state, config):
    save_file(state, tmp_path / "x.safetensors", metadata={"config": config})
    assert_loads(tmp_path / "x.safetensors", state)


def test_a_config_without_our_name_counts_where_it_fits(tmp_path, make_network, small_config):
    network = make_network(small_config)  # its axes are not those that the shapes would be taken for
    save_file(
        dict(network.state_dict()),
        tmp_path / "x.safetensors",
        metadata={"config": json.dumps(small_config.to_json())},
    )
    assert load_network(tmp_path / "x.safetensors")[1] == small_config


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"num_double_blocks": 1_000_000_000},
            "expected a whole number from 0 to 1048576 for num_double_blocks in the network "
            "config, got 1000000000",
        ),
        ({"infinite_sky": "false"}, "expected true or false for infinite_sky, got 'false'"),
        ({"theta": "2000"}, "expected a finite number for theta in the network config, got '2000'"),
        ({"shift_mu": math.nan}, "expected a finite number for shift_mu in the network config, got nan"),
        ({"axes_dim": None}, "object is not iterable"),
    ],
)
def test_our_own_statement_of_a_wrong_type_is_refused(tmp_path, state, change, expected):
    metadata = {"spatialweave": "Modality Forcing network", "config": json.dumps(PLAIN.to_json() | change)}
    save_file(state, tmp_path / "x.safetensors", metadata=metadata)
    with pytest.raises(
        WeightsError,
        match=r"Expected the sizes of a Modality Forcing network, got .*x\.safetensors, which is "
        f"damaged: .*{expected}",
    ):
        load_network(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("stored", "body"),
    [
        (torch.float64, torch.float32),
        (torch.float8_e4m3fn, torch.bfloat16),
        (torch.float8_e5m2, torch.bfloat16),
    ],
    ids=str,
)
def test_other_floats_load_in_a_precision_that_holds_them(tmp_path, state, stored, body):
    given = {name: value.to(stored) for name, value in state.items()}
    save_file(given, tmp_path / "x.safetensors")
    assert_loads(tmp_path / "x.safetensors", given, body)
    assert_loads(given, given, body)


def test_integers_are_refused(tmp_path, state):
    given = {
        name: value.to(torch.int8) if name.endswith("img_in.weight") else value
        for name, value in state.items()
    }
    save_file(given, tmp_path / "x.safetensors")
    said = (
        r"Expected img_in\.weight of .*x\.safetensors in one of F64, F32, F16, BF16, F8_E4M3, "
        "F8_E5M2, F8_E4M3FNUZ, F8_E5M2FNUZ, got I8"
    )
    with pytest.raises(WeightsError, match=said):
        load_network(tmp_path / "x.safetensors")
    with pytest.raises(
        WeightsError, match=r"Expected img_in\.weight of the state dict in one of .*, got int8\."
    ):
        load_network(given)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_is_refused_at_loading_and_in_conversion(tmp_path, state, bad):
    given = {name: value.clone() for name, value in state.items()}
    given["dit.txt_in.weight"][0, 0] = bad
    save_file(given, tmp_path / "x.safetensors")
    with pytest.raises(
        WeightsError, match=r"Expected finite numbers in dit\.txt_in\.weight of .*x\.safetensors, got 1 "
    ):
        load_network(tmp_path / "x.safetensors")
    with pytest.raises(
        WeightsError, match=r"Expected finite numbers in dit\.txt_in\.weight of the state dict"
    ):
        load_network(given)
    for form in ("bf16", "fp8"):  # txt_in is quantised in neither
        with pytest.raises(
            WeightsError,
            match=r"in dit\.txt_in\.weight of .*x\.safetensors, got a fault: it holds NaN or infinity",
        ):
            convert_network(tmp_path / "x.safetensors", tmp_path / "out.safetensors", form)
    assert not list(tmp_path.glob("out*"))


def test_metadata_that_is_no_text_never_reaches_a_written_file(tmp_path, state):
    path = tmp_path / "x.safetensors"
    save_file(state, path, metadata={"step": "7"})
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"step":"7"', b'"step":7  '))
    for call in (load_network, lambda given: convert_network(given, tmp_path / "out.safetensors", "fp8")):
        with pytest.raises(
            WeightsError, match=r"Expected text in the metadata entry 'step' of .*x\.safetensors, got 7"
        ):
            call(path)
    assert not list(tmp_path.glob("out*"))
    path.write_bytes(content)
    with safe_open(convert_network(path, tmp_path / "out.safetensors", "fp8"), framework="pt") as file:
        assert file.metadata()["step"] == "7"


def test_null_as_metadata_is_none(tmp_path, state):
    path = tmp_path / "x.safetensors"
    save_file(state, path)
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    text = b'{"__metadata__":null,' + content[9 : 8 + length].rstrip()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    assert_loads(path, state)
    with safe_open(convert_network(path, tmp_path / "out.safetensors", "int8"), framework="pt") as file:
        assert set(file.metadata()) == {"config", "_quantization_metadata"}
