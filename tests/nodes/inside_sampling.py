"""Called by worker.py inside ComfyUI: core's samplers on our MODEL, against our own sampler
in plain torch.
"""

from pathlib import Path

import comfy.samplers
import comfy.sd
import torch
from comfy.nested_tensor import NestedTensor

import nodes as core

PROMPT = "a red ball to the left of a blue box"
ours = ours  # noqa: F821, PLW0127 - set by worker.py


class Rig:
    """The tiny preset twice: as core objects, and as plain torch modules, from the same files."""

    def __init__(self):
        loading, weights = (
            ours("nodes.host.modality_forcing.loading"), ours("models.modality_forcing.weights"),
        )
        self.model, self.clip, self.vae = loading.load_modality_forcing(loading.TINY)
        self.network, self.config = weights.load_network(loading.TINY_NETWORK, dtype=torch.float32)
        self.positive, self.negative = (
            core.CLIPTextEncode().encode(self.clip, text)[0] for text in (PROMPT, "")
        )

    def latent(self, batch=1, height=64, width=48):
        return ours("nodes.host.modality_forcing.joint_latent").empty_joint_latent(
            self.model, width, height, batch
        )


_rig = []


def rig():
    return _rig[0]


def start(weights):
    """Load everything once; `weights` is a folder with the tiny files, where the pack has none of its own."""
    loading = ours("nodes.host.modality_forcing.loading")
    if weights:
        for name in ("TINY_NETWORK", "TEXT_FILE", "CODEC_FILE"):
            setattr(loading, name, Path(weights) / getattr(loading, name).name)
    _rig.append(Rig())


def ksample(model, latent, *, steps=4, cfg=1.0, sampler="euler", scheduler="simple", seed=7, denoise=1.0):
    r = rig()
    (out,) = core.KSampler().sample(
        model, seed, steps, cfg, sampler, scheduler, r.positive, r.negative, latent, denoise
    )
    return out


def plain_sample(mode, latent_shapes, *, steps, cfg, log2_alpha=None, seed=7, given=None, **more):
    """The same run with `models/modality_forcing/sampling.py` alone."""
    r, sampling = rig(), ours("models.modality_forcing.sampling")
    rgb, depth = sampling.draw_noise(seed, *latent_shapes)
    if mode == "image_to_depth":
        rgb = given
    if mode == "depth_to_image":
        depth = given
    schedule = sampling.make_schedule(mode, steps, log2_alpha=log2_alpha)
    context, empty = r.positive[0][0], r.negative[0][0]
    return sampling.sample(
        r.network, rgb, depth, schedule, context=context, null_context=empty, guidance=cfg, **more
    )


def difference(got, want):
    return max(float((a - b).abs().max()) for a, b in zip(got, want))


def schedule_table(steps, scheduler="simple"):
    """Largest difference between a stock scheduler's sigmas and the published table."""
    sigmas = comfy.samplers.calculate_sigmas(rig().model.get_model_object("model_sampling"), scheduler, steps)
    return float(
        (sigmas - ours("models.modality_forcing.sampling").make_schedule("joint", steps).t_rgb).abs().max()
    )


def joint_agreement(log2_alpha, cfg, batch, steps=10):
    r = rig()
    model = (
        r.model
        if log2_alpha is None
        else ours("nodes.host.modality_forcing.joint_model").with_order(r.model, log2_alpha)
    )
    latent = r.latent(batch)
    got = ksample(model, latent, steps=steps, cfg=cfg)["samples"].unbind()
    want = plain_sample(
        "joint",
        [part.shape for part in latent["samples"].unbind()],
        steps=steps,
        cfg=cfg,
        log2_alpha=log2_alpha,
    )
    return {
        "difference": difference(got, want), "size": float(want[1].abs().mean()),
        "shapes": [list(part.shape) for part in got],
    }


def given_stream(mode, sampler="euler"):
    """One stream masked: compared with the plain sampler's mode, and its bits with what was given."""
    r = rig()
    streams = list(r.latent()["samples"].unbind())
    index = 0 if mode == "image_to_depth" else 1
    given = torch.randn(streams[index].shape, generator=torch.Generator().manual_seed(3)) * 0.7
    streams[index] = given
    masks = [torch.ones_like(part) for part in streams]
    masks[index] = torch.zeros_like(masks[index])
    latent = {"samples": NestedTensor(streams), "noise_mask": NestedTensor(masks)}
    got = ksample(r.model, latent, sampler=sampler)["samples"].unbind()
    want = plain_sample(mode, [part.shape for part in streams], steps=4, cfg=1.0, given=given)
    return {"difference": difference(got, want), "bit_equal": bool(torch.equal(got[index], given))}


def partly_given():
    """The left half of the depth kept, the rest sampled."""
    streams = list(rig().latent()["samples"].unbind())
    streams[1] = torch.rand(streams[1].shape, generator=torch.Generator().manual_seed(3)) + 0.1
    masks = [torch.ones_like(part) for part in streams]
    masks[1][..., :24] = 0
    out = ksample(rig().model, {"samples": NestedTensor(streams), "noise_mask": NestedTensor(masks)})[
        "samples"
    ].unbind()
    kept, sampled = out[1][..., :24], out[1][..., 24:]
    return {
        "kept_bit_equal": bool(torch.equal(kept, streams[1][..., :24])),
        "rest_sampled": float((sampled - streams[1][..., 24:]).abs().mean()) > 0.05,
        "finite": all(bool(part.isfinite().all()) for part in out),
    }


def partial_denoise(log2_alpha, steps=4, denoise=0.5):
    """KSampler's denoise against the plain sampler started half way, each stream noised to its own time."""
    r, sampling = rig(), ours("models.modality_forcing.sampling")
    shapes = [part.shape for part in r.latent()["samples"].unbind()]
    clean = [
        torch.randn(shape, generator=torch.Generator().manual_seed(i)) * 0.5 for i, shape in enumerate(shapes)
    ]
    model = ours("nodes.host.modality_forcing.joint_model").with_order(r.model, log2_alpha)
    got = ksample(model, {"samples": NestedTensor(clean)}, steps=steps, denoise=denoise)["samples"].unbind()
    whole = sampling.make_schedule("joint", int(steps / denoise), log2_alpha=log2_alpha)
    schedule = sampling.TimeSchedule(whole.t_rgb[-steps - 1 :], whole.t_depth[-steps - 1 :])
    noise = sampling.draw_noise(7, *shapes)
    starts = [(1 - t[0]) * x + t[0] * e for x, e, t in zip(clean, noise, (schedule.t_rgb, schedule.t_depth))]
    return difference(got, sampling.sample(r.network, *starts, schedule, context=r.positive[0][0]))


def patched_shift(patch):
    """A core sampling patch that sets the same shift must change nothing."""
    import math

    from comfy_extras.nodes_model_advanced import ModelSamplingFlux, ModelSamplingSD3

    r = rig()
    if patch == "ModelSamplingSD3":
        (model,) = ModelSamplingSD3().patch(r.model, math.exp(1.1))
    else:
        (model,) = ModelSamplingFlux().patch(r.model, 1.1, 1.1, 64, 64)
    latent = r.latent()
    return difference(
        ksample(model, latent)["samples"].unbind(), ksample(r.model, latent)["samples"].unbind()
    )


def released_layout(path):
    """A file in the released form (bfloat16, `dit.` names, no metadata) over FLUX.2's latent: loaded,
    and sampled with any context.
    """
    from dataclasses import replace

    from safetensors.torch import save_file

    config = replace(rig().config, in_channels=128, context_in_dim=96, infinite_sky=False)
    torch.manual_seed(0)
    network = ours("models.modality_forcing.network").ModalityForcing(config)
    for value in network.parameters():
        torch.nn.init.normal_(value, std=0.5 * value.shape[-1] ** -0.5)
    network = network.to(torch.bfloat16)
    save_file({f"dit.{name}": value for name, value in network.state_dict().items()}, path)
    model = ours("nodes.host.modality_forcing.loading").load_joint_model(path)
    latent = ours("nodes.host.modality_forcing.joint_latent").empty_joint_latent(model, 48, 64, 1)
    context = torch.randn(1, 10, 96)
    (out,) = core.KSampler().sample(
        model, 7, 3, 1.0, "euler", "simple", [[context, {}]], [[context, {}]], latent
    )
    sampling, shapes = (
        ours("models.modality_forcing.sampling"), [part.shape for part in latent["samples"].unbind()],
    )
    schedule = sampling.make_schedule("joint", 3)
    want = sampling.sample(network.float(), *sampling.draw_noise(7, *shapes), schedule, context=context)
    return {
        "difference": difference(out["samples"].unbind(), want),
        "format": type(model.model.latent_format).__name__,
        "shapes": [list(shape) for shape in shapes],
    }


def lora(strength):
    """How far a LoRA, under core's own key names, moves the result;
    and that the model without it is as before.
    """
    r = rig()
    down, up = torch.randn(2, 4, 192, generator=torch.Generator().manual_seed(1)).mul(0.2)
    width = r.config.hidden_size
    names = "diffusion_model.double_blocks.0.img_attn.proj"
    state = {
        f"{names}.lora_down.weight": down[:, :width], f"{names}.lora_up.weight": up[:, :width].T.contiguous(),
    }
    before = ksample(r.model, r.latent())["samples"].unbind()
    patched, _ = comfy.sd.load_lora_for_models(r.model, None, state, strength, 0)
    moved = difference(ksample(patched, r.latent())["samples"].unbind(), before)
    return {"moved": moved, "restored": difference(ksample(r.model, r.latent())["samples"].unbind(), before)}


def bfloat16_depth(log2_alpha):
    """Mean difference in depth between the network in bfloat16 and in float32."""
    r = rig()
    config = ours("nodes.host.modality_forcing.joint_model").JointConfig(r.config)
    config.set_inference_dtype(torch.bfloat16, None)
    half = r.model.clone()
    half.model = config.get_model({})
    half.model.load_model_weights({name: value.clone() for name, value in r.network.state_dict().items()})
    order = ours("nodes.host.modality_forcing.joint_model").with_order
    depths = [
        ksample(order(model, log2_alpha), r.latent())["samples"].unbind()[1] for model in (half, r.model)
    ]
    return float((depths[0] - depths[1]).abs().mean())


def stock_samplers(samplers, steps=3):
    """Which samplers gave finite values of the right shapes, under guidance,
    with the depth on its own schedule.
    """
    model = ours("nodes.host.modality_forcing.joint_model").with_order(rig().model, 2.0)
    out = {}
    for name in samplers:
        streams = ksample(model, rig().latent(2, 64, 64), steps=steps, cfg=3.0, sampler=name)[
            "samples"
        ].unbind()
        out[name] = (
            all(bool(part.isfinite().all()) for part in streams)
            and [list(part.shape) for part in streams]
        )
    return out
