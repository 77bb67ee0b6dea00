"""Weights and latents of other programs in a real ComfyUI: refused at loading by file and tensor, or read
right.
"""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from spatialweave.models.core.weights.files import read_header
from spatialweave.models.modality_forcing.config import ModalityForcingConfig
from spatialweave.models.modality_forcing.network import ModalityForcing
from spatialweave.models.modality_forcing.quantize import convert_network
from spatialweave.models.modality_forcing.weights import save_network

pytestmark = pytest.mark.comfyui
FILE = "inside_weights_odd.py"
CONFIG = ModalityForcingConfig(
    in_channels=16, context_in_dim=32, hidden_size=128, num_heads=4, axes_dim=(8, 8, 8, 8),
    num_double_blocks=1, num_single_blocks=1,
    num_depth_decoder_blocks=1, mlp_ratio=3.0, depth_patch=4, depth_channels=16, time_embed_dim=32,
)  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A network with random weights in bfloat16."""
    network, generator = ModalityForcing(CONFIG), torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5
    return save_network(
        tmp_path_factory.mktemp("odd") / "source.safetensors", network, CONFIG, dtype=torch.bfloat16
    )


def spoil(state, name, code=None):
    """The state with one number of a tensor made NaN; `code` is the byte that is NaN in its type."""
    value = state[name].clone()
    if code is None:
        value.view(-1)[-1] = math.nan
    else:
        value.view(torch.uint8).view(-1)[-1] = code
    return state | {name: value}


def make_numeric(path, key):
    """Make a digit that the metadata holds as text a number, in a file that is otherwise the same."""
    content = path.read_bytes()
    changed = content.replace(f'"{key}":"7"'.encode(), f'"{key}":7  '.encode())
    assert changed != content
    path.write_bytes(changed)


@pytest.mark.parametrize(
    ("form", "name", "code"),
    [
        ("bf16", "dit.txt_in.weight", None),
        ("fp8", "dit.single_blocks.0.linear1.weight", 0x7F),
        ("fp8", "dit.single_blocks.0.linear1.weight", 0xFF),
        ("fp8", "dit.single_blocks.0.linear1.weight_scale", None),
        ("int8", "dit.single_blocks.0.linear1.weight_scale", None),
        ("nvfp4", "dit.single_blocks.0.linear1.weight_scale", 0x7F),
    ],
)
def test_nan_in_a_network_is_refused_in_every_format(inside, source, tmp_path, form, name, code):
    good = convert_network(source, tmp_path / "good.safetensors", form)
    assert inside(FILE, "network_refused", path=str(good)) is None
    bad = tmp_path / "bad.safetensors"
    save_file(spoil(load_file(good), name, code), bad, metadata=dict(read_header(good).metadata))
    said = inside(FILE, "network_refused", path=str(bad))
    assert said and said.startswith(f"Expected finite numbers in {name} of {bad}, got 1 NaN of "), said


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("form", ["bf16", "fp8", "nvfp4"])
def test_wrapped_networks_load_as_the_plain_ones(inside, source, tmp_path, prefix, form):
    wrapped = tmp_path / "wrapped.safetensors"
    save_file({prefix + name: value for name, value in load_file(source).items()}, wrapped)
    results = []
    for number, given in enumerate((source, wrapped)):
        path = convert_network(given, tmp_path / f"{number}.safetensors", form)
        results.append(inside(FILE, "network_weights", path=str(path)))
    assert results[0] == results[1]


def test_float64_is_held_in_float32(inside, source, tmp_path):
    save_file(
        {name: value.double() for name, value in load_file(source).items()}, tmp_path / "wide.safetensors"
    )
    plain, wide = (
        inside(FILE, "network_weights", path=str(path)) for path in (source, tmp_path / "wide.safetensors")
    )
    assert wide["dtype"] == "torch.float32" and wide["sum"] == pytest.approx(plain["sum"], rel=1e-12)


def test_what_is_no_whole_network_is_called_what_it_is(inside, source, tmp_path):
    state, metadata = load_file(source), dict(read_header(source).metadata)
    names = sorted(state)
    part, numeric = tmp_path / "model-00002-of-00002.safetensors", tmp_path / "numeric.safetensors"
    save_file({name: state[name] for name in names[len(names) // 2 :]}, part, metadata=metadata)
    assert "it is part 2 of 2 of one model, so join all parts" in inside(
        FILE, "network_refused", path=str(part)
    )
    save_file(state, numeric, metadata=metadata | {"step": "7"})
    make_numeric(numeric, "step")
    said = inside(FILE, "network_refused", path=str(numeric))
    assert f"Expected text in the metadata entry 'step' of {numeric}, got 7" in said
    index = tmp_path / "index.safetensors"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": "model-00001-of-00001.safetensors"}}))
    assert "is the index of a model saved in 1 parts" in inside(FILE, "network_refused", path=str(index))
    save_file(state | {"dit.img_in.weight": torch.ones(128, 16, dtype=torch.int8)}, numeric)
    assert "Expected dit.img_in.weight" in inside(FILE, "network_refused", path=str(numeric))


@pytest.mark.parametrize("what", ["clip", "vae"])
def test_nan_in_an_encoder_or_a_vae_is_refused(inside, tmp_path, what):
    path = tmp_path / "part.safetensors"
    save_file({"model.norm.weight": torch.tensor([1.0, math.nan]).bfloat16()}, path)
    assert f"Expected finite numbers in model.norm.weight of {path}, got 1 NaN of 2" in inside(
        FILE, "part_refused", what=what, path=str(path)
    )


@pytest.fixture(scope="module")
def lora(inside):
    """lora(folder, name, change, settings) -> a LoRA file of rank 4 for the first projection of the small
    SD2.1.
    """
    path, inputs, outputs = inside(FILE, "projection")
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(4, inputs, generator=generator), torch.randn(outputs, 4, generator=generator)

    def make(folder, name, settings=None, change=lambda tensors: tensors, **metadata):
        tensors = change(
            {f"unet.{path}.lora_A.weight": down.clone(), f"unet.{path}.lora_B.weight": up.clone()}
        )
        metadata |= {} if settings is None else {"lora_adapter_metadata": json.dumps(settings)}
        save_file(tensors, folder / name, metadata=metadata or None)
        return folder / name

    return make


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        (None, 1.0),
        ({"unet.lora_alpha": 4, "unet.r": 4, "unet.alpha_pattern": {"to_q": 16}}, 4.0),
        ({"unet.lora_alpha": 4, "unet.r": 4, "unet.alpha_pattern": {"^.*attn1.*to_q": 12, "to_q": 16}}, 3.0),
        ({"unet.lora_alpha": 8, "unet.r": 4, "text_encoder.lora_alpha": 64, "text_encoder.r": 4}, 2.0),
    ],
)
def test_a_loras_settings_count_as_in_peft(inside, lora, tmp_path, settings, scale):
    path = lora(tmp_path, "my.safetensors", settings)
    assert inside(FILE, "lora_scales", path=str(path), name="my.safetensors") == [scale]


def first(change):
    """A change of the first tensor."""

    def changed(tensors):
        name = next(iter(tensors))
        return tensors | {name: change(tensors[name])}

    return changed


LORAS = {
    "nan": (
        {"change": first(lambda value: value * math.nan)},
        ["Expected finite numbers in unet.", "lora_A.weight of"],
    ),
    "int8": (
        {"change": first(lambda value: value.to(torch.int8))},
        ["Expected floating-point numbers", "got int8"],
    ),
    "both": (
        {"change": lambda t: t | {k.removeprefix("unet."): v.clone() for k, v in t.items()}},
        ["Expected one down of"],
    ),
    "list": ({"settings": [1]}, ["Expected a JSON object", "got [1]"]),
    "dora": ({"settings": {"unet.use_dora": True}}, ["use_dora"]),
    "numeric": ({"step": "7"}, ["Expected text in the metadata entry 'step'"]),
}


@pytest.mark.parametrize("case", LORAS)
def test_a_lora_that_is_wrong_is_refused_by_the_node(inside, lora, tmp_path, case):
    given, words = LORAS[case]
    path = lora(tmp_path, f"odd_{case}.safetensors", **given)
    if case == "numeric":
        make_numeric(path, "step")
    said = inside(FILE, "lora_refused", folder=str(tmp_path), name=path.name)
    assert said and all(word in said for word in [*words, path.name]), said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("text, no pickle", "that does not load"),
        ([torch.ones(2)], "Expected a PyTorch file of tensors as the LoRA"),
        (
            {"unet.x.lora_A.weight": [1, 2], "unet.x.lora_B.weight": "text"},
            "Expected a tensor as 'unet.x.lora_A.weight'",
        ),
        ({"unet.x.lora_A.weight": torch.ones(2, 2)}, "Expected self-attention projections"),
    ],
    ids=["text", "list", "values", "layer"],
)
def test_a_pytorch_file_as_lora_is_read_or_refused_by_name(inside, tmp_path, request, content, said):
    path = (
        tmp_path / f"pickled_{request.node.callspec.id}.pt"
    )  # ComfyUI looks for a name in the folders of all tests
    path.write_text(content) if isinstance(content, str) else torch.save(content, path)
    answer = inside(FILE, "lora_refused", folder=str(tmp_path), name=path.name)
    assert answer and said in answer and path.name in answer, answer


def test_a_pytorch_file_counts_as_the_same_safetensors(inside, lora, tmp_path):
    path = lora(tmp_path, "plain.safetensors")
    torch.save(load_file(path), tmp_path / "plain.pt")
    assert inside(FILE, "lora_scales", path=str(tmp_path / "plain.pt"), name="plain.pt") == [1.0]


IMAGE, DEPTH = torch.randn(1, 16, 4, 5), torch.rand(1, 1, 16, 20)
DEPTH[..., 0] = math.nan  # missing
BAD = IMAGE.clone()
BAD[0, 3, 1, 1] = math.nan
LATENTS = {
    "size as text": ({}, {"spatialweave_size": '"16x20"'}, ["[height, width]", "spatialweave_size"]),
    "size as fractions": ({}, {"spatialweave_size": "[16.0, 20.5]"}, ["[height, width]"]),
    "size of three": ({}, {"spatialweave_size": "[1, 16, 20]"}, ["[height, width]"]),
    "no JSON": ({}, {"spatialweave_size": "16, 20"}, ["Expected JSON in spatialweave_size"]),
    "a size beyond": ({}, {"spatialweave_size": "[17, 20]"}, ["within (16, 20)", "[17, 20]"]),
    "sky as text": (
        {},
        {"spatialweave_infinite_sky": '"false"'},
        ["true or false", "spatialweave_infinite_sky"],
    ),
    "NaN in the image": ({"image": BAD}, {}, ["Expected finite numbers in image", "1 NaN of 320"]),
    "depth of another picture": (
        {"depth": DEPTH[..., :19].contiguous()},
        {},
        ["Expected a usable joint latent"],
    ),
    "integers": ({"image": IMAGE.to(torch.int8)}, {}, ["Expected floating-point numbers in image"]),
}


@pytest.mark.parametrize("case", LATENTS)
def test_a_latent_that_was_changed_is_refused_by_name(inside, tmp_path, case):
    tensors, metadata, words = LATENTS[case]
    path, kind = (
        tmp_path / "my.joint.safetensors",
        {"spatialweave": "joint latent", "spatialweave_size": "[15, 20]"},
    )
    save_file({"image": IMAGE, "depth": DEPTH}, path, metadata=kind)
    assert inside(FILE, "latent_refused", path=str(path)) == {"said": None, "missing": 16, "size": [15, 20]}
    save_file({"image": IMAGE, "depth": DEPTH} | tensors, path, metadata=kind | metadata)
    said = inside(FILE, "latent_refused", path=str(path))["said"]
    assert said and all(word in said for word in [*words, "my.joint.safetensors"]), said
