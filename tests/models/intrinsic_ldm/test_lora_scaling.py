"""PEFT's adapter settings: patterns, components and what is refused;
the scale against up(down(x)) is written out.
"""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from spatialweave.models.core.weights.files import WeightsError
from spatialweave.models.intrinsic_ldm.lora import Projection, open_lora, read_lora
from spatialweave.models.intrinsic_ldm.lora_scaling import match_pattern

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
CORE = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"
KNOWN = {
    f"{LAYER}.{part}": Projection(6, 8, (CORE,) if part == "to_q" else ())
    for part in ("to_q", "to_k", "to_out.0")
}
DOWN, UP = (
    torch.randn(4, 6, generator=torch.Generator().manual_seed(0)),
    torch.randn(8, 4, generator=torch.Generator().manual_seed(1)),
)


def tensors(part="to_q", prefix="unet.", rank=4, path=None):
    module = prefix + (path or f"{LAYER}.{part}")
    return {f"{module}.lora_A.weight": DOWN[:rank].clone(), f"{module}.lora_B.weight": UP[:, :rank].clone()}


def read(given, settings=None):
    text = settings if isinstance(settings, str) else json.dumps(settings)
    metadata = None if settings is None else {"lora_adapter_metadata": text}
    found = read_lora(given, KNOWN, base="SD21", name="my.safetensors", metadata=metadata)
    return {path.removeprefix(f"{LAYER}."): part.scale for path, part in found.items()}


def unet(**settings):
    return {f"unet.{name}": value for name, value in {"lora_alpha": 4, "r": 4, **settings}.items()}


@pytest.mark.parametrize(
    "pattern",
    [
        "to_q", "attn1.to_q", f"{LAYER}.to_q", "^down_blocks.*to_q", ".*to_q", "to_[qk]", "to_(q|v)",
        "0.attn1.to_q", r"\d+\.attn1\.to_q",
        f"^{LAYER}.to_q$", "nothing|to_q",
    ],
)  # fmt: skip
def test_a_pattern_fits_the_end_of_a_path_as_a_regular_expression(pattern):
    scales = read(tensors() | tensors("to_out.0"), unet(alpha_pattern={pattern: 16}))
    assert scales == {"to_q": 4.0, "to_out.0": 1.0}


@pytest.mark.parametrize(
    "pattern",
    [
        "o_q",
        "down_blocks",
        "attn1",
        "^to_q",
        "^attn1.to_q",
        "to_q.lora_A",
        "transformer_blocks.0",
        "TO_Q",
        "",
    ],
)
def test_a_pattern_that_ends_elsewhere_does_not_count(pattern):
    assert read(tensors(), unet(alpha_pattern={pattern: 16})) == {"to_q": 1.0}


def test_of_several_patterns_the_first_counts():
    assert read(tensors(), unet(alpha_pattern={"to_k": 2, "to_q": 16, f"{LAYER}.to_q": 8})) == {"to_q": 4.0}
    assert read(tensors(), unet(alpha_pattern={f"{LAYER}.to_q": 8, "to_q": 16})) == {"to_q": 2.0}
    assert match_pattern({"a": 1, "b": 2}, ("x.b", "x.a"), 9) == 1


def test_ranks_by_pattern_are_those_of_the_matrices():
    settings = unet(rank_pattern={"to_out.0": 2}, alpha_pattern={"to_out.0": 1})
    assert read(tensors() | tensors("to_out.0", rank=2), settings) == {"to_q": 1.0, "to_out.0": 0.5}
    with pytest.raises(
        ValueError,
        match=r"Expected rank 2 for .*to_out\.0 in the LoRA my\.safetensors, as its settings say, got 4\.",
    ):
        read(tensors("to_out.0"), settings)
    with pytest.raises(ValueError, match="Expected rank 8 for .*to_q .* got 4"):
        read(tensors(), unet(r=8))


def test_a_pattern_may_name_the_path_as_the_file_has_it():
    settings = unet(alpha_pattern={f"^{CORE}": 12})
    assert read(tensors(path=CORE), settings) == {"to_q": 3.0} and read(tensors(), settings) == {"to_q": 1.0}


@pytest.mark.parametrize(
    "others",
    [
        {"text_encoder.lora_alpha": 64, "text_encoder.r": 4},
        {"text_encoder_2.lora_alpha": 1},
        {"lora_alpha": 32},
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_the_networks_own_settings_count_wherever_they_stand(others, turned):
    both = {**others, **unet(lora_alpha=8)} if turned else {**unet(lora_alpha=8), **others}
    assert read(tensors(), both) == {"to_q": 2.0}


def test_settings_without_a_component_and_those_of_a_transformer():
    assert read(tensors(prefix=""), {"lora_alpha": 6, "r": 4}) == {"to_q": 1.5}
    assert read(
        tensors(prefix="transformer."),
        {"transformer.lora_alpha": 6, "transformer.alpha_pattern": {"to_q": 2}},
    ) == {"to_q": 0.5}
    assert read(tensors(), {"text_encoder.lora_alpha": 64}) == {"to_q": 1.0}
    assert read(
        tensors(), unet(alpha_pattern=None, rank_pattern={}, use_rslora=None, bias="none", use_dora=False)
    ) == {"to_q": 1.0}
    assert read(tensors(), unet(lora_alpha=6.5, use_rslora=True, init_lora_weights="gaussian")) == {
        "to_q": pytest.approx(6.5 / 2)
    }


def test_what_peft_saves_beside_its_own_file_counts(tmp_path):
    save_file(tensors(prefix="base_model.model."), tmp_path / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 16,
        "alpha_pattern": {"to_k": 2},
        "target_modules": ["to_q"],
        "bias": "none",
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    given, metadata = open_lora(tmp_path / "adapter_model.safetensors")
    assert read_lora(given, KNOWN, base="SD21", name="x", metadata=metadata)[f"{LAYER}.to_q"].scale == 4
    save_file(given, tmp_path / "other.safetensors")
    assert open_lora(tmp_path / "other.safetensors")[1] == {}


SETTINGS = {
    "no JSON": ("{broken", ["Expected JSON", "lora_adapter_metadata"]),
    "a list": ("[1]", ["Expected a JSON object", "got [1]"]),
    "nested too deep": ("[" * 100_000, ["nested too deeply"]),
    "another component": ({"prior.lora_alpha": 8}, ["unet, transformer or text_encoder", "'prior'"]),
    "two networks": (
        {"unet.lora_alpha": 8, "transformer.lora_alpha": 4},
        ["one network", "unet and transformer"],
    ),
    "alpha as text": (unet(lora_alpha="8"), ["'lora_alpha'", "'8'"]),
    "alpha 0": (unet(lora_alpha=0), ["above 0", "got 0"]),
    "alpha below 0": (unet(lora_alpha=-4), ["above 0", "got -4"]),
    "alpha NaN": (unet(lora_alpha=math.nan), ["above 0", "got nan"]),
    "alpha infinite": (unet(lora_alpha=math.inf), ["above 0", "got inf"]),
    "alpha true": (unet(lora_alpha=True), ["above 0", "got True"]),
    "alpha as a list": (unet(lora_alpha=[8]), ["'lora_alpha'", "[8]"]),
    "patterns as a list": (unet(alpha_pattern=["to_q"]), ["alpha_pattern", "['to_q']"]),
    "a pattern without a number": (unet(alpha_pattern={"to_q": None}), ["alpha_pattern", "'to_q'", "null"]),
    "a pattern with text": (unet(alpha_pattern={"to_q": "many"}), ["alpha_pattern", "'many'"]),
    "no regular expression": (unet(alpha_pattern={"to_(q": 8}), ["alpha_pattern", "'to_(q'"]),
    "half a rank": (unet(rank_pattern={"to_q": 1.5}), ["rank_pattern", "1.5"]),
    "rsLoRA as text": (unet(use_rslora="false"), ["use_rslora", "'false'"]),
    "DoRA": (unet(use_dora=True), ["use_dora"]),
    "biases": (unet(lora_bias=True), ["lora_bias"]),
    "the base's biases": (unet(bias="lora_only"), ["bias", "lora_only"]),
    "layers twice": (unet(layer_replication=[[0, 4], [2, 5]]), ["layer_replication"]),
    "turned weights": (unet(fan_in_fan_out=True), ["fan_in_fan_out"]),
    "whole modules": (unet(modules_to_save=["conv_in"]), ["modules_to_save"]),
    "another method": (unet(peft_type="LOHA"), ["peft_type", "LOHA"]),
    "a changed base": (unet(init_lora_weights="pissa_niter_4"), ["init_lora_weights", "pissa"]),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_cannot_be_followed_are_refused_by_name(case):
    settings, words = SETTINGS[case]
    with pytest.raises(ValueError, match=r"my\.safetensors") as error:
        read(tensors(), settings)
    assert all(word in str(error.value) for word in words), str(error.value)


def with_alpha(value):
    return tensors(prefix="") | {f"{LAYER}.to_q.alpha": value}


TWO = torch.tensor(2.0)


@pytest.mark.parametrize(
    "alpha",
    [
        TWO, TWO[None], TWO[None, None], TWO.int(), TWO.long(), TWO.bfloat16(), TWO.half(), TWO.double(),
        TWO.to(torch.float8_e4m3fn),
    ],
)
def test_alpha_is_one_number_of_any_type(alpha):
    assert read(with_alpha(alpha)) == {"to_q": 0.5}
    assert read(with_alpha(alpha), {"lora_alpha": 2}) == {"to_q": 0.5}  # said twice, alike
    with pytest.raises(
        ValueError, match=r"Expected one alpha for .* got 2 beside the matrices and 8 in its settings"
    ):
        read(with_alpha(alpha), {"lora_alpha": 8})


FILES = {
    "alpha 0": (with_alpha(torch.tensor(0.0)), ["above 0 as alpha", "got 0.0"]),
    "alpha below 0": (with_alpha(torch.tensor(-1.0)), ["above 0 as alpha", "got -1.0"]),
    "alpha of two": (with_alpha(torch.ones(2)), ["one number", "(2,)"]),
    "no alpha": (with_alpha(torch.ones(0)), ["one number", "(0,)"]),
    "alpha true": (with_alpha(torch.tensor(True)), ["one number", "bool"]),
    "int8": (
        {name: value.to(torch.int8) for name, value in tensors().items()},
        ["floating-point", "down matrix", "int8"],
    ),
    "rank 0": (tensors(rank=0), ["rank of 1 or more", "got 0"]),
    "both names": (
        tensors(prefix="unet.") | tensors(prefix=""),
        ["Expected one down", f"'unet.{LAYER}.to_q.lora_A.weight'"],
    ),
    "two adapters": (
        tensors() | {f"unet.{LAYER}.to_q.lora_A.other.weight": DOWN}, ["Expected one down", "lora_A.other"],
    ),
    "a convolution": (
        {
            f"{LAYER}.to_q.lora_down.weight": DOWN.view(4, 6, 1, 1).repeat(1, 1, 3, 3),
            f"{LAYER}.to_q.lora_up.weight": UP.view(8, 4, 1, 1),
        },
        ["Expected a matrix", "(4, 6, 3, 3)"],
    ),
    "a vector": (
        {f"{LAYER}.to_q.lora_A.weight": DOWN[0], f"{LAYER}.to_q.lora_B.weight": UP},
        ["Expected a matrix", "(6,)"],
    ),
    "a DoRA": (
        tensors() | {f"unet.{LAYER}.to_q.lora_magnitude_vector": UP[:, 0]}, ["lora_magnitude_vector", "DoRA"],
    ),
    "kohya's DoRA": (
        tensors() | {f"lora_unet_{LAYER.replace('.', '_')}_to_q.dora_scale": UP[:, :1]},
        ["dora_scale", "DoRA"],
    ),
    "a LoHa": ({f"lora_unet_{LAYER.replace('.', '_')}_to_q.hada_w1_a": DOWN}, ["hada_w1_a", "LoHa"]),
    "a LoKr": ({f"lora_unet_{LAYER.replace('.', '_')}_to_q.lokr_w1": DOWN}, ["lokr_w1", "LoKr"]),
    "a bias": (tensors() | {f"unet.{LAYER}.to_q.lora_B.bias": UP[:, 0]}, ["lora_B.bias"]),
    "a text encoder": (
        tensors() | {"lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight": UP},
        ["lora_te_text_model"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_files_that_are_no_plain_lora_are_refused_by_name(case):
    given, words = FILES[case]
    with pytest.raises(ValueError, match=r"my\.safetensors") as error:
        read(given)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("end", ["lora_A.weight", "lora_B.weight", "alpha"])
def test_nan_is_refused_by_file_and_tensor(tmp_path, end, bad):
    given = with_alpha(torch.tensor(4.0))
    given[f"{LAYER}.to_q.{end}"].flatten()[:1] = bad
    with pytest.raises(
        WeightsError, match=rf"Expected finite numbers in .*to_q\.{end} of the LoRA my\.safetensors, got 1 "
    ):
        read(given)
    save_file(given, tmp_path / "file.safetensors")
    with pytest.raises(
        WeightsError, match=rf"Expected finite numbers in .*to_q\.{end} of .*file\.safetensors, got 1 "
    ):
        open_lora(tmp_path / "file.safetensors")


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str
)
def test_every_float_counts_alike(dtype):
    given = {name: value.to(dtype) for name, value in tensors().items()}
    (part,) = read_lora(given, KNOWN, base="SD21", name="x").values()
    x = torch.randn(3, 6)
    down, up = (value.float() for value in given.values())
    torch.testing.assert_close(part(x), x @ down.T @ up.T)
