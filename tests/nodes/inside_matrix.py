"""Called by worker.py inside ComfyUI: every sampler and scheduler that core offers,
on data whose exact denoiser is known.

The data are Gaussian: every value of the image has mean 0.5, of the depth 0.8, both with deviation 0.3. Their
best denoiser is a closed formula, and the flow carries noise e to exactly mean + deviation * e. It takes the
network's place behind the host, through core's own wrapper, so that a sampler's result is compared with a
truth that no code of ours computes.
"""

import asyncio
import os
import sys
from typing import NamedTuple

import comfy.patcher_extension
import comfy.samplers
import folder_paths
import torch
from comfy.nested_tensor import NestedTensor

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py
# holds the models; its `start` was called before
sampling = sys.modules["spatialweave_tests_inside_sampling"]
MEANS, DEVIATION, SEED = (0.5, 0.8), 0.3, 7
EXTRAS = "advanced_samplers align_your_steps ar_video flux gits lt optimalsteps perpneg void".split()


def denoise(x, t, mean):
    """The expected clean value of x = (1 - t) clean + t noise."""
    t = t.reshape(-1, 1, 1, 1)
    gain = (1 - t) * DEVIATION**2 / ((1 - t) ** 2 * DEVIATION**2 + t**2)
    return mean + gain * (x - (1 - t) * mean)


def gaussian(executor, x, times, context, options, *, log2_alpha, **kwargs):
    """In the network's place: what it would answer had it learned the Gaussian data perfectly."""
    image, depth = denoise(x[0], times.image, MEANS[0]), denoise(times.seen_depth, times.depth, MEANS[1])
    velocity = (x[0] - image) / times.image.clamp(min=1e-6).reshape(-1, 1, 1, 1)
    carried = ours("models.core.diffusion.carry").carried_velocity(
        times.carried_depth, depth, times.sigma, log2_alpha
    )
    return [velocity, carried]


def node(name, *values, **named):
    """Core's node, run on its own."""
    return core.NODE_CLASS_MAPPINGS[name].execute(*values, **named).result


def load_extras(*names):
    """Core's extra nodes of these files, as its own start does."""
    folder = os.path.join(folder_paths.base_path, "comfy_extras")
    for name in names:
        assert asyncio.run(
            core.load_custom_node(os.path.join(folder, f"nodes_{name}.py"), module_parent="comfy_extras")
        ), name


class Case(NamedTuple):
    """A mode, ready to be sampled, with the end of its flow."""

    model: object
    latent: dict
    truth: list
    given: int | None

    def judge(self, got):
        """Distance to the truth, mean and deviation of what was made, whether the given stream came
        back, all finite.
        """
        got, made = got["samples"].unbind(), [index for index in (0, 1) if index != self.given]
        return {
            "finite": all(bool(part.isfinite().all()) for part in got),
            "given": self.given is None or bool(torch.equal(got[self.given], self.truth[self.given])),
            "distance": max(float((got[i] - self.truth[i]).square().mean().sqrt()) for i in made),
            "mean": max(abs(float(got[i].mean() - self.truth[i].mean())) for i in made),
            "deviation": [float(got[i].std()) for i in made],
        }


def prepare(mode, log2_alpha):
    r = sampling.rig()
    model = ours("nodes.host.modality_forcing.joint_model").with_order(r.model, log2_alpha)
    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "truth", gaussian)
    empty = r.latent(1, 64, 64)["samples"].unbind()
    noise = ours("models.modality_forcing.sampling").draw_noise(SEED, *(part.shape for part in empty))
    truth = [mean + DEVIATION * e for mean, e in zip(MEANS, noise)]
    given = {"joint": None, "image_to_depth": 0, "depth_to_image": 1}[mode]
    streams = [part if index == given else torch.zeros_like(part) for index, part in enumerate(truth)]
    masks = [torch.full_like(part, float(index != given)) for index, part in enumerate(truth)]
    return Case(model, {"samples": NestedTensor(streams), "noise_mask": NestedTensor(masks)}, truth, given)


def offered():
    return list(comfy.samplers.KSampler.SAMPLERS)


def matrix(mode, log2_alpha, samplers, steps, scheduler="simple"):
    """Core's KSampler with each of the samplers."""
    case = prepare(mode, log2_alpha)
    settings = {"steps": steps, "seed": SEED, "scheduler": scheduler}
    return {
        name: case.judge(sampling.ksample(case.model, case.latent, sampler=name, **settings))
        for name in samplers
    }


def makers(kind):
    """Ids of core's nodes whose first output is a SAMPLER, or SIGMAS made from nothing but numbers
    and a model.
    """
    load_extras(*EXTRAS)
    found = []
    for name, made in core.NODE_CLASS_MAPPINGS.items():
        schema = (
            made.GET_SCHEMA()
            if hasattr(made, "GET_SCHEMA") and not name.startswith("SpatialWeave_")
            else None
        )
        if (
            schema
            and schema.outputs
            and schema.outputs[0].io_type == kind
            and "SIGMAS" not in {put.io_type for put in schema.inputs}
        ):
            found.append(name)
    return sorted(found)


def make(name, model, **chosen):
    """What a node makes with its defaults."""
    values = {}
    for put in core.NODE_CLASS_MAPPINGS[name].GET_SCHEMA().inputs:
        if put.io_type == "MODEL":
            values[put.id] = model
        elif not getattr(put, "optional", False):
            default = getattr(put, "default", None)
            values[put.id] = put.options[0] if default is None and getattr(put, "options", None) else default
    return node(name, **values | chosen)[0]


def advanced(case, *, sampler="euler", sigmas=None, guider="CFGGuider", steps=60):
    """Core's SamplerCustomAdvanced; `sampler` a name or a SAMPLER."""
    r = sampling.rig()
    guiders = {
        "BasicGuider": lambda: node("BasicGuider", case.model, r.positive),
        "CFGGuider": lambda: node("CFGGuider", case.model, r.positive, r.negative, 3.0),
        "DualCFGGuider": lambda: node(
            "DualCFGGuider", case.model, r.positive, r.positive, r.negative, 3.0, 3.0, "regular"
        ),
        "PerpNegGuider": lambda: node(
            "PerpNegGuider", case.model, r.positive, r.negative, r.negative, 3.0, 1.0
        ),
    }
    sampler = node("KSamplerSelect", sampler)[0] if isinstance(sampler, str) else sampler
    sigmas = node("BasicScheduler", case.model, "simple", steps, 1.0)[0] if sigmas is None else sigmas
    return node(
        "SamplerCustomAdvanced", node("RandomNoise", SEED)[0], guiders[guider]()[0], sampler, sigmas,
        case.latent,
    )[0]


def by_sampler_node(mode, log2_alpha, names, steps):
    """Each of core's SAMPLER nodes at its defaults."""
    case = prepare(mode, log2_alpha)
    return {name: case.judge(advanced(case, sampler=make(name, case.model), steps=steps)) for name in names}


def by_guider(mode, log2_alpha, names, steps):
    case = prepare(mode, log2_alpha)
    return {name: case.judge(advanced(case, guider=name, steps=steps)) for name in names}


def by_scheduler(mode, log2_alpha, steps):
    """euler under each of the schedules that BasicScheduler and KSampler offer."""
    case, out = prepare(mode, log2_alpha), {}
    for name in comfy.samplers.SCHEDULER_NAMES:
        sigmas = node("BasicScheduler", case.model, name, steps, 1.0)[0]
        out[name] = case.judge(advanced(case, sigmas=sigmas)) | {
            "first": float(sigmas[0]), "last": float(sigmas[-1]),
        }
    return out


def by_sigmas_node(names, chosen):
    """Each of core's SIGMAS nodes: what came of it, or the sentence with which it is refused."""
    case, out = prepare("joint", 1.0), {}
    for name in names:
        try:
            out[name] = case.judge(advanced(case, sigmas=make(name, case.model, **chosen.get(name, {}))))
        except ValueError as error:
            out[name] = str(error)
    return out


def refused(name):
    """The sentence with which a sampler is refused, from the stock KSampler."""
    try:
        sampling.ksample(sampling.rig().model, sampling.rig().latent(1, 32, 32), sampler=name, steps=2)
    except ValueError as error:
        return str(error)
    return None


def refused_node(name):
    """The same for a SAMPLER node."""
    case = prepare("joint", 0.0)
    try:
        advanced(case, sampler=make(name, case.model), steps=2)
    except ValueError as error:
        return str(error)
    return None


def in_two_parts(log2_alpha, steps=8, cut=3):
    """A run cut with SplitSigmas, continued with DisableNoise, against the whole run;
    and KSamplerAdvanced cut in two.
    """
    case, r = prepare("joint", log2_alpha), sampling.rig()
    sigmas = node("BasicScheduler", case.model, "simple", steps, 1.0)[0]
    high, low = node("SplitSigmas", sigmas, cut)
    guider, sampler = node("BasicGuider", case.model, r.positive)[0], node("KSamplerSelect", "euler")[0]
    whole, first = (
        node("SamplerCustomAdvanced", node("RandomNoise", SEED)[0], guider, sampler, s, case.latent)[0]
        for s in (sigmas, high)
    )
    second = node("SamplerCustomAdvanced", node("DisableNoise")[0], guider, sampler, low, first)[0]

    def half(latent, start, end, add, left):
        prompts = (r.positive, r.negative)
        return core.KSamplerAdvanced().sample(
            case.model, add, SEED, steps, 1.0, "euler", "simple", *prompts, latent, start, end, left
        )[0]

    third = half(half(case.latent, 0, cut, "enable", "enable"), cut, 10000, "disable", "disable")
    want = whole["samples"].unbind()
    return [sampling.difference(part["samples"].unbind(), want) for part in (second, third)]
