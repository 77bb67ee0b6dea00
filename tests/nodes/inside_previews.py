"""Called by worker.py inside ComfyUI: the previews that core sends while it samples, caught where it hands
them to its server.
"""

import sys

import comfy.latent_formats
import comfy.utils
import latent_preview
import torch

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py
# holds the models; its `start` was called before
sampling = sys.modules["spatialweave_tests_inside_sampling"]


def watched(method, run):
    """(what `run` gives, the previews core sent meanwhile: kind, picture, largest size)."""
    sent, before = [], comfy.utils.PROGRESS_BAR_HOOK
    latent_preview.set_preview_method(method)
    comfy.utils.set_progress_bar_global_hook(lambda value, total, preview, node_id=None: sent.append(preview))
    try:
        return run(), [preview for preview in sent if preview is not None]
    finally:
        comfy.utils.set_progress_bar_global_hook(before)
        latent_preview.set_preview_method("default")


def pixels(picture):
    values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return values.reshape(picture.height, picture.width, 3).float() / 255


def preview_object():
    return sampling.rig().model.model.latent_format.latent_rgb_factors_reshape


def previews(log2_alpha, height, width, batch=1, steps=3):
    """Of a run: sizes, and how far the last preview is from the result that the run gave."""
    r = sampling.rig()
    model = ours("nodes.host.modality_forcing.joint_model").with_order(r.model, log2_alpha)
    result, sent = watched(
        "latent2rgb", lambda: sampling.ksample(model, r.latent(batch, height, width), steps=steps)
    )
    image, depth = result["samples"].unbind()
    last = pixels(sent[-1][1])
    want = ours("models.core.visualize.depth_colors").map_colors(1 - depth[0, 0] / 2)
    plain = preview_object().image_format
    colours = pixels(
        latent_preview.Latent2RGBPreviewer(
            plain.latent_rgb_factors, plain.latent_rgb_factors_bias
        ).decode_latent_to_preview(image)
    )
    left = torch.nn.functional.interpolate(
        colours.movedim(-1, 0)[None], last[:, : last.shape[1] // 2].shape[:2], mode="bilinear", antialias=True
    )
    right = last[:, last.shape[1] // 2 :]
    return {
        "count": len(sent),
        "shape": list(last.shape),
        "depth": float((right - want).abs().max()) if right.shape == want.shape else None,
        "image": float((last[:, : last.shape[1] // 2] - left[0].movedim(0, -1)).abs().max()),
        "moved": float((pixels(sent[0][1]) - last).abs().mean()),
        "forgotten": preview_object().depth is None and preview_object().previewer is None,
    }


def without():
    """Previews switched off: none is sent, the result is the same."""
    r = sampling.rig()
    quiet, sent = watched("none", lambda: sampling.ksample(r.model, r.latent()))
    shown, _ = watched("latent2rgb", lambda: sampling.ksample(r.model, r.latent()))
    return {
        "sent": len(sent),
        "same": all(torch.equal(a, b) for a, b in zip(quiet["samples"].unbind(), shown["samples"].unbind())),
    }


def denoised_output():
    """SamplerCustomAdvanced's second output, which core takes from the same callback: nested,
    and the clean result at the last step.
    """
    r, extra = sampling.rig(), core.NODE_CLASS_MAPPINGS
    guider = extra["BasicGuider"].execute(r.model, r.positive).result[0]
    sigmas = extra["BasicScheduler"].execute(r.model, "simple", 3, 1.0).result[0]
    parts = (
        extra["RandomNoise"].execute(7).result[0], guider, extra["KSamplerSelect"].execute("euler").result[0],
        sigmas, r.latent(),
    )
    (out, denoised), sent = watched(
        "latent2rgb", lambda: extra["SamplerCustomAdvanced"].execute(*parts).result
    )
    pairs = zip(out["samples"].unbind(), denoised["samples"].unbind())
    return {"difference": max(float((a - b).abs().max()) for a, b in pairs), "previews": len(sent)}


def flux2():
    """FLUX.2's latent: core's own colours on the left, at twice the latent's size,
    and a depth of 512 pixels made smaller.
    """
    joint = ours("nodes.host.modality_forcing.previews").with_pair_preview(comfy.latent_formats.Flux2())
    preview, latent = joint.latent_rgb_factors_reshape, torch.zeros(2, 128, 32, 32)
    preview.depth = torch.linspace(0, 2, 512).expand(2, 1, 512, 512)
    latent_preview.set_preview_method("latent2rgb")
    try:
        previewer = latent_preview.get_previewer(torch.device("cpu"), joint)
        picture = pixels(previewer.decode_latent_to_preview(latent))
    finally:
        latent_preview.set_preview_method("default")
    bias = (torch.tensor(comfy.latent_formats.Flux2().latent_rgb_factors_bias) + 1) / 2
    return {
        "shape": list(picture.shape), "left": float((picture[:, :256] - bias).abs().max()),
        "near": picture[0, 256].tolist(),
    }


def after_an_error():
    """A run that fails in the middle leaves nothing of itself in the preview."""
    r = sampling.rig()

    def fail(*args):
        raise RuntimeError("stopped")

    broken = r.model.clone()
    broken.set_model_sampler_post_cfg_function(fail)
    try:
        watched("latent2rgb", lambda: sampling.ksample(broken, r.latent()))
    except RuntimeError:
        return preview_object().depth is None
    return False
