"""Modality Forcing's evaluation: every figure is there, and follows from the values of the images."""

import math

import pytest

from spatialweave.models.benchmarks import modality_forcing
from spatialweave.models.modality_forcing.pipeline import ModalityForcingPipeline


def test_a_tally_has_means_and_the_interval_of_one():
    tally = modality_forcing.Tally()
    tally.add("share", 1.0, 0.0)
    tally.add("share", 1.0, 1.0)
    assert tally.means() == {"share": 0.75}
    assert tally.half_width("share") == pytest.approx(1.96 * math.sqrt(0.75 / 3) * 0.5)  # sample variance 1/4


def test_every_figure_is_measured(monkeypatch):
    """Two steps, three scenes: the figures are bad, and their relations hold."""
    call = ModalityForcingPipeline.__call__
    fast = lambda self, *args, **kwargs: call(self, *args, **{**kwargs, "steps": 2})  # noqa: E731
    monkeypatch.setattr(ModalityForcingPipeline, "__call__", fast)
    figures = modality_forcing.evaluate_modality_forcing(count=3, batch=2, scenes_seed=7)
    assert figures["scenes"] == 3 and figures["scenes_seed"] == 7
    border, inner = figures["joint.border_step"], figures["joint.inner_step"]
    assert figures["joint.blockiness"] == pytest.approx(border / inner, rel=1e-3)
    assert border > inner  # the shipped model shows its patches
    assert 0 <= figures["caption.all_facts"] <= 1 and figures["caption.agreement_interval"] > 0
    # exact depth has no patches: its steps at borders are those inside, up to the chance of three scenes
    assert figures["render.border_step"] == pytest.approx(figures["render.inner_step"], rel=0.35)
    named = {"image_to_depth.absrel", "joint.absrel", "depth_to_image.absrel", "objects.broken"}
    assert set(figures) >= named
