"""Intrinsic co-generation through core's samplers, on small random models of core's own classes."""

import pytest

pytestmark = pytest.mark.comfyui
FILE, OPERATORS = "inside_intrinsic.py", "inside_intrinsic_operations.py"
KINDS = ["sd21", "sdxl", "pixart"]


@pytest.fixture(scope="module")
def intrinsic(inside):
    return lambda function, **kwargs: inside(FILE, function, **kwargs)


@pytest.mark.parametrize(
    "cfg, kind", [(cfg, kind) for cfg in (1.0, 3.0) for kind in KINDS] + [(3.0, "sd15"), (3.0, "sigma")]
)
def test_weight_zero_is_the_base_model_bit_for_bit(intrinsic, kind, cfg):
    result = intrinsic("off_is_base", kind=kind, cfg=cfg, batch=2, steps=2)
    assert result["gap"] == result["restored"] == 0
    assert result["finite"] and result["maps"] > 1e-3, "the maps must be something else than the image"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("batch, cfg", [(2, 3.0), (1, 1.0)])
def test_weight_zero_asks_of_the_network_what_the_base_model_asks(inside, kind, precision, batch, cfg):
    """Operator by operator, on equal tensors that lie alike in memory:
    so it holds for machines on which no test ran.
    """
    result = inside(OPERATORS, "image_operators", kind=kind, precision=precision, batch=batch, cfg=cfg)
    assert result["differences"] == [] and result["arguments"]
    assert result["calls"] == 3 and result["operators"] > 200 and result["maps differ"]


@pytest.mark.parametrize("kind", KINDS)
def test_once_the_maps_stop_the_network_is_asked_what_the_base_model_asks(inside, kind):
    result = inside(OPERATORS, "image_operators", kind=kind, stopped=True, steps=6)
    assert result["differences"] == [] and result["operators"] > 200 and result["maps differ"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_sde"])
def test_weight_one_without_lora_is_plain_concatenation_of_one_noise(intrinsic, kind, sampler):
    """Both streams are then one computation, and doubled keys are the base model's attention."""
    result = intrinsic("twins", kind=kind, sampler=sampler, steps=2)
    assert result["apart"] < 1e-5 and result["from base"] < 1e-5


@pytest.mark.parametrize("kind", [*KINDS, "sd15", "sigma"])
def test_seeds_reproduce_and_the_image_reads_its_maps(intrinsic, kind):
    result = intrinsic("coupling", kind=kind)
    assert result["repeated"] == 0
    assert min(result["seed"], result["base"], result["streams"]) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["area", "mask", "range", "unequal"])
def test_pairs_do_not_depend_on_how_prompts_are_batched(intrinsic, kind, form):
    result = intrinsic("batched", kind=kind, form=form, batch=1 if kind == "pixart" else 2)
    assert result["gap"] < 1e-5 and result["base"] == [0, 0]
    assert result["moved"] > 1e-4, "the form must do something"


def test_drop_keeps_prompts_apart(intrinsic):
    assert intrinsic("batched", schedule="drop", form="area")["gap"] < 1e-5


def test_drop_reads_layers_as_blocks(intrinsic):
    result = intrinsic("drop_by_blocks")
    within = [1.0 if 3 <= block <= 7 else 0.0 for block in range(16)]
    assert result["seen"] == [[0.0] * 16] + [within] * 3, "t of the first step is 999, above tau"
    assert result["gap"] > 1e-5


def test_a_level_curve_is_a_constant(intrinsic):
    assert intrinsic("curve_is_constant") == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", ["half", "off"])
def test_pictures_of_a_batch_do_not_meet(intrinsic, kind, schedule):
    assert intrinsic("batch_of", kind=kind, schedule=schedule) < 1e-5


@pytest.mark.parametrize("schedule, steps", [("gaussian", None), ("drop", 20), ("off", None)])
def test_the_node_gives_a_model_and_a_plot(intrinsic, schedule, steps):
    assert intrinsic("node", schedule=schedule, steps=steps) == {"model": "ModelPatcher", "ui": 1}


@pytest.mark.parametrize("kind, stages, last", [
    (
        "sd21", {"1": 2, "2": 2, "3": 2, "5": 1, "7": 3, "8": 3, "9": 3},
        "up_blocks.3.attentions.2.transformer_blocks.0.attn1",
    ),
    (
        "sdxl", {"2": 4, "3": 20, "4": 10, "5": 30, "6": 6},
        "up_blocks.1.attentions.2.transformer_blocks.1.attn1",
    ),
])  # fmt: skip
def test_published_models_have_their_layers_in_the_right_stages(intrinsic, kind, stages, last):
    result = intrinsic("published_layers", kind=kind)
    assert result["stages"] == stages and result["names"][1] == last
