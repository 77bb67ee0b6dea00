"""Every sampler core offers, in every mode, against data whose exact flow is known: where noise e ends is
mean + deviation * e.
"""

import re

import pytest

pytestmark = pytest.mark.comfyui
FILE = "inside_matrix.py"
REFUSED = {
    "dpm_fast": "leaves that noise",
    "dpm_adaptive": "leaves that noise",
    "ddpm": "adds its noise to an unscaled image",
    "dpmpp_2s_ancestral_cfg_pp": "adds its noise to an unscaled image",
    "res_multistep_ancestral": "adds its noise to an unscaled image",
    "res_multistep_ancestral_cfg_pp": "adds its noise to an unscaled image",
}
# These follow the flow itself and must end where it ends; the others draw new noise and must end in the same
# distribution.
DETERMINISTIC = """euler euler_cfg_pp heun heunpp2 exp_heun_2_x0 dpm_2 lms dpmpp_2m dpmpp_2m_cfg_pp
    ipndm ipndm_v deis res_multistep res_multistep_cfg_pp gradient_estimation gradient_estimation_cfg_pp
    ddim uni_pc uni_pc_bh2""".split()
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
    """At 60 steps, deviation 0.3: within a fifth of it where the end is known; a stream that is given comes
    back bit for bit.
    """
    name, log2_alpha = MODES[mode]
    result = inside_matrix("matrix", mode=name, log2_alpha=log2_alpha, samplers=samplers, steps=60)
    assert not [sampler for sampler, seen in result.items() if not (seen["finite"] and seen["given"])]
    followed = {sampler: result[sampler]["distance"] for sampler in DETERMINISTIC}
    assert max(followed.values()) < 0.06, followed
    drawn = {sampler: seen for sampler, seen in result.items() if sampler not in DETERMINISTIC}
    assert max(seen["mean"] for seen in drawn.values()) < 0.05, drawn
    assert all(0.15 < deviation < 0.4 for seen in drawn.values() for deviation in seen["deviation"]), drawn


def test_more_steps_come_closer(inside_matrix):
    names = [
        name for name in DETERMINISTIC if not name.startswith("gradient_estimation")
    ]  # its correction does not shrink with the step
    few, many = (
        inside_matrix("matrix", mode="image_to_depth", log2_alpha=0.0, samplers=names, steps=steps)
        for steps in (10, 50)
    )
    assert not [name for name in names if many[name]["distance"] > few[name]["distance"] / 2]


@pytest.mark.parametrize("name", REFUSED)
def test_a_sampler_that_cannot_serve_is_refused_by_name_with_the_reason(inside_matrix, name):
    sentence = inside_matrix("refused", name=name)
    assert f"got {name}: it " in sentence and REFUSED[name] in sentence
    assert "Choose euler" in sentence and sentence.count(". ") == 1


@pytest.mark.parametrize(
    "place", ["SpatialWeave_LoadModalityForcing.md", "SpatialWeave_LoadModalityForcing/zh.md"]
)
def test_the_help_page_names_the_samplers_that_are_refused(root, place):
    page = (root / "web/docs" / place).read_text(encoding="utf-8")
    assert not [name for name in REFUSED if f"`{name}`" not in page]


def test_nothing_a_user_reads_promises_every_sampler(root):
    # "all (core) samplers", "all of core's"
    in_chinese = "\u6240\u6709(\u6838\u5fc3)?\u91c7\u6837\u5668|\u6240\u6709\u6838\u5fc3"
    promises = re.compile(rf"(all|every|any)( of)? core('s)? samplers?(?! but)\b|{in_chinese}", re.IGNORECASE)
    assert promises.search("All core samplers work.") and promises.search(
        "\u6240\u6709\u6838\u5fc3\u91c7\u6837\u5668\u90fd\u53ef\u7528"
    )
    files = [
        *(root / "web/docs").rglob("*.md"),
        *(root / "locales").rglob("*.json"),
        *(root / "workflows").rglob("*.json"),
    ]
    files += [root / "README.md", *(root / "docs").glob("*.md")]
    assert len(files) > 20 and not [
        str(path) for path in files if promises.search(path.read_text(encoding="utf-8"))
    ]


REFUSED_NODES = {
    "SamplerDPMAdaptative": "leaves that noise",
    "SamplerLCMUpscale": "rows and columns",
    "SamplerARVideo": "rows and columns",
    "VOIDSampler": "another kind of model",
}
DETERMINISTIC_NODES = {"KSamplerSelect", "SamplerEulerCFGpp", "SamplerLMS"}


@pytest.fixture(scope="module")
def sampler_nodes(inside_matrix):
    return inside_matrix("makers", kind="SAMPLER")


@pytest.mark.parametrize("mode", MODES)
def test_every_sampler_node_serves_every_mode_through_sampler_custom_advanced(
    inside_matrix, sampler_nodes, mode
):
    """The bounds of the KSampler matrix above; whatever node ComfyUI adds is measured too."""
    name, log2_alpha = MODES[mode]
    names = [node for node in sampler_nodes if node not in REFUSED_NODES]
    assert len(names) >= 13
    result = inside_matrix("by_sampler_node", mode=name, log2_alpha=log2_alpha, names=names, steps=60)
    assert not [node for node, seen in result.items() if not (seen["finite"] and seen["given"])]
    assert all(seen["mean"] < 0.05 for seen in result.values()), result
    assert all(result[node]["distance"] < 0.06 for node in DETERMINISTIC_NODES), result
    assert all(0.15 < deviation < 0.4 for seen in result.values() for deviation in seen["deviation"]), result


@pytest.mark.parametrize("name", REFUSED_NODES)
def test_a_sampler_node_that_cannot_serve_is_refused_with_the_reason(inside_matrix, sampler_nodes, name):
    assert name in sampler_nodes
    sentence = inside_matrix("refused_node", name=name)
    assert REFUSED_NODES[name] in sentence and "Choose euler" in sentence and sentence.count(". ") == 1


@pytest.mark.parametrize("mode", MODES)
def test_cores_guiders_serve(inside_matrix, mode):
    """The stand-in answers every prompt alike, so each guider must end where plain euler ends."""
    name, log2_alpha = MODES[mode]
    names = ["BasicGuider", "CFGGuider", "DualCFGGuider"]
    result = inside_matrix("by_guider", mode=name, log2_alpha=log2_alpha, names=names, steps=60)
    assert all(seen["finite"] and seen["given"] and seen["distance"] < 0.06 for seen in result.values()), (
        result
    )


@pytest.mark.parametrize("mode", MODES)
def test_every_scheduler_serves_every_mode(inside_matrix, mode):
    """euler at 40 steps, deviation 0.3."""
    name, log2_alpha = MODES[mode]
    result = inside_matrix("by_scheduler", mode=name, log2_alpha=log2_alpha, steps=40)
    assert set(result) >= set(
        "simple beta sgm_uniform karras exponential normal ddim_uniform linear_quadratic kl_optimal".split()
    )
    assert not [scheduler for scheduler, seen in result.items() if not (seen["finite"] and seen["given"])]
    assert max(seen["distance"] for seen in result.values()) < 0.1, result
    assert all(0.98 < seen["first"] <= 1 and seen["last"] == 0 for seen in result.values()), result


def test_more_steps_come_closer_under_every_scheduler(inside_matrix):
    few, many = (
        inside_matrix("by_scheduler", mode="image_to_depth", log2_alpha=0.0, steps=steps)
        for steps in (12, 48)
    )
    assert not [name for name in few if many[name]["distance"] > few[name]["distance"] / 2]


CHOSEN = {  # what the defaults leave open, or what a user would set
    "ManualSigmas": {
        "sigmas": (
            "1.0, 0.97, 0.93, 0.88, 0.82, 0.75, 0.67, 0.58, 0.48, 0.38, 0.28, 0.19, 0.12, 0.06, 0.03, 0.0"
        )
    },
    "KarrasScheduler": {"sigma_max": 1.0, "sigma_min": 0.002},
    "ExponentialScheduler": {"sigma_max": 1.0, "sigma_min": 0.002},
    "PolyexponentialScheduler": {"sigma_max": 1.0, "sigma_min": 0.002},
}
OTHER_KINDS = [
    "AlignYourStepsScheduler",
    "GITSScheduler",
    "LaplaceScheduler",
    "SDTurboScheduler",
    "VPScheduler",
]


def test_every_sigmas_node_serves_or_is_refused_with_the_reason(inside_matrix):
    result = inside_matrix("by_sigmas_node", names=inside_matrix("makers", kind="SIGMAS"), chosen=CHOSEN)
    refused = {name: seen for name, seen in result.items() if isinstance(seen, str)}
    assert sorted(refused) == OTHER_KINDS
    assert all(
        "at 1 or below" in sentence and "Basic Scheduler" in sentence and sentence.count(". ") == 1
        for sentence in refused.values()
    )
    served = {name: seen for name, seen in result.items() if name not in refused}
    assert all(seen["finite"] and seen["given"] and seen["distance"] < 0.25 for seen in served.values()), (
        served
    )


def test_defaults_of_other_models_schedules_are_refused(inside_matrix):
    result = inside_matrix("by_sigmas_node", names=["KarrasScheduler"], chosen={})
    assert "got 14.61" in result["KarrasScheduler"] and "sigma_max to 1" in result["KarrasScheduler"]


def test_a_run_cut_in_two_gives_the_whole_run(inside_matrix):
    """SplitSigmas with DisableNoise, and two KSampler (Advanced)."""
    assert max(inside_matrix("in_two_parts", log2_alpha=3.0)) < 1e-4
