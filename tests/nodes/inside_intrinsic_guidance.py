"""Called by worker.py inside ComfyUI: core's own nodes of guidance, caching and attention in front
of intrinsic co-generation.
"""

import asyncio
import os
import sys

import comfy.samplers
import torch

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py
small = sys.modules["__main__"].load_file("inside_intrinsic.py")
EXTRAS = (
    "pag sag hypertile tomesd freelunch perpneg model_advanced fresca "
    "apg mahiro easycache cfg tcfg eps custom_sampler hypernetwork"
)
CACHE = {"start_percent": 0.1, "end_percent": 0.95, "verbose": False}
NODES = {
    "RescaleCFG": {"multiplier": 0.7},
    "APG": {"eta": 0.7, "norm_threshold": 5.0, "momentum": -0.4},
    "CFGNorm": {"strength": 1.0},
    "CFGZeroStar": {},
    "TCFG": {},
    "Epsilon Scaling": {"scaling_factor": 1.005},
    "FreSca": {"scale_low": 1.0, "scale_high": 1.25, "freq_cutoff": 3},
    "FreeU_V2": {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2},
    "TomePatchModel": {"ratio": 0.5},
    "PerpNeg": {"neg_scale": 1.0},
    "Mahiro": {},
    "TemporalScoreRescaling": {"tsr_k": 0.95, "tsr_sigma": 1.0},
    "HyperTile": {"tile_size": 32, "swap_size": 2, "max_depth": 3, "scale_depth": False},
    "PerturbedAttentionGuidance": {"scale": 3.0},
    "SelfAttentionGuidance": {"scale": 0.5, "blur_sigma": 2.0},
    "EasyCache": {"reuse_threshold": 0.3} | CACHE,
    "LazyCache": {"reuse_threshold": 0.3} | CACHE,
}


def made(name, **inputs):
    """What one of core's nodes gives out."""
    if "HyperTile" not in core.NODE_CLASS_MAPPINGS:
        folder = os.path.join(os.path.dirname(core.__file__), "comfy_extras")
        for extra in EXTRAS.split():
            asyncio.run(
                core.load_custom_node(os.path.join(folder, f"nodes_{extra}.py"), module_parent="comfy_extras")
            )
    found = core.NODE_CLASS_MAPPINGS[name]
    out = (
        found.execute(**inputs)
        if hasattr(found, "define_schema")
        else getattr(found(), found.FUNCTION)(**inputs)
    )
    return getattr(out, "result", out)[0]


def guided(patcher, latent, name, steps):
    """A run through one of core's guiders."""
    conds = {"model": patcher, "negative": small.prompt(2)}
    if name == "PerpNegGuider":
        conds |= {
            "positive": small.prompt(1), "empty_conditioning": small.prompt(3), "cfg": 3.0, "neg_scale": 1.0,
        }
    else:
        conds |= {
            "cond1": small.prompt(1), "cond2": small.prompt(3), "cfg_conds": 3.0, "cfg_cond2_negative": 2.0,
            "style": "regular",
        }
    return made(
        "SamplerCustomAdvanced", noise=made("RandomNoise", noise_seed=5), guider=made(name, **conds),
        latent_image=latent,
        sampler=made("KSamplerSelect", sampler_name="euler"),
        sigmas=comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "normal", steps),
    )["samples"]  # fmt: skip


def through(name, after=False, steps=3, batch=2, side=8):
    """The image at weight 0 against the base model's, both with the node; how far the node moves it;
    or the sentence of a refusal.
    """
    plain, calls, latent = small.model(), [], {"samples": torch.zeros(batch, 4, side, side)}
    if name.endswith("Guider"):
        coupled = small.coupled(plain, "off")
        alone = lambda latent: guided(plain, latent, name, steps)  # noqa: E731
        pair = lambda latent: guided(coupled, latent, name, steps)  # noqa: E731
    else:
        more = NODES[name] | ({"empty_conditioning": small.prompt(3)} if name == "PerpNeg" else {})
        put = lambda patcher: made(name, model=patcher, **more)  # noqa: E731
        coupled = put(small.coupled(plain, "off")) if after else small.coupled(put(plain), "off")
        alone = lambda latent: small.sample(put(plain), latent, steps=steps)  # noqa: E731
        pair = lambda latent: small.sample(coupled, latent, steps=steps)  # noqa: E731
    handle = plain.model.diffusion_model.register_forward_pre_hook(lambda *args: calls.append(1))
    try:
        image, maps = pair(small.joined(coupled, latent)).unbind()
    except ValueError as error:
        return {"refused": str(error), "calls": len(calls)}
    finally:
        handle.remove()
    want = alone(latent)
    bare = small.sample(plain, latent, steps=steps)
    finite = bool(image.isfinite().all() and maps.isfinite().all())
    return {
        "gap": small.gap(image, want), "moved": small.gap(want, bare), "finite": finite, "calls": len(calls),
    }
