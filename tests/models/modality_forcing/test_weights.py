"""Files of networks: written and read back, recognised, and refused by name."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from spatialweave.models.core.weights.files import WeightsError, read_header, write_tensors
from spatialweave.models.modality_forcing.config import PRESETS, ModalityForcingConfig
from spatialweave.models.modality_forcing.weights import (
    config_from_shapes,
    is_image_text,
    load_network,
    network_shapes,
    read_base,
    save_network,
)

# equal rotary axes and released constants: what shapes alone can tell
PLAIN = ModalityForcingConfig(
    in_channels=6, context_in_dim=10, hidden_size=32, num_heads=2, axes_dim=(4, 4, 4, 4), num_double_blocks=1,
    num_single_blocks=2,
    num_depth_decoder_blocks=1, mlp_ratio=2.0, depth_patch=4, depth_channels=16, time_embed_dim=32,
)  # fmt: skip


@pytest.fixture
def saved(tmp_path, make_network, small_config):
    network = make_network()
    return save_network(
        tmp_path / "network.safetensors", network, small_config, {"trained": "never"}
    ), network


def assert_same(network, state):
    own = network.state_dict()
    assert set(own) == set(state) and all(torch.equal(own[name], value) for name, value in state.items())


def test_a_saved_network_comes_back_with_its_configuration(saved, small_config, make_inputs):
    path, network = saved
    loaded, config = load_network(path)
    assert config == small_config and read_header(path).metadata["trained"] == "never"
    assert_same(loaded, network.state_dict())
    assert all(name.startswith("dit.") for name in load_file(path))
    for a, b in zip(loaded(*make_inputs()), network(*make_inputs()), strict=True):
        assert torch.equal(a, b)
    assert all(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize(
    ("stored", "asked", "body"),
    [
        (torch.bfloat16, None, torch.bfloat16),
        (torch.float16, None, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.bfloat16),
    ],
)
def test_precisions(tmp_path, make_network, small_config, stored, asked, body):
    path = save_network(tmp_path / "n.safetensors", make_network(), small_config, dtype=stored)
    network, _ = load_network(path, dtype=asked)
    assert (
        network.img_in.weight.dtype == body and network.depth_final_layer.linear.weight.dtype == torch.float32
    )


@pytest.mark.parametrize("prefix", ["dit.", "", "model.diffusion_model."])
def test_any_prefix_and_no_metadata(tmp_path, make_network, prefix):
    network = make_network(PLAIN)
    state = {prefix + name: value for name, value in network.state_dict().items()}
    save_file(state, tmp_path / "bare.safetensors")
    for source in (tmp_path / "bare.safetensors", state):
        loaded, config = load_network(source)
        assert config == PLAIN
        assert_same(loaded, network.state_dict())


@pytest.mark.parametrize("name", PRESETS)
def test_shapes_tell_the_sizes_of_every_preset(name):
    shapes = network_shapes(PRESETS[name])
    assert network_shapes(config_from_shapes(shapes)) == shapes


def test_shapes_tell_the_kernel_of_the_depth_head():
    config = replace(PLAIN, depth_head_kernel=3)
    assert config_from_shapes(network_shapes(config)).depth_head_kernel == 3


@pytest.mark.parametrize("name", ["klein_9b", "klein_4b"])
def test_shapes_tell_the_published_presets(name):
    config = config_from_shapes(network_shapes(PRESETS[name]))
    assert config == PRESETS[name]


def write_keys(path, names):
    save_file({name: torch.zeros(1) for name in names}, path)
    return path


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (
            ["double_stream_modulation_img.lin.weight", "img_in.weight"],
            "a FLUX.2 text-to-image network without a depth stream",
        ),
        (["aggregator.frame_blocks.0.attn.qkv.weight"], "a VGGT geometry encoder"),
        (["lora_unet_double_blocks_0.lora_up.weight"], "a LoRA"),
    ],
)
def test_foreign_files_are_called_by_name(tmp_path, names, what):
    path = write_keys(tmp_path / "foreign.safetensors", names)
    with pytest.raises(
        WeightsError,
        match=rf"Expected a Modality Forcing network \(.*\), got .*foreign\.safetensors, which is {what}",
    ):
        load_network(path)


def test_our_own_other_files_say_what_they_are(tmp_path):
    path = write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(1)}, {}, kind="tiny image codec")
    with pytest.raises(
        WeightsError,
        match=r"Expected a Modality Forcing network \(keys dit.depth_in\.weight and others\), got "
        r".*a\.safetensors, which is SpatialWeave's tiny image codec",
    ):
        load_network(path)


def test_variants_that_do_not_run_are_named(saved, tmp_path):
    path, _ = saved
    state = load_file(path)
    first = {name: value for name, value in state.items() if "cross_alpha" not in name}
    save_file(first, tmp_path / "first.safetensors")
    with pytest.raises(
        WeightsError,
        match="Expected the published second variant of the Modality Forcing network "
        r"\(flux_rgbd_9b_v2\), got .*first\.safetensors of the first variant, in which no stream "
        "sees the other's timestep",
    ):
        load_network(tmp_path / "first.safetensors")
    save_file(state | {"dit.img_in.weight_scale": torch.ones(1)}, tmp_path / "small.safetensors")
    with pytest.raises(
        WeightsError,
        match=(
            r"Expected an unquantized Modality Forcing network, "
            r"got .*small\.safetensors, which is quantized"
        ),
    ):
        load_network(tmp_path / "small.safetensors")


def test_damaged_networks_are_named(saved, tmp_path, make_network):
    path, network = saved
    state = load_file(path)
    gone = state.pop("dit.single_blocks.1.linear2.weight")
    write_tensors(
        tmp_path / "gone.safetensors", state, read_header(path).metadata, kind="Modality Forcing network"
    )
    with pytest.raises(WeightsError, match=r"1 tensors missing \(first: single_blocks.1.linear2.weight\)"):
        load_network(tmp_path / "gone.safetensors")
    headless = {
        name: value for name, value in load_file(path).items() if name != "dit.img_in.weight"
    }  # what says the precision
    write_tensors(
        tmp_path / "headless.safetensors",
        headless,
        read_header(path).metadata,
        kind="Modality Forcing network",
    )
    with pytest.raises(WeightsError, match=r"1 tensors missing \(first: img_in.weight\)"):
        load_network(tmp_path / "headless.safetensors")
    state["dit.single_blocks.1.linear2.weight"] = gone[1:]
    with pytest.raises(
        WeightsError,
        match="of another shape .first: single_blocks.1.linear2.weight is .47, 144., expected .48, 144.",
    ):
        load_network(state, config=network.config)
    write_tensors(
        tmp_path / "config.safetensors",
        state,
        {"config": '{"hidden_size": 7}'},
        kind="Modality Forcing network",
    )
    with pytest.raises(
        WeightsError,
        match=r"Expected the sizes of a Modality Forcing network, got .*config\.safetensors, which is "
        r"damaged: expected hidden_size as a multiple of num_heads \(32\), got 7",
    ):
        load_network(tmp_path / "config.safetensors")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(WeightsError, match="Download it again"):
        load_network(path)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "module."])
@pytest.mark.parametrize("scale", ["scale", "weight"])
def test_a_plain_flux2_file_gives_the_image_and_text_half(tmp_path, make_network, prefix, scale):
    half = {name: value for name, value in make_network(PLAIN).state_dict().items() if is_image_text(name)}
    save_file(
        {prefix + name.replace("_norm.scale", f"_norm.{scale}"): value for name, value in half.items()},
        tmp_path / "base.safetensors",
    )
    base = read_base(tmp_path / "base.safetensors", PLAIN)
    assert set(base) == set(half) and all(torch.equal(base[name], value) for name, value in half.items())


def test_a_base_of_another_size_or_kind_is_refused(tmp_path, make_network, small_config):
    save_file(
        {name: v for name, v in make_network(PLAIN).state_dict().items() if is_image_text(name)},
        tmp_path / "base.safetensors",
    )
    with pytest.raises(WeightsError, match="a FLUX.2 network, got others: .* tensors missing"):
        read_base(tmp_path / "base.safetensors", small_config)
    with pytest.raises(
        WeightsError,
        match=r"Expected a FLUX.2 klein base network, got .*clip\.safetensors, which is a CLIP model",
    ):
        read_base(
            write_keys(tmp_path / "clip.safetensors", ["text_model.encoder.layers.0.mlp.fc1.weight"]), PLAIN
        )
