"""Intrinsic co-generation through core's samplers, on small random models of core's own classes."""

import pytest

pytestmark = pytest.mark.comfyui
FILE = "inside_intrinsic.py"
KINDS = ["sd21", "sdxl", "pixart"]


@pytest.fixture(scope="module")
def intrinsic(inside):
    return lambda function, **kwargs: inside(FILE, function, **kwargs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_weight_zero_is_the_base_model_bit_for_bit(intrinsic, kind, cfg):
    result = intrinsic("off_is_base", kind=kind, cfg=cfg, batch=2, steps=2)
    assert result["gap"] == result["restored"] == 0
    assert result["finite"] and result["maps"] > 1e-3, "the maps must be something else than the image"


@pytest.mark.parametrize(
    "sampler", ["euler_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "lcm", "ddpm", "uni_pc", "heunpp2", "res_multistep", "er_sde"]
)
def test_weight_zero_is_the_base_model_in_samplers_of_every_make(intrinsic, sampler):
    assert intrinsic("off_is_base", sampler=sampler, steps=2, cfg=1.0)["gap"] == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_sde"])
def test_weight_one_without_lora_is_plain_concatenation_of_one_noise(intrinsic, kind, sampler):
    """Both streams are then one computation, and doubled keys are the base model's attention."""
    result = intrinsic("twins", kind=kind, sampler=sampler, steps=2)
    assert result["apart"] < 1e-3 and result["from base"] < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_reproduce_and_the_image_reads_its_maps(intrinsic, kind):
    result = intrinsic("coupling", kind=kind)
    assert result["repeated"] == 0
    assert min(result["seed"], result["base"], result["streams"]) > 1e-3


@pytest.mark.parametrize("schedule", ["half", "off", "drop"])
@pytest.mark.parametrize("area", [False, True])
def test_pairs_do_not_depend_on_how_prompts_are_batched(intrinsic, schedule, area):
    result = intrinsic("split_chunks", schedule=schedule, area=area)
    assert result["gap"] < 1e-3
    assert not area or result["moved"] > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", ["half", "off"])
def test_pictures_of_a_batch_do_not_meet(intrinsic, kind, schedule):
    assert intrinsic("batch_of", kind=kind, schedule=schedule) < 1e-3


@pytest.mark.parametrize("kind", ["sd21", "pixart"])
def test_stopped_maps_leave_the_image_identical(intrinsic, kind):
    result = intrinsic("early_stop", kind=kind)
    assert result["image"] == 0 and result["finite"]
    assert result["maps"] > 1e-4, "held maps are not those sampled to the end"
    assert "in all" in result["said"][0] and "stopped from t" in result["said"][1] and "saved" in result["said"][1]


LAST = "output_blocks.11.1.transformer_blocks.0"
TARGETS = {
    "feed-forward": ("sd21", f"{LAST}.ff.net.2"),
    "prompt attention": ("sd21", f"{LAST}.attn2.to_v"),
    "convolution": ("sd21", "out.2"),
    "PixArt's prompt attention": ("pixart", "blocks.5.cross_attn.kv_linear"),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("schedule", ["half", "off"])
def test_image_loras_stay_on_the_image_unless_asked(intrinsic, target, schedule):
    kind, module = TARGETS[target]
    result = intrinsic("leak", kind=kind, target=module, schedule=schedule)
    assert result["image"] > 1e-3 and result["asked"] > 1e-3
    assert result["maps"] < 2e-4 * result["asked"] + 1e-5
    assert result["off"] == 0, "the image is what the base model with its LoRA makes"


def test_controlnet_and_ipadapter_work_on_the_image(intrinsic):
    result = intrinsic("image_branch")
    assert result["gap"] == 0 and result["seen"] and result["moved"] > 1e-3
    coupled = intrinsic("image_branch", schedule="half")
    assert coupled["seen"] and coupled["moved"] > 1e-3, "they see the rows they see without maps"


@pytest.mark.parametrize("kind", KINDS)
def test_another_packs_attention_is_used(intrinsic, kind):
    result = intrinsic("overridden", kind=kind)
    assert result["gap"] < 1e-3 and result["with bias"] > 0


@pytest.mark.parametrize("kind", ["sd21", "pixart"])
def test_cancel_restores_everything(intrinsic, kind):
    assert intrinsic("cancelled", kind=kind) == {"stopped": True, "hooks": 0, "base": 0.0, "again": 0.0}


REFUSALS = {
    "another base": ["Flux model arrived", "SD2.1, SDXL or PixArt"],
    "another base's LoRA": ["wide.safetensors", "another base"],
    "SDXL's LoRA on SD2.1": ["xl.safetensors", "SD20"],
    "unknown layer": ["names layer 10", "1 to 9"],
    "plain latent": ["A plain latent (1, 4, 8, 8) arrived", "Join Intrinsic Latent"],
    "two shapes": ["(1, 1, 64, 64)", "of one shape"],
    "plain model": ["A plain SD20 model arrived", "Intrinsic Co-Generation"],
    "batches": ["2 images and 3 sets of maps"],
    "sizes": ["8 x 8 and 8 x 6"],
    "channels": ["(1, 16, 8, 8)", "(batch, 4, h, w)"],
    "plain to split": ["(1, 4, 8, 8)", "no image with its maps"],
    "attention taken": ["Self-attention middle 0 0", "already replaced", "inside_intrinsic"],
    "bypass": ["bypass mode", "share_image_loras"],
    "twice": ["twice"],
    "sampler": ["dpm_adaptive", "choose euler"],
}


@pytest.mark.parametrize("case", REFUSALS)
def test_wrong_input_is_refused_in_one_sentence(intrinsic, case):
    sentence = intrinsic("refused", case=case)
    assert sentence and sentence.count(". ") == 0 and "\n" not in sentence
    assert not [part for part in REFUSALS[case] if part not in sentence], sentence


@pytest.mark.parametrize("schedule, steps", [("gaussian", None), ("drop", 20), ("off", None)])
def test_the_node_gives_a_model_and_a_plot(intrinsic, schedule, steps):
    assert intrinsic("node", schedule=schedule, steps=steps) == {"model": "ModelPatcher", "ui": 1}


@pytest.mark.parametrize("kind", ["sd21", "pixart"])
@pytest.mark.parametrize("schedule", ["gaussian", "drop"])
def test_diffusers_with_our_processors_agrees(intrinsic, kind, schedule):
    result = intrinsic("agreement_with_diffusers", kind=kind, schedule=schedule)
    if result is None:
        pytest.skip("diffusers is not installed, so its processors were NOT tested: pip install -e .[train]")
    assert result["gap"] < 1e-4 and result["size"] > 0.1
    assert result["names"] and result["numbers"], "both hosts must count layers alike"


@pytest.mark.parametrize("kind, stages, last", [
    ("sd21", {"1": 2, "2": 2, "3": 2, "5": 1, "7": 3, "8": 3, "9": 3}, "up_blocks.3.attentions.2.transformer_blocks.0.attn1"),
    ("sdxl", {"2": 4, "3": 20, "4": 10, "5": 30, "6": 6}, "up_blocks.1.attentions.2.transformer_blocks.1.attn1"),
])  # fmt: skip
def test_published_models_have_their_layers_in_the_right_stages(intrinsic, kind, stages, last):
    result = intrinsic("published_layers", kind=kind)
    assert result["stages"] == stages and result["names"][1] == last
