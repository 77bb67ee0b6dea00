"""Joint latents and the joint model in nodes of core that are made for other latents and models: each says
in one sentence what to do, where core's own error would help nobody.
"""

import pytest

pytestmark = pytest.mark.comfyui
FILE = "inside_core_latents.py"
JOINT = (
    "Expected a plain latent, got a joint one of an image and its depth. Split it with Split Joint Latent "
    "first; Save Joint Latent saves it whole."
)


@pytest.fixture(scope="module")
def latents(inside, tiny_weights):
    inside("inside_sampling.py", "start", weights=tiny_weights)
    return lambda function, **kwargs: inside(FILE, function, **kwargs)


@pytest.mark.parametrize("sampled", [False, True], ids=["empty", "sampled"])
def test_every_node_for_one_latent_says_what_to_do(latents, sampled):
    said = latents("refusals", sampled=sampled)
    assert len(said) > 20
    assert {name: text for name, text in said.items() if text != JOINT} == {}


def test_a_latent_of_image_and_maps_names_its_own_splitter(latents):
    said = latents("intrinsic_refusals")
    assert set(said.values()) == {
        "Expected a plain latent, got a joint one of an image and its maps. Split it with Split Intrinsic "
        "Latent first."
    }


def test_what_core_can_do_with_nested_tensors_it_still_does(latents):
    claims = latents("what_core_does_with_nested_tensors")
    assert all(claims.values()), claims


@pytest.mark.parametrize("through", [None, "a LoRA"])
def test_a_sampler_with_another_model_is_named_before_it_runs(latents, through):
    said = latents("sampler_of_another_model", loader="CheckpointLoaderSimple", through=through)
    assert said == (
        "Expected a joint model at model of KSampler (node 4), which samples the joint latent, got the model "
        "of CheckpointLoaderSimple. Connect that of Load Modality Forcing, or an Empty Latent Image instead."
    )


def test_a_joint_model_and_an_unknown_loader_are_left_alone(latents):
    for loader in ("SpatialWeave_LoadModalityForcing", "SomeOtherPacksLoader"):
        assert latents("sampler_of_another_model", loader=loader) == "no error"


def test_nodes_for_a_unet_are_refused_by_name(latents):
    said = latents("unet_nodes")
    assert list(said) == ["FreeU", "FreeU_V2"]
    for name, text in said.items():
        assert text.startswith("Expected a UNet") and name in text and "Remove that node" in text


@pytest.mark.parametrize("kind", ["LoraLoader", "LoraLoaderModelOnly", "of a clone", "hook"])
def test_a_lora_without_a_layer_of_this_network_is_refused(latents, kind, tmp_path):
    said = latents("foreign_lora", folder=str(tmp_path), kind=kind)
    assert said.startswith("Expected a LoRA for this joint model or its FLUX.2 base, got one for another")


def test_changes_of_its_own_layers_are_taken_and_clones_are_freed(latents):
    assert latents("own_lora_still_loads") and latents("patchers_are_freed")
