"""Core's samplers and noise schedules that a flow model cannot use, by name and with the reason.

tests/nodes/test_matrix.py measures all the others.
"""

from __future__ import annotations

from torch import Tensor

STOPS_EARLY = "stops at the smallest noise level above 0 and leaves that noise in the picture"
ADDS_ON_TOP = (
    "adds its noise on top of the picture, where a flow model's latent gives way to it, "
    "and drifts further with every step"
)
ONE_PICTURE = (
    "works on the rows and columns of one latent, and a joint latent is an image and a depth of another size"
)
REASONS = {
    "dpm_fast": STOPS_EARLY,
    "dpm_adaptive": STOPS_EARLY,
    "ddpm": ADDS_ON_TOP,
    "dpmpp_2s_ancestral_cfg_pp": ADDS_ON_TOP,
    "res_multistep_ancestral": ADDS_ON_TOP,
    "res_multistep_ancestral_cfg_pp": ADDS_ON_TOP,
    "lcm_upscale": ONE_PICTURE,
    "ar_video": ONE_PICTURE,
    "VOID_DDIM": "steps between the noise levels of another kind of model",
}


def check_sampler(sampler) -> None:
    """Refuse a SAMPLER that cannot give a right result; one of another make passes."""
    made = getattr(sampler, "sampler_function", type(sampler))
    name = getattr(made, "__name__", "")
    name = name.removeprefix("sample_").removesuffix("_function")
    if name in REASONS:
        raise ValueError(
            f"The sampler {name} {REASONS[name]}: choose euler, dpmpp_2m, res_multistep or another."
        )


def check_sigmas(sigmas: Tensor) -> None:
    """Refuse the noise levels of other kinds of model, which begin above 1."""
    if len(sigmas) and float(sigmas[0]) > 1.001:
        raise ValueError(
            f"The SIGMAS begin at a noise level of {float(sigmas[0]):.4g}, but a flow model's is at most 1, "
            "all noise: take them from Basic Scheduler, which asks the model, or set sigma_max to 1."
        )
