"""Every sampler core offers, in every mode, against data whose exact flow is known: where noise e ends is mean + deviation * e."""

import pytest

pytestmark = pytest.mark.comfyui
FILE = "inside_matrix.py"
REFUSED = {
    "dpm_fast": "leaves that noise",
    "dpm_adaptive": "leaves that noise",
    "ddpm": "adds its noise on top",
    "dpmpp_2s_ancestral_cfg_pp": "adds its noise on top",
    "res_multistep_ancestral": "adds its noise on top",
    "res_multistep_ancestral_cfg_pp": "adds its noise on top",
}
# These follow the flow itself and must end where it ends; the others draw new noise and must end in the same distribution.
DETERMINISTIC = """euler euler_cfg_pp heun heunpp2 exp_heun_2_x0 dpm_2 lms dpmpp_2m dpmpp_2m_cfg_pp ipndm ipndm_v deis res_multistep
    res_multistep_cfg_pp gradient_estimation gradient_estimation_cfg_pp ddim uni_pc uni_pc_bh2""".split()
MODES = {
    "joint": ("joint", 0.0),
    "image first": ("joint", 1.0),
    "image_to_depth": ("image_to_depth", 0.0),
    "depth_to_image": ("depth_to_image", 0.0),
}


@pytest.fixture(scope="module")
def inside_matrix(inside, tiny_weights):
    inside("inside_sampling.py", "start", weights=tiny_weights)
    return lambda function, **kwargs: inside(FILE, function, **kwargs)


@pytest.fixture(scope="module")
def samplers(inside_matrix):
    return [name for name in inside_matrix("offered") if name not in REFUSED]


@pytest.mark.parametrize("mode", MODES)
def test_every_sampler_serves_every_mode(inside_matrix, samplers, mode):
    """At 60 steps, deviation 0.3: within a fifth of it where the end is known; a stream that is given comes back bit for bit."""
    name, log2_alpha = MODES[mode]
    result = inside_matrix("matrix", mode=name, log2_alpha=log2_alpha, samplers=samplers, steps=60)
    assert not [sampler for sampler, seen in result.items() if not (seen["finite"] and seen["given"])]
    followed = {sampler: result[sampler]["distance"] for sampler in DETERMINISTIC}
    assert max(followed.values()) < 0.06, followed
    drawn = {sampler: seen for sampler, seen in result.items() if sampler not in DETERMINISTIC}
    assert max(seen["mean"] for seen in drawn.values()) < 0.05, drawn
    assert all(0.15 < deviation < 0.4 for seen in drawn.values() for deviation in seen["deviation"]), drawn


def test_more_steps_come_closer(inside_matrix):
    names = [name for name in DETERMINISTIC if not name.startswith("gradient_estimation")]  # its correction does not shrink with the step
    few, many = (inside_matrix("matrix", mode="image_to_depth", log2_alpha=0.0, samplers=names, steps=steps) for steps in (10, 50))
    assert not [name for name in names if many[name]["distance"] > few[name]["distance"] / 2]


@pytest.mark.parametrize("name", REFUSED)
def test_a_sampler_that_cannot_serve_is_refused_by_name_with_the_reason(inside_matrix, name):
    sentence = inside_matrix("refused", name=name)
    assert sentence.startswith(f"The sampler {name} ") and REFUSED[name] in sentence and "choose euler" in sentence
    assert sentence.count(". ") == 0
