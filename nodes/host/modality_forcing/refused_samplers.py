"""Core's samplers and noise schedules that a flow model cannot use, by name and with the reason.

tests/nodes/test_matrix.py measures all the others.
"""

from __future__ import annotations

from torch import Tensor

STOPS_EARLY = "stops at the smallest noise level above 0 and leaves that noise in the image"
ADDS_ON_TOP = (
    "adds its noise to an unscaled image, while a flow model interpolates between both, and drifts further "
    "with every step"
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
    """Refuse a SAMPLER that cannot give a right result; one from another node pack is accepted."""
    made = getattr(sampler, "sampler_function", type(sampler))
    name = getattr(made, "__name__", "")
    name = name.removeprefix("sample_").removesuffix("_function")
    if name in REASONS:
        raise ValueError(
            f"Expected a sampler that works with this flow model, got {name}: it {REASONS[name]}. Choose "
            "euler, dpmpp_2m, res_multistep or another."
        )


def check_sigmas(sigmas: Tensor) -> None:
    """Refuse the noise levels of other kinds of model, which begin above 1."""
    if len(sigmas) and float(sigmas[0]) > 1.001:
        raise ValueError(
            "Expected SIGMAS that begin at 1 or below, a flow model's noise levels, got "
            f"{float(sigmas[0]):.4g}. Take them from Basic Scheduler, which reads them from the model, or "
            "set sigma_max to 1."
        )
