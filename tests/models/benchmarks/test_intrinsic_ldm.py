"""The evaluation of I-LDM: figures of known cases, going on after a stop, and sentences that follow from the
figures."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch

from spatialweave.models.benchmarks import intrinsic_ldm as intrinsic_evaluation
from spatialweave.models.benchmarks.held_out import hold_out
from spatialweave.models.benchmarks.intrinsic_ldm_judge import (
    FAULTS,
    Judge,
    code_frames,
    count_wrong,
    read_codes,
)
from spatialweave.models.benchmarks.intrinsic_ldm_report import CLAIMS, NAMES, as_lines, conclude, write_page
from spatialweave.models.cli import console as cli
from spatialweave.models.core.weights.files import write_tensors
from spatialweave.models.world.judges.plausibility import examine
from spatialweave.models.world.judges.predictor_network import PredictorNetwork
from spatialweave.models.world.judges.scene_maps import FIGURES, compare_maps, exact_maps
from spatialweave.models.world.judges.scorer import Scorer, Seen, SeenObject, judge_facts
from spatialweave.models.world.render import render

FIGURE_NAMES = {*FAULTS, "solids", "violations", "seconds", "frechet_content", "frechet_detail"}


class ExactPredictor:
    """Knows the truth of the scenes that it is shown."""

    def __init__(self, maps):
        self.maps = maps

    def read(self, image):
        return self.maps


@pytest.fixture(scope="module")
def held_out():
    scenes, captions = hold_out(0, 8)
    return captions, render(scenes, 128, 128)


def test_rendered_pictures_with_their_exact_maps_have_near_perfect_figures(held_out):
    captions, frames = held_out
    figures = Judge(Scorer.from_pretrained(), ExactPredictor(exact_maps(frames))).measure(
        frames.image, captions, code_frames(frames)
    )
    assert figures["violations"].mean() <= 0.5 and figures["broken"].sum() == 0
    assert figures["depth_absrel"].max() < 0.12, "the code clips a fiftieth at either end"
    assert (
        figures["normal_angle"].max() < 1
        and figures["segmentation_miou"].min() > 0.95
        and figures["line_f1"].min() > 0.99
    )


def test_shuffled_captions_and_maps_have_bad_figures(held_out):
    captions, frames = held_out
    judge = Judge(Scorer.from_pretrained(), ExactPredictor(exact_maps(frames)))
    own = judge.measure(frames.image, captions, code_frames(frames))
    turned = judge.measure(frames.image, captions[1:] + captions[:1], code_frames(frames).roll(1, 0))
    assert turned["missing"].mean() > own["missing"].mean() + 0.8
    assert (
        turned["depth_absrel"].mean() > 2 * own["depth_absrel"].mean() and turned["normal_angle"].mean() > 5
    )
    assert turned["segmentation_miou"].mean() < 0.3 and turned["line_f1"].mean() < 0.5


def test_codes_are_read_as_the_exact_maps(held_out):
    exact, read = exact_maps(held_out[1]), read_codes(code_frames(held_out[1]))
    assert (
        compare_maps(read, exact)["segmentation_miou"].min() > 0.95
        and examine(read)[0].solids == examine(exact)[0].solids
    )
    assert torch.equal(read.line, exact.line)


def test_a_relation_counts_only_between_objects_that_are_there():
    text = "a red ball to the left of a blue box"

    def look(*objects):
        seen = Seen(
            tuple(SeenObject(s, c, "small", x, 0.0, z, (0, 0, 1, 1), 1.0) for c, s, x, z in objects), "grass"
        )
        return count_wrong(text, judge_facts(text, seen))

    ball, box = ("red", "ball", -0.5, 4.0), ("blue", "box", 0.5, 4.0)
    assert look(ball, box) == {"missing": 0, "side": 0, "depth_order": 0}
    assert look(("red", "ball", 0.9, 4.0), box) == {"missing": 0, "side": 1, "depth_order": 0}
    assert look(box) == {"missing": 1, "side": 0, "depth_order": 0}
    text = "a red ball behind a blue box"
    assert look(ball, ("blue", "box", 0.5, 6.0)) == {"missing": 0, "side": 0, "depth_order": 1}


@pytest.fixture(scope="module")
def files(write_tiny, tmp_path_factory):
    """Small random weights of the whole system, a second LoRA, and a predictor that knows nothing."""
    folder, other = (write_tiny(tmp_path_factory.mktemp("weights"), seed) for seed in (1, 2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        write_tensors(
            folder / "predictor.safetensors", PredictorNetwork().state_dict(), {}, kind="world predictor"
        )
    found = {name: folder / f"{name}.safetensors" for name in ("base", "vae", "lora", "predictor")}
    return intrinsic_evaluation.Files(**found, ablation=other / "lora.safetensors")


PLAN = intrinsic_evaluation.Plan(count=3, seeds=2, steps=1, guidance=2.0, batch=2, size=32)


@pytest.fixture(scope="module")
def report(files, tmp_path_factory):
    return intrinsic_evaluation.evaluate_intrinsic_ldm(PLAN, files, work=tmp_path_factory.mktemp("work"))


def untimed(report):
    report = copy.deepcopy(report)
    for method in report["methods"].values():
        del method["figures"]["seconds"]
    return json.dumps(report)


def test_the_report_has_every_method_and_figure_with_its_error(report):
    assert list(report["methods"]) == list(NAMES)
    for name, method in report["methods"].items():
        figures = method["figures"]
        assert set(figures) == FIGURE_NAMES | (set() if name.startswith("base") else set(FIGURES))
        for figure in figures.values():
            assert len(figure["per_seed"]) == 2
            if figure["mean"] is not None:
                first, second = figure["per_seed"]
                assert figure["mean"] == pytest.approx((first + second) / 2)
                assert figure["error"] == pytest.approx(abs(first - second) / 2)
    settings = {name: method["settings"] for name, method in report["methods"].items()}
    assert settings["base_twice_the_steps"]["steps"] == 2 * settings["base"]["steps"] == 2
    assert (
        settings["drop"]["layers"] == [2, 3, 4]
        and settings["gaussian"]["tau"] == 800
        and settings["no_schedule"]["value"] == 1
    )
    assert (
        settings["without_image_domain"]["weights"]["ablation"]
        == report["weights"]["ablation"]
        != report["weights"]["lora"]
    )
    assert (
        set(report["judges"]) == {"predictor", "scorer"} and report["rendered"]["frechet_content"]["mean"] > 0
    )
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_a_stopped_evaluation_goes_on_to_the_same_numbers(report, files, tmp_path, monkeypatch):
    measure, calls = intrinsic_evaluation.measure, []

    def stop_at_seven(method, *given):
        calls.append(method.name)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return measure(method, *given)

    monkeypatch.setattr(intrinsic_evaluation, "measure", stop_at_seven)
    with pytest.raises(KeyboardInterrupt):
        intrinsic_evaluation.evaluate_intrinsic_ldm(PLAN, files, work=tmp_path)
    assert calls[:6] == list(NAMES), "the methods take turns"
    again = intrinsic_evaluation.evaluate_intrinsic_ldm(PLAN, files, work=tmp_path)
    assert len(calls) == 7 + 2 * 2 * 6 - 6 and untimed(again) == untimed(report)
    calls.clear()
    once_more = intrinsic_evaluation.evaluate_intrinsic_ldm(PLAN, files, work=tmp_path)
    assert once_more == again and not calls, "all was kept, times too"


@pytest.mark.slow
def test_two_processes_measure_what_one_does(report, files, tmp_path):
    shared = untimed(intrinsic_evaluation.evaluate_intrinsic_ldm(PLAN, files, work=tmp_path, processes=2))
    assert shared == untimed(report).replace('"processes": 1', '"processes": 2')
    assert len(list(tmp_path.glob("*.safetensors"))) == 2 * (2 + 2 * 6), "every part, once"


def test_no_processes_are_refused(files, tmp_path):
    with pytest.raises(ValueError, match="at least 1 process, got 0"):
        intrinsic_evaluation.evaluate_intrinsic_ldm(PLAN, files, work=tmp_path, processes=0)


def test_other_settings_take_no_parts_of_these(files, tmp_path):
    digests = {"base": "a", "vae": "b", "lora": "c"}
    names = set()
    for changed in (PLAN, replace(PLAN, steps=2), replace(PLAN, precision="bfloat16")):
        for lora in ("c", "d"):
            method = intrinsic_evaluation.make_method("x", print, changed, digests | {"lora": lora}, "lora")
            names.add(intrinsic_evaluation.hash_settings(method.settings, {}, changed.batch))
    assert len(names) == 6


def test_the_command_writes_both_files(files, report, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(intrinsic_evaluation, "evaluate_intrinsic_ldm", lambda *given, **more: report)
    where = {name: tmp_path / "deep" / name for name in ("r.json", "page.md")}
    assert (
        cli.main(
            ["evaluate", "intrinsic_ldm", "--json", str(where["r.json"]), "--markdown", str(where["page.md"])]
        )
        == 0
    )
    assert json.loads(where["r.json"].read_text(encoding="utf-8")) == report
    assert where["page.md"].read_text(encoding="utf-8") == write_page(report)
    assert "Gaussian" in capsys.readouterr().out


def test_the_commands_numbers_are_the_codes_own():
    options = cli.build_parser().parse_args(["evaluate", "intrinsic_ldm"])
    plan = intrinsic_evaluation.Plan()
    assert (options.n, options.seeds, options.steps, options.guidance, options.batch, options.precision) == (
        plan.count, plan.seeds, plan.steps, plan.guidance, plan.batch, plan.precision,
    )  # fmt: skip


def test_a_missing_file_is_a_sentence(tmp_path, capsys):
    assert (
        cli.main(
            ["evaluate", "intrinsic_ldm", "--predictor", str(tmp_path / "none"), "--work", str(tmp_path)]
        )
        == 1
    )
    assert "No such file or directory; check the path." in capsys.readouterr().err


def test_the_networks_compute_in_the_plans_precision(files):
    """bfloat16 has 8 bits: near to float32's pictures and not the same.

    What rounds weights alone would look alike, so it is asked for.
    """
    pictures = {}
    for precision in ("float32", "bfloat16"):
        methods = intrinsic_evaluation.make_methods(
            replace(PLAN, precision=precision), files, files.digests(), "cpu"
        )
        (gaussian,) = (method for method in methods if method.name == "gaussian")
        pipeline = gaussian.make.func
        for network in (pipeline.backbone.network, pipeline.image_vae.module, pipeline.maps_vae.module):
            assert {parameter.dtype for parameter in network.parameters()} == {getattr(torch, precision)}
        pictures[precision] = gaussian.make(["a red ball"], seed=3)
    for kind in ("image", "maps"):
        full, half = (getattr(made, kind) for made in pictures.values())
        assert half.dtype == torch.float32 and 0 < (full - half).abs().mean() < 0.1 * full.std()


def test_a_precision_that_is_none_is_refused():
    with pytest.raises(ValueError, match="got 'float8'"):
        replace(PLAN, precision="float8")


@pytest.mark.parametrize("change", [{"count": 1}, {"seeds": 0}, {"batch": 0}])
def test_a_plan_that_measures_nothing_is_refused(change):
    with pytest.raises(ValueError, match="at least 2 captions"):
        intrinsic_evaluation.Plan(**change)


def made_up(values):
    """A report in which each method has these violations, seed by seed."""

    def figure(each):
        spread = (
            (sum((value - sum(each) / len(each)) ** 2 for value in each) / (len(each) - 1)) ** 0.5
            if len(each) > 1
            else None
        )
        return {
            "mean": sum(each) / len(each),
            "error": spread and spread / len(each) ** 0.5,
            "per_seed": each,
        }

    methods = {
        name: {"settings": {}, "figures": {"violations": figure(each)}} for name, each in values.items()
    }
    predictor = {"hanging_found": 0.8, "broken_found": 0.9, "called_hanging": 0.01, "called_broken": 0.02}
    machine = {"precision": "float32", "device": "an abacus", "processes": 1}
    return {
        "settings": {"count": 5, "seeds": 3, "steps": 25, "guidance": 4.0, "batch": 16, **machine},
        "weights": {"base": "abc"},
        "methods": methods,
        "rendered": {"violations": figure([0.1])},
        "judges": {"predictor": predictor, "scorer": {"accuracy": 0.97}},
    }


def test_the_page_says_the_opposite_when_the_figures_are_swapped():
    good, bad = [1.0, 1.1, 1.05], [2.0, 2.1, 2.02]
    (claim,) = (claim for claim in CLAIMS if (claim.better, claim.worse) == ("gaussian", "base"))
    (holds,) = conclude(made_up({"gaussian": good, "base": bad}))
    (turned,) = conclude(made_up({"gaussian": bad, "base": good}))
    assert claim.text in holds and "hold here" in holds and "1.050 ± 0.029 against 2.040 ± 0.031" in holds
    assert claim.text in turned and "reversed here" in turned
    (open_,) = conclude(made_up({"gaussian": good, "base": [1.0, 1.2, 1.01]}))
    assert claim.text in open_ and "Not significant" in open_
    (one_seed,) = conclude(made_up({"gaussian": [1.0], "base": [2.0]}))
    assert "Not significant" in one_seed


def test_what_three_seeds_tell_apart_is_students_t():
    """Differences 1, 2, 3: mean 2, standard error .577, 3.46 times it, where 4.30 are wanted; ten such seeds
    tell it."""
    three = made_up({"gaussian": [0.0, 0.0, 0.0], "base": [1.0, 2.0, 3.0]})
    assert "Not significant" in conclude(three)[0]
    assert (
        "hold here"
        in conclude(
            made_up({"gaussian": [0.0] * 10, "base": [1.0, 2.0, 3.0, 2.0, 2.0, 1.0, 3.0, 2.0, 2.0, 2.0]})
        )[0]
    )


def test_the_page_has_a_row_for_each_method_and_no_claim_about_what_was_not_measured():
    report = made_up({"base": [2.0, 2.1, 2.2], "gaussian": [1.0, 1.1, 1.2]})
    page = write_page(report)
    assert (
        "| base | 2.100 ± 0.058" in page
        and "| rendered, exact maps | 0.100 |" in page
        and "`abc`" in page
        and "an abacus" in page
    )
    assert "Drop makes" not in page and "training with the image domain" not in page
    assert any("violations" in line for line in as_lines(report))


def test_the_published_page_is_that_of_its_figures_and_they_are_of_the_files_that_ship(root):
    """All but the ablation's weights, which do not ship."""
    report = json.loads((root / "docs" / "evidence.json").read_text(encoding="utf-8"))
    assert (root / "docs" / "evidence.md").read_text(encoding="utf-8") == write_page(report)
    assert report["settings"]["count"] >= 512 and report["settings"]["seeds"] >= 3
    digests = intrinsic_evaluation.Files().digests()
    assert {name: report["weights"][name] for name in digests} == digests


def test_features_of_a_seed_without_anything_to_measure_are_none():
    figures = {
        "depth_absrel": torch.full((3,), math.nan),
        "content": torch.randn(3, 4),
        "detail": torch.randn(3, 2),
    }
    reference = {"content": torch.randn(5, 4), "detail": torch.randn(5, 2)}
    found = intrinsic_evaluation.summarize([figures, figures], reference)
    assert (
        found["depth_absrel"] == {"mean": None, "error": None, "per_seed": [None, None]}
        and found["frechet_content"]["mean"] > 0
    )
