"""Called by worker.py inside ComfyUI: every sampler that core offers, on data whose exact denoiser is known.

The data are Gaussian: every value of the image has mean 0.5, of the depth 0.8, both with deviation 0.3. Their best denoiser is a
closed formula, and the flow carries noise e to exactly mean + deviation * e. It takes the network's place behind the host, through
core's own wrapper, so that a sampler's result is compared with a truth that no code of ours computes.
"""

import sys

import comfy.patcher_extension
import comfy.samplers
import torch
from comfy.nested_tensor import NestedTensor

ours = ours  # noqa: F821, PLW0127 - set by worker.py
sampling = sys.modules["spatialweave_tests_inside_sampling"]  # holds the models; its `start` was called before
MEANS, DEVIATION, SEED = (0.5, 0.8), 0.3, 7


def denoise(x, t, mean):
    """The expected clean value of x = (1 - t) clean + t noise."""
    t = t.reshape(-1, 1, 1, 1)
    gain = (1 - t) * DEVIATION**2 / ((1 - t) ** 2 * DEVIATION**2 + t**2)
    return mean + gain * (x - (1 - t) * mean)


def gaussian(executor, x, times, context, options, *, log2_alpha, **kwargs):
    """In the network's place: what it would answer had it learned the Gaussian data perfectly."""
    image, depth = denoise(x[0], times.image, MEANS[0]), denoise(times.seen_depth, times.depth, MEANS[1])
    velocity = (x[0] - image) / times.image.clamp(min=1e-6).reshape(-1, 1, 1, 1)
    carried = ours("models.core.diffusion.carry").carried_velocity(times.carried_depth, depth, times.sigma, log2_alpha)
    return [velocity, carried]


def offered():
    return list(comfy.samplers.KSampler.SAMPLERS)


def matrix(mode, log2_alpha, samplers, steps):
    """Per sampler: distance to the truth, mean and deviation of what was made, whether the given stream came back, all finite."""
    r = sampling.rig()
    model = ours("nodes.host.joint_model").with_order(r.model, log2_alpha)
    kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
    model.add_wrapper_with_key(kind, "truth", gaussian)
    empty = r.latent(1, 64, 64)["samples"].unbind()
    noise = ours("models.modality_forcing.sampling").draw_noise(SEED, *(part.shape for part in empty))
    truth = [mean + DEVIATION * e for mean, e in zip(MEANS, noise)]
    given = {"joint": None, "image_to_depth": 0, "depth_to_image": 1}[mode]
    streams = [part if index == given else torch.zeros_like(part) for index, part in enumerate(truth)]
    masks = [torch.full_like(part, float(index != given)) for index, part in enumerate(truth)]
    latent = {"samples": NestedTensor(streams), "noise_mask": NestedTensor(masks)}
    out = {}
    for name in samplers:
        got = sampling.ksample(model, latent, sampler=name, steps=steps, seed=SEED)["samples"].unbind()
        made = [index for index in (0, 1) if index != given]
        out[name] = {
            "finite": all(bool(part.isfinite().all()) for part in got),
            "given": given is None or bool(torch.equal(got[given], truth[given])),
            "distance": max(float((got[i] - truth[i]).square().mean().sqrt()) for i in made),
            "mean": max(abs(float(got[i].mean() - truth[i].mean())) for i in made),
            "deviation": [float(got[i].std()) for i in made],
        }
    return out


def refused(name):
    """The sentence with which a sampler is refused, from the stock KSampler."""
    try:
        sampling.ksample(sampling.rig().model, sampling.rig().latent(1, 32, 32), sampler=name, steps=2)
    except ValueError as error:
        return str(error)
    return None
