"""Called by worker.py inside ComfyUI: given and partly given streams through core's KSampler,
against our pipeline in plain torch.
"""

import sys

import torch
from comfy.nested_tensor import NestedTensor

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py
# holds the models; its `start` was called before
sampling = sys.modules["spatialweave_tests_inside_sampling"]


def run(node, *values, **named):
    return core.NODE_CLASS_MAPPINGS[f"SpatialWeave_{node}"].execute(*values, **named).result


def seeded(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(5))


def picture(batch=1, height=64, width=48, channels=3):
    return seeded(batch, height, width, channels)


def view(batch=1, height=64, width=48, holes=False, sky=False, sparse=False):
    """A depth with a ramp, and where asked a hole at the left, sky above, or one pixel in twenty and no more,
    as of a lidar.
    """
    depth = (1 + torch.linspace(0, 3, width) + seeded(batch, height, width)) * 7
    if sky:
        depth[:, : height // 4] = torch.inf
    if holes:
        depth[:, height // 2 :, : width // 3] = 0
    if sparse:
        depth[seeded(batch, height, width) > 0.05] = 0
    return ours("models.core.geometry.view").View.from_depth(depth, units="metric")


def pipeline():
    r = sampling.rig()
    text = ours("models.tiny.weights").load_text_encoder(
        ours("nodes.host.modality_forcing.loading").TEXT_FILE
    )
    return ours("models.modality_forcing.pipeline").ModalityForcingPipeline(
        r.network, r.config, r.vae.first_stage_model, text
    )


def same_bits(got, want):
    """Equal bit for bit, NaN to NaN."""
    return (
        got.shape == want.shape
        and bool(torch.equal(got.nan_to_num(nan=-77.0), want.nan_to_num(nan=-77.0)))
    )


def agreement(
    mode, *, batch=1, size=(64, 48), channels=3, holes=False, sky=False, sparse=False, cfg=1.0,
    sampler="euler", log2_alpha=None,
):
    """The nodes and KSampler, and the pipeline with the same seed: how far apart,
    and whether what was given came back.
    """
    r = sampling.rig()
    given = (
        {"image": picture(batch, *size, channels)}
        if mode == "image_to_depth"
        else {"depth": view(batch, *size, holes, sky, sparse)}
    )
    if mode == "image_to_depth":
        latent, *_ = run("ImageToDepthLatent", r.model, r.vae, given["image"])
    elif mode == "depth_to_image":
        latent, *_ = run("DepthToImageLatent", r.model, given["depth"])
    else:
        latent, *_ = run("MaskedJointLatent", r.model, view=given["depth"])
    model = r.model if log2_alpha is None else run("ModalityOrder", r.model, log2_alpha)[0]
    out = sampling.ksample(model, latent, cfg=cfg, sampler=sampler)
    image, depth = run("DecodeJointLatent", out, r.vae)
    settings = {
        "steps": 4, "guidance": cfg, "seed": 7, "log2_alpha": 0.0 if log2_alpha is None else log2_alpha,
    }
    want = pipeline()(sampling.PROMPT, mode=mode, **given, **settings)
    streams, clean, masks = (
        out["samples"].unbind(), latent["samples"].unbind(), latent["noise_mask"].unbind(),
    )
    kept = [
        same_bits(a[m.expand_as(a) == 0], b[m.expand_as(a) == 0]) for a, b, m in zip(streams, clean, masks)
    ]
    made = [streams[index] for index in (0, 1) if bool(masks[index].any())]
    plain = [(want.rgb_latent, want.depth_net)[index] for index in (0, 1) if bool(masks[index].any())]
    return {
        "latent": sampling.difference(made, plain),
        "size": min(float(part.abs().mean()) for part in plain),
        "image": float((image - want.image).abs().max()) if mode != "image_to_depth" else 0.0,
        "depth": float(((depth.depth - want.view.depth) / (1 + want.view.depth)).abs().max())
        if mode != "depth_to_image"
        else 0.0,
        "kept": kept,
        "missing": bool(torch.equal(depth.mask, want.view.mask)),
        "shapes": [list(image.shape), list(depth.depth.shape)],
    }


def refined(log2_alpha=5.0, size=(50, 70), cfg=2.0):
    """A joint run and a second one on its image, against the pipeline's refine."""
    r = sampling.rig()
    (empty,) = run("EmptyJointLatent", r.model, size[1], size[0], 1)
    first = sampling.ksample(run("ModalityOrder", r.model, log2_alpha)[0], empty, cfg=cfg)
    masked = first | {
        "noise_mask": NestedTensor([torch.ones_like(part) for part in first["samples"].unbind()])
    }
    seconds = [sampling.ksample(r.model, run("RefineDepthLatent", latent)[0]) for latent in (first, masked)]
    image, depth = run("DecodeJointLatent", seconds[0], r.vae)
    settings = {"steps": 4, "guidance": cfg, "seed": 7, "log2_alpha": log2_alpha}
    want = pipeline()(sampling.PROMPT, height=size[0], width=size[1], refine=True, **settings)
    (rgb, net), (_, before) = seconds[0]["samples"].unbind(), first["samples"].unbind()
    return {
        "difference": sampling.difference([rgb, net], [want.rgb_latent, want.depth_net]),
        "kept": same_bits(rgb, first["samples"].unbind()[0]),
        "moved": float((net - before).abs().mean()),
        "masks_do_not_matter": sampling.difference(seconds[1]["samples"].unbind(), [rgb, net]),
        "shapes": [list(image.shape), list(depth.depth.shape)],
    }


def inpainted():
    """The right half of an image and the lower half of its depth sampled anew, with masks of the picture's
    size and of another.
    """
    r = sampling.rig()
    right, lower = torch.zeros(1, 64, 48), torch.zeros(32, 24)
    right[..., 32:], lower[16:] = 1, 1
    parts = {"image": picture(), "image_mask": right, "view": view(), "depth_mask": lower}
    latent, *_ = run("MaskedJointLatent", r.model, r.vae, **parts)
    (image, depth), out = latent["samples"].unbind(), sampling.ksample(r.model, latent)["samples"].unbind()
    moved = [(a - b).abs() for a, b in zip(out, (image, depth))]
    return {
        "image_kept": float(moved[0][..., :2].max()),
        "image_moved": float(moved[0][..., 2:].mean()),
        "depth_kept": float(moved[1][:, :, :32].max()),
        "depth_moved": float(moved[1][:, :, 32:].mean()),
    }


def batches():
    """One view for the masks of three, one image for two views."""
    r = sampling.rig()
    masks = torch.ones(3, 64, 48)
    first, *_ = run("MaskedJointLatent", r.model, r.vae, image=picture(), image_mask=masks)
    second, *_ = run("MaskedJointLatent", r.model, r.vae, image=picture(), view=view(2, holes=True))
    return [[list(part.shape) for part in latent["samples"].unbind()] for latent in (first, second)]


def refused(case):
    """The sentence with which a wrong input is refused."""
    r = sampling.rig()
    other = type("Other", (), {"model": type("SDXL", (), {})()})()
    blind = ours("models.core.geometry.view").View.from_depth(torch.zeros(1, 64, 48), units="metric")

    def masked(**parts):
        return run("MaskedJointLatent", r.model, parts.pop("vae", r.vae), **parts)

    cases = {
        "another model": lambda: run("DepthToImageLatent", other, view()),
        "no valid depth": lambda: run("DepthToImageLatent", r.model, blind),
        "nothing given": lambda: masked(),
        "all given": lambda: masked(image=picture(), view=view()),
        "image without VAE": lambda: masked(vae=None, image=picture()),
        "mask without image": lambda: masked(view=view(holes=True), image_mask=torch.ones(1, 64, 48)),
        "mask without view": lambda: masked(image=picture(), depth_mask=torch.ones(1, 64, 48)),
        "two sizes": lambda: masked(image=picture(height=80), view=view()),
        "two batches": lambda: masked(image=picture(2), view=view(3, holes=True)),
        "another VAE": lambda: run("ImageToDepthLatent", r.model, core_vae(), picture()),
    }
    try:
        cases[case]()
    except ValueError as error:
        return str(error)
    return None


def core_vae():
    """A VAE of another latent space, as far as it is looked at."""
    return type("Vae", (), {"latent_channels": 4, "spacial_compression_decode": lambda self: 8})()
