"""Core's samplers that a flow model cannot use, by name and with the reason. tests/nodes/test_matrix.py measures all the others."""

from __future__ import annotations

STOPS_EARLY = "stops at the smallest noise level above 0 and leaves that noise in the picture"
ADDS_ON_TOP = "adds its noise on top of the picture, where a flow model's latent gives way to it, and drifts further with every step"
REASONS = {
    "dpm_fast": STOPS_EARLY,
    "dpm_adaptive": STOPS_EARLY,
    "ddpm": ADDS_ON_TOP,
    "dpmpp_2s_ancestral_cfg_pp": ADDS_ON_TOP,
    "res_multistep_ancestral": ADDS_ON_TOP,
    "res_multistep_ancestral_cfg_pp": ADDS_ON_TOP,
}


def check_sampler(sampler) -> None:
    """Refuse a SAMPLER that cannot give a right result; one of another make passes."""
    name = getattr(getattr(sampler, "sampler_function", None), "__name__", "")
    name = name.removeprefix("sample_").removesuffix("_function")
    if name in REASONS:
        raise ValueError(f"The sampler {name} {REASONS[name]}: choose euler, dpmpp_2m, res_multistep or another.")
