"""Called by worker.py inside ComfyUI: the same small weights and LoRA in core and in diffusers,
over a whole guided run.
"""

import sys

import comfy.sample
import comfy.samplers
import comfy.utils
import folder_paths
import torch
from comfy.k_diffusion.sampling import sample_euler

ours = ours  # noqa: F821, PLW0127 - set by worker.py
small = sys.modules["__main__"].load_file("inside_intrinsic.py")
KEEP = {}
CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
UNETS = {
    "sd21": {"block_out_channels": (64, 128, 128, 128), "attention_head_dim": (1, 2, 2, 2)},
    "sdxl": {
        # core gives SDXL's heads a width of 64
        "block_out_channels": (32, 64, 64), "attention_head_dim": (1, 1, 1),
        "down_block_types": ("DownBlock2D", CROSS_DOWN, CROSS_DOWN),
        "up_block_types": (CROSS_UP, CROSS_UP, "UpBlock2D"),
        "transformer_layers_per_block": (1, 1, 2), "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}  # fmt: skip


def small_diffusers(kind):
    """A diffusers model of our small core model's shape, with its weights."""
    import diffusers

    made = small.model(kind).model
    if kind == "pixart":
        other = diffusers.PixArtTransformer2DModel(
            num_attention_heads=4, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=6,
            cross_attention_dim=48,
            caption_channels=24, sample_size=64, use_additional_conditions=False, interpolation_scale=1,
        )  # fmt: skip
        names = comfy.utils.pixart_to_diffusers(dict(small.PIXART))
    else:
        other = diffusers.UNet2DConditionModel(
            **UNETS[kind], layers_per_block=2, cross_attention_dim=24, use_linear_projection=True,
            sample_size=8
        )
        names = comfy.utils.unet_to_diffusers(made.model_config.unet_config)
    theirs, weights = other.state_dict(), made.diffusion_model.state_dict()
    filled = {}
    for name in theirs:
        found = names[name]
        filled[name] = weights[found] if isinstance(found, str) else weights[found[0]].narrow(*found[1])
        filled[name] = filled[name].reshape(theirs[name].shape)
    other.load_state_dict(filled, strict=True)
    return other.train(False)


def hosted(kind):
    """The diffusers model with our processors, their state and its layers; once for each kind."""
    if kind not in KEEP:
        other, file = small_diffusers(kind), small.lora(kind)
        reader, processors = ours("models.intrinsic_ldm.lora"), ours("models.intrinsic_ldm.network")
        tensors = comfy.utils.load_torch_file(folder_paths.get_full_path_or_raise("loras", file))
        low_rank = reader.read_lora(tensors, processors.projections(other), base=kind, name=file)
        KEEP[kind] = other, *processors.couple(other, low_rank)
    return KEEP[kind]


def conditions(kind):
    """What the diffusers model is told beside the latents: for each prompt an image's row and its maps'."""
    (positive, more), (negative, less) = small.prompt(1)[0], small.prompt(2)[0]
    said = {"encoder_hidden_states": torch.cat([positive] * 2 + [negative] * 2)}
    if kind == "sdxl":
        pooled = torch.cat([more["pooled_output"]] * 2 + [less["pooled_output"]] * 2)
        side = 8.0 * small.empty(kind=kind)["samples"].shape[-1]  # core tells the size in pixels
        sizes = torch.tensor([[side, side, 0, 0, side, side]]).expand(4, -1)
        said["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes}
    return said


def agreement(kind="sd21", schedule="gaussian", steps=4, cfg=3.0):
    """A guided run in ComfyUI and one of a diffusers model with our processors: the same weights, LoRA,
    noise and sampler.
    """
    try:
        import diffusers  # noqa: F401
    except ImportError:
        return None
    plain = small.model(kind)
    patched = small.coupled(plain, schedule, cut=0.0)
    got = torch.cat(small.sample(patched, small.joined(patched), steps=steps, cfg=cfg).unbind())

    other, coupling, layers = hosted(kind)
    both_prompts = ours("models.intrinsic_ldm.rows").Rows(("cond", "uncond"), 1)
    base = ours("nodes.host.intrinsic_ldm.layers").Base(plain)
    chosen, reading = ours("nodes.host.intrinsic_ldm.model").read_schedule(small.SCHEDULES[schedule], base)
    time = ours("models.core.diffusion.ddpm").sigma_to_ddpm
    noise_levels, said = plain.model.model_sampling, conditions(kind)

    def denoise(x, sigma, **kwargs):
        weights = {
            layer.block: chosen.weight(layer.number(reading), time(float(sigma[0]))) for layer in layers
        }
        rows = torch.cat([noise_levels.calculate_input(sigma, x)] * 2)
        with coupling.call(both_prompts, weights):
            eps = other(rows, timestep=noise_levels.timestep(sigma).repeat(2), return_dict=False, **said)[0][
                :, :4
            ]
        cond, uncond = noise_levels.calculate_denoised(sigma.repeat(2), eps, torch.cat([x] * 2)).chunk(2)
        return uncond + (cond - uncond) * cfg

    sigmas = comfy.samplers.calculate_sigmas(noise_levels, "normal", steps)
    noise = comfy.sample.prepare_noise(small.empty(kind=kind)["samples"], 5)
    started = noise_levels.noise_scaling(sigmas[:1], noise, torch.zeros_like(noise), True)
    want = plain.model.process_latent_out(
        sample_euler(denoise, torch.cat([started] * 2), sigmas, disable=True)
    )
    names = [layer.name for layer in layers] == [layer.name for layer in base.layers]
    numbers = (
        [(layer.stage, layer.block) for layer in layers]
        == [(layer.stage, layer.block) for layer in base.layers]
    )
    return {"gap": small.gap(got, want), "size": float(want.abs().mean()), "names": names, "numbers": numbers}
