"""ComfyUI's parts that the pack wraps, calls or reads, by name and order: a newer core that changes one of
them fails here, with its name, before anything else does.
"""

import pytest

pytestmark = pytest.mark.comfyui
FILE = "inside_core_interface.py"
FIRST = {  # the first parameters, by position
    "CFGGuider.outer_sample": [
        "self", "noise", "latent_image", "sampler", "sigmas", "denoise_mask", "callback", "disable_pbar",
        "seed",
    ],
    "CFGGuider.inner_sample": ["self", "noise", "latent_image", "device", "sampler", "sigmas"],
    "calc_cond_batch": ["model", "conds", "x_in", "timestep", "model_options"],
    "BaseModel._apply_model": [
        "self", "x", "t", "c_concat", "c_crossattn", "control", "transformer_options",
    ],
    "BaseModel.scale_latent_inpaint": ["self"],
    "VAE.decode_tiled_": ["self", "samples", "tile_x", "tile_y", "overlap"],
    "PixArt attention": ["self", "x", "mask", "HW", "block_id"],
    "ModelPatcher.add_patches": ["self", "patches"],
    "ModelPatcher.add_hook_patches": ["self", "hook", "patches"],
    "PromptServer.send_progress_text": ["self", "text", "node_id"],
}  # fmt: skip
NAMED = {  # and those that are passed by name
    "CFGGuider.outer_sample": {"latent_shapes"},
    "BaseModel.scale_latent_inpaint": {"sigma", "noise", "latent_image"},
    "PromptServer.send_progress_text": {"sid"},
}


@pytest.fixture(scope="module")
def core(inside, tiny_weights):
    inside("inside_sampling.py", "start", weights=tiny_weights)
    return lambda function: inside(FILE, function)


def test_what_is_wrapped_and_called_has_the_parameters_that_are_passed(core):
    found = core("parameters")
    assert {name: found[name][: len(names)] for name, names in FIRST.items()} == FIRST
    assert not {name: names - set(found[name]) for name, names in NAMED.items() if names - set(found[name])}


def test_the_function_after_cfg_is_told_what_ours_reads(core):
    assert {"cond_denoised", "denoised", "model", "uncond", "uncond_denoised"} <= set(core("post_cfg_keys"))


def test_the_attention_that_a_checkpoint_asks_for_is_handed_on_where_core_knows_it(core):
    unet, pixart, unet_chosen, pixart_chosen = core("attention_of_the_checkpoint")
    assert "preferred_attention" not in unet + pixart
    assert unet_chosen == sorted([*unet, "preferred_attention"])
    assert pixart_chosen == sorted([*pixart, "preferred_attention"])
