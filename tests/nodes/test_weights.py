"""Files of users in a real ComfyUI: every precision through core's own layers, what is refused, and what a
missing file's line says.
"""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from spatialweave.models.core.weights.conversion import convert_file
from spatialweave.models.core.weights.files import read_header
from spatialweave.models.core.weights.quantized_header import LAYOUTS
from spatialweave.models.modality_forcing.config import ModalityForcingConfig
from spatialweave.models.modality_forcing.network import ModalityForcing
from spatialweave.models.modality_forcing.quantize import CHOICES, convert_network
from spatialweave.models.modality_forcing.weights import save_network

pytestmark = pytest.mark.comfyui
FILE = "inside_weights.py"
# every format holds these widths; the time embedding, the depth head and the others stay as they are
CONFIG = ModalityForcingConfig(
    in_channels=16, context_in_dim=32, hidden_size=128, num_heads=4, axes_dim=(8, 8, 8, 8),
    num_double_blocks=1, num_single_blocks=2,
    num_depth_decoder_blocks=1, mlp_ratio=3.0, depth_patch=4, depth_channels=16, time_embed_dim=32,
)  # fmt: skip
LAYERS = 1 * 3 * 4 + 3 * 2  # matrices of the blocks
DEEPEST = (
    4 + 2 * 3
)  # matrices that a value passes on its way through the blocks: their errors add like noise, by the root
FORMATS = {"fp8": "float8_e4m3fn", "int8": "int8_tensorwise", "nvfp4": "nvfp4"}
COARSEST = {
    "fp8": 2**-4,
    "int8": 0.02,
    "nvfp4": 1 / 6,
}  # the largest relative error of a matrix: half a step, of its own or its group's


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A network with random weights, as it is released: bfloat16, and none of its parameters without effect.
    """
    network, generator = ModalityForcing(CONFIG), torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        spread = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.data = torch.randn(parameter.shape, generator=generator) * spread + (parameter.ndim == 1)
    return save_network(
        tmp_path_factory.mktemp("weights") / "source.safetensors", network, CONFIG, dtype=torch.bfloat16
    )


@pytest.fixture(scope="module", params=FORMATS)
def converted(request, source):
    path = source.with_name(f"{request.param}.safetensors")
    return request.param, path if path.exists() else convert_network(source, path, request.param)


def call(inside, function, **kwargs):
    return inside(FILE, function, **kwargs)


def test_quantised_files_run_in_cores_layers_within_their_formats_step(inside, converted, source):
    form, path = converted
    result = call(inside, "quantised", path=str(path), source=str(source))
    assert (
        result["layers"] == LAYERS
        and result["formats"] == [FORMATS[form]]
        and result["head"] == "torch.float32"
    )
    assert result["kept"] == 0
    assert result["step"] <= 1.01 and 0 < result["weights"] <= COARSEST[form]
    assert result["accuracy"] <= COARSEST[form] * DEEPEST**0.5
    # without hardware for the format core multiplies in full precision;
    # int8 rounds what it multiplies with everywhere, row by row
    assert result["loading"] <= (2e-2 if form == "int8" else 1e-5)
    assert result["host_accuracy"] <= COARSEST[form] * DEEPEST**0.5


def test_quantised_files_are_sampled_and_rebuilt(inside, converted, source):
    form, path = converted
    run, before = call(inside, "sampled", path=str(path)), call(inside, "sampled", path=str(source))
    assert run["finite"] and run["size"] < before["size"]
    assert call(inside, "rebuilt", path=str(path)) == ["ModelPatcher", True]


@pytest.mark.parametrize("form", ["convrot_w4a4", "asym_w4a8_int8"])
def test_files_of_two_values_a_byte_are_hosted_in_cores_layers(inside, source, tmp_path, form):
    """Written by core's own layouts: every matrix of the blocks, within 4 bits of the original."""
    path = str(tmp_path / "four.safetensors")
    result = call(inside, "four_bits", source=str(source), path=path, form=form)
    assert result["layers"] == LAYERS and result["formats"] == [form]
    assert 0.01 < result["weights"] < 0.25 and result["result"] < 0.25 * DEEPEST**0.5
    assert result["bytes"] < 0.6
    assert call(inside, "sampled", path=path)["finite"]


def test_every_format_that_core_reads_is_in_our_table(inside):
    assert set(call(inside, "formats_of_core")) <= set(LAYOUTS)


def test_core_would_save_the_layers_as_they_came(inside, converted, source):
    form, path = converted
    marks = call(inside, "state_names", path=str(path))
    assert len(marks) == LAYERS and {mark["format"] for mark in marks.values()} == {FORMATS[form]}


def test_layers_described_in_tensors_and_old_scaled_float8_load_as_well(inside, source, tmp_path):
    path = convert_network(source, tmp_path / "new.safetensors", "fp8")
    state = load_file(path)
    old = {name.replace(".weight_scale", ".scale_weight"): value for name, value in state.items()}
    metadata = {"config": read_header(path).metadata["config"]}
    save_file(
        old | {"dit.scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)},
        tmp_path / "old.safetensors",
        metadata=metadata,
    )
    layers = {
        name.removesuffix("_scale").removesuffix(".weight")
        for name in state
        if name.endswith(".weight_scale")
    }
    mark = torch.tensor(
        list(b'{"format": "float8_e4m3fn", "full_precision_matrix_mult": true}'), dtype=torch.uint8
    )
    marks = {f"{layer}.comfy_quant": mark.clone() for layer in layers}
    save_file(state | marks, tmp_path / "marked.safetensors", metadata=metadata)
    want = call(inside, "quantised", path=str(path), source=str(source))
    for name in ("old", "marked"):
        assert (
            call(inside, "quantised", path=str(tmp_path / f"{name}.safetensors"), source=str(source)) == want
        ), name


def test_plain_float8_without_scales_loads(inside, source, tmp_path):
    state = {
        name: value.to(torch.float8_e4m3fn) if value.ndim == 2 else value
        for name, value in load_file(source).items()
    }
    save_file(state, tmp_path / "plain8.safetensors", metadata=dict(read_header(source).metadata))
    assert call(inside, "sampled", path=str(tmp_path / "plain8.safetensors"))["finite"]


@pytest.mark.parametrize("form", CHOICES)
def test_a_large_network_is_bfloat16_with_a_float32_depth_head(inside, source, tmp_path, form):
    path = convert_network(source, tmp_path / "large.safetensors", form)
    result = call(inside, "precision", path=str(path))
    assert result.pop("finite") and result.pop("size")
    kept = {
        name: dtype
        for name, dtype in result.items()
        if form == "bf16" or "blocks." not in name or name.endswith("scale")
    }
    for name, dtype in kept.items():
        assert dtype == ("torch.float32" if name.startswith("depth_final_layer.") else "torch.bfloat16"), name


def test_a_missing_file_is_answered_with_its_line(inside):
    lines = call(inside, "registry_lines")
    name = "flux_rgbd_9b_v2.safetensors"
    for result in (call(inside, "chosen", name=name), call(inside, "chosen", name="mine.safetensors")):
        assert result["valid"] == result["error"]
        assert lines[name] in result["valid"] and f"spatialweave weights download {name}" in result["valid"]
    assert call(inside, "chosen", name="mine.safetensors")["valid"].startswith(
        "Expected mine.safetensors in ComfyUI's models/"
    )


@pytest.mark.parametrize("name", ["../tiny.safetensors", "/etc/passwd", "", "sub/../x.safetensors"])
def test_a_name_that_is_no_choice_is_never_opened(inside, name):
    result = call(inside, "chosen", name=name)
    assert (
        f"Expected {name} in ComfyUI's models/diffusion_models, got no such file" in result["valid"]
        and result["valid"] == result["error"]
    )


def test_a_file_of_the_user_says_where_its_encoder_and_vae_are(inside, source):
    result = call(inside, "chosen", name="source.safetensors", folder=str(source.parent))
    lines = call(inside, "registry_lines")
    assert result["valid"] is True
    clip, vae = result["sockets"]
    assert "Load CLIP, type flux2" in clip and "prompts have the width 32" in clip
    assert "Load VAE" in vae and lines["flux2-vae.safetensors"] in vae


def test_a_file_brings_its_encoder_and_vae_through_cores_loaders_where_they_are(
    other_worker, root, tmp_path
):
    """One widget away from the tiny model, whose CLIP and VAE sockets are wired: small files under the names
    of the big ones.
    """
    parts = root / "tests" / "workflows" / "inside_small_klein.py"
    result = other_worker.call(FILE, "small_klein", folder=str(tmp_path), parts=str(parts))
    clip, vae = result["before"]
    assert (
        "qwen_3_8b_fp8mixed.safetensors" in clip
        and "https://" in clip
        and "flux2-vae.safetensors" in vae
        and "https://" in vae
    )
    before, after = result["found"]
    assert before != after, "what was fetched is found in the next run"
    assert re.fullmatch("[0-9a-f]+", after), "users share what core writes into their files: no folder's name"
    assert result["same prompt"] and result["same picture"] and result["rebuilt"]
    assert result["sizes"] == [[1, 32, 48, 3], [1, 32, 48]]
    assert all(
        "Expected with_clip_and_vae on" in said and "Load CLIP and Load VAE" in said for said in result["off"]
    )


WRONG = {
    "klein": (
        {"double_stream_modulation_img.lin.weight": (2, 2)},
        "is a FLUX.2 text-to-image network without a depth stream",
    ),
    "diffusers": (
        {"single_transformer_blocks.0.attn.to_q.weight": (2, 2)},
        "is a FLUX network in diffusers' naming",
    ),
    "qwen": (
        {"model.layers.0.self_attn.q_proj.weight": (2, 2)},
        "is a language model, used as a text encoder",
    ),
    "vae": (
        {"decoder.conv_in.weight": (2, 2), "bn.running_mean": (2,)},
        "is a FLUX.2 image autoencoder (VAE)",
    ),
    "half": (
        {"down.0.block.0.conv1.weight": (2, 2), "bn.running_mean": (2,)},
        "is the encoder half of a FLUX.2 autoencoder",
    ),
    "lora": ({"diffusion_model.img_in.lora_A.weight": (2, 2)}, "is a LoRA, a patch for another model"),
}


@pytest.mark.parametrize("case", WRONG)
def test_another_model_is_called_by_name_and_the_right_one_named(inside, tmp_path, case):
    shapes, said = WRONG[case]
    # One ComfyUI serves every test: a name that another folder of models has, too, would open that file.
    name = f"another_{case}.safetensors"
    save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / name)
    result = call(inside, "chosen", name=name, folder=str(tmp_path))
    assert result["valid"] is True and said in result["error"]
    assert "The published network is flux_rgbd_9b_v2.safetensors" in result["error"]


def test_a_half_downloaded_file_is_said_to_be(inside, source, tmp_path):
    for name, content, said in (
        ("cut.safetensors", source.read_bytes()[:-1000], "it is cut off"),
        ("page.safetensors", b"<!DOCTYPE html><html>no access</html>", "is a web page"),
        (
            "pointer.safetensors",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
            "is a Git LFS pointer",
        ),
        ("empty.safetensors", b"", "of only 0 bytes: a download was probably interrupted"),
    ):
        (tmp_path / name).write_bytes(content)
        error = call(inside, "chosen", name=name, folder=str(tmp_path))["error"]
        assert said in error and "The published network is flux_rgbd_9b_v2.safetensors" in error, name


def test_a_quantised_file_of_another_kind_is_named(inside, source, tmp_path):
    path = convert_file(
        source,
        tmp_path / "x.safetensors",
        dict.fromkeys(read_header(source).shapes, torch.bfloat16),
        {"_quantization_metadata": '{"layers": {"dit.single_blocks.0.linear1": {"format": "awq_w4a16"}}}'},
    )  # fmt: skip
    error = call(inside, "chosen", name=path.name, folder=str(tmp_path))["error"]
    assert (
        "Expected layer dit.single_blocks.0.linear1" in error and "one of the formats float8_e4m3fn" in error
    )
    assert "got awq_w4a16" in error


def test_cores_encoder_of_klein_9b_is_the_published_one(inside):
    """The chat template without thinking, padded to 512 with 151643; three layers' hidden states, every row
    kept.
    """
    ids, weights = call(inside, "klein_tokens", text="")
    template = [151644, 872, 198, 151645, 198, 151644, 77091, 198, 151667, 271, 151668, 271]
    assert ids == template + [151643] * (512 - len(template)) and weights == [1.0]
    worded, _ = call(inside, "klein_tokens", text="a (red:1.5) ball")
    assert len(worded) == 512 and worded[:3] == template[:3]
    context = call(inside, "klein_context")
    assert context["layers"] == [9, 18, 27] and context["shape"] == [1, 512, 3 * 16] and not context["zero"]


@pytest.mark.parametrize(
    ("kind", "cfg", "refused"), [("negative", 4.0, True), ("negative", 1.0, False), ("positive", 1.0, True)]
)
def test_zeros_are_no_unconditional(inside, tiny_weights, kind, cfg, refused):
    inside("inside_sampling.py", "start", weights=tiny_weights)
    said = call(inside, "zeros", kind=kind, cfg=cfg)
    assert (said is not None) == refused
    if refused:
        assert f"unconditional {kind} prompt, got all zeros" in said and "encoding of an empty text" in said
