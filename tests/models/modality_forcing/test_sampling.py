"""Schedules and the loop, with networks whose right answer is known."""

import pytest
import torch

from spatialweave.kernels.testing import assert_close
from spatialweave.models.modality_forcing.sampling import (
    PartialDepth,
    TimeSchedule,
    draw_noise,
    make_schedule,
    sample,
)

CONTEXT = torch.zeros(1, 3, 4)
RGB0, DEPTH0 = (
    torch.randn(2, *shape, generator=torch.Generator().manual_seed(9)) for shape in ((3, 2, 2), (1, 8, 8))
)
RGB, DEPTH = draw_noise(0, (2, 3, 2, 2), (2, 1, 8, 8))


def know_everything(rgb, depth, context, t_rgb, t_depth):
    """The velocity and the clean depth of a world with one picture."""
    return (rgb - RGB0) / t_rgb.clamp(min=1e-9)[:, None, None, None], DEPTH0


def echo_context(rgb, depth, context, t_rgb, t_depth):
    """Outputs that are the mean of the context."""
    value = context.mean((1, 2))[:, None, None, None]
    return value.expand_as(rgb), value.expand_as(depth)


def test_schedules_begin_in_noise_and_end_clean():
    for mode, rgb, depth in (
        ("joint", True, True),
        ("image_to_depth", False, True),
        ("depth_to_image", True, False),
    ):
        schedule = make_schedule(mode, 7, log2_alpha=5.0)
        assert schedule.steps == 7
        for times, moves in ((schedule.t_rgb, rgb), (schedule.t_depth, depth)):
            assert times.dtype == torch.float32 and times.shape == (8,) and times[-1] == 0
            assert (times[0] == 1 and (times.diff() < 0).all()) if moves else not times.any()


def test_log2_alpha_orders_the_streams():
    image_first, together, depth_first = (make_schedule("joint", 6, log2_alpha=a) for a in (5.0, None, -14.0))
    assert (image_first.t_depth[1:-1] > image_first.t_rgb[1:-1]).all()
    assert torch.equal(together.t_depth, together.t_rgb)
    assert (depth_first.t_depth[1:-1] < depth_first.t_rgb[1:-1]).all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            {"mode": "depth", "steps": 4},
            "Expected one of the modes joint, image_to_depth, depth_to_image, got 'depth'",
        ),
        ({"mode": "joint", "steps": 0}, "Expected a whole number of steps, at least 1, got 0"),
        ({"mode": "joint", "steps": 2.5}, "Expected a whole number of steps, at least 1, got 2.5"),
        (
            {"mode": "joint", "steps": 4, "log2_alpha": 99.0},
            "Expected log2_alpha from -20 to 20, or None, got 99.0",
        ),
        (
            {"mode": "joint", "steps": 4, "log2_alpha": float("nan")},
            "Expected log2_alpha from -20 to 20, or None, got nan",
        ),
    ],
)
def test_impossible_schedules_are_refused_in_a_sentence(arguments, said):
    with pytest.raises(ValueError, match=said):
        make_schedule(**arguments)


@pytest.mark.parametrize("steps", [1, 3, 100])
@pytest.mark.parametrize("log2_alpha", [None, 5.0, -14.0])
def test_a_perfect_network_gives_the_perfect_answer(steps, log2_alpha):
    rgb, depth = sample(
        know_everything, RGB, DEPTH, make_schedule("joint", steps, log2_alpha=log2_alpha), context=CONTEXT
    )
    assert_close(rgb, RGB0)
    assert torch.equal(depth, DEPTH0)  # the last step lands, whatever its time


def test_the_released_floor_misses_with_many_steps_and_only_then():
    near, far = (
        sample(know_everything, RGB, DEPTH, make_schedule("joint", n), context=CONTEXT, x0_t_min=0.05)[1]
        for n in (50, 100)
    )
    assert_close(near, DEPTH0)
    t_last = float(make_schedule("joint", 100).t_depth[-2])
    # two steps lie below the floor
    t_before = float(make_schedule("joint", 100).t_depth[-3])
    start = DEPTH0 + t_before * (DEPTH - DEPTH0) if t_before >= 0.05 else None
    assert t_last == pytest.approx(0.029, abs=1e-3) and start is not None
    left = start + (t_last - t_before) * (start - DEPTH0) / t_before
    assert_close(far, left - t_last * (left - DEPTH0) / 0.05, dtype=torch.float32)


def test_given_streams_come_back_bit_for_bit():
    def spoil(rgb, depth, context, t_rgb, t_depth):
        return torch.full_like(rgb, float("nan")), torch.full_like(depth, float("nan"))

    rgb, _ = sample(spoil, RGB0, DEPTH, make_schedule("image_to_depth", 3), context=CONTEXT)
    _, depth = sample(spoil, RGB, DEPTH0, make_schedule("depth_to_image", 3), context=CONTEXT)
    assert torch.equal(rgb, RGB0) and torch.equal(depth, DEPTH0)


def test_guidance_mixes_both_raw_outputs_and_shares_the_empty_prompt():
    context = torch.stack([torch.full((3, 4), 2.0), torch.full((3, 4), 3.0)])
    null = torch.ones(1, 3, 4)
    schedule = make_schedule("joint", 1)
    rgb, depth = sample(echo_context, RGB, DEPTH, schedule, context=context, null_context=null, guidance=4.0)
    wanted = torch.tensor([5.0, 9.0])[:, None, None, None]  # 1 + 4 (2 - 1), 1 + 4 (3 - 1)
    assert_close(rgb, RGB - wanted)
    assert_close(depth, wanted.expand_as(DEPTH))


def test_guidance_of_the_depth_may_be_another_than_the_images():
    context, null, schedule = torch.full((1, 3, 4), 2.0), torch.ones(1, 3, 4), make_schedule("joint", 1)
    given = {"context": context, "null_context": null, "guidance": 4.0}
    rgb, depth = sample(echo_context, RGB, DEPTH, schedule, **given, depth_guidance=1.0)
    assert_close(rgb, RGB - 5.0)  # 1 + 4 (2 - 1)
    assert_close(depth, torch.full_like(DEPTH, 2.0))  # the prompted one itself


@pytest.mark.parametrize("mode", ["joint", "image_to_depth", "depth_to_image"])
@pytest.mark.parametrize(
    "interval, guided", [((1.0, 0.0), 5), ((0.0, 0.0), 0), ((1.0, 0.8), 3), ((0.8, 0.5), 1), ((0.3, 0.0), 0)]
)
def test_guidance_acts_between_two_times_alone(mode, interval, guided):
    """Times of five steps at mu 1.1: 1, .923, .818, .667, .429."""
    calls = []

    def count(rgb, depth, context, t_rgb, t_depth):
        calls.append(float(context.mean()))
        return echo_context(rgb, depth, context, t_rgb, t_depth)

    given = {"context": CONTEXT + 2, "null_context": CONTEXT, "guidance": 4.0}
    schedule = make_schedule(mode, 5)
    sample(count, RGB, DEPTH, schedule, **given, guidance_interval=interval)
    assert calls.count(2.0) == 5 and calls.count(0.0) == guided


@pytest.mark.parametrize("interval", [(0.2, 0.5), (1.5, 0.0), (1.0, -0.1), (float("nan"), 0.0)])
def test_an_interval_the_wrong_way_round_is_refused(interval):
    with pytest.raises(ValueError, match="Expected a guidance interval of two times from 1"):
        sample(
            echo_context, RGB, DEPTH, make_schedule("joint", 1), context=CONTEXT, guidance_interval=interval
        )


@pytest.mark.parametrize("guidance", [1.0, 0.5])
def test_guidance_up_to_1_calls_the_network_once_a_step(guidance):
    calls = []

    def count(*inputs):
        calls.append(1)
        return echo_context(*inputs)

    sample(
        count, RGB, DEPTH, make_schedule("joint", 5), context=CONTEXT, null_context=CONTEXT, guidance=guidance
    )
    assert len(calls) == 5
    sample(
        count, RGB, DEPTH, make_schedule("joint", 5), context=CONTEXT, null_context=CONTEXT, guidance=1.01,
        depth_guidance=1.0,
    )  # fmt: skip
    assert len(calls) == 15


def test_bad_guidance_and_contexts_are_refused_in_a_sentence():
    schedule = make_schedule("joint", 1)
    with pytest.raises(
        ValueError, match="Expected null_context, the encoding of the empty prompt, with guidance 4, got none"
    ):
        sample(echo_context, RGB, DEPTH, schedule, context=CONTEXT, guidance=4.0)
    with pytest.raises(ValueError, match="Expected a finite guidance, got nan"):
        sample(echo_context, RGB, DEPTH, schedule, context=CONTEXT, guidance=float("nan"))
    with pytest.raises(ValueError, match="Expected a batch of 1 or 2 in context, got 3"):
        sample(echo_context, RGB, DEPTH, schedule, context=CONTEXT.expand(3, -1, -1))


def test_on_step_sees_the_clean_streams_and_can_stop_the_run():
    seen = []

    def watch(step, steps, latents):
        assert set(latents) == {"image", "depth"}
        assert_close(latents["image"], RGB0)
        assert torch.equal(latents["depth"], DEPTH0)
        seen.append((step, steps))
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(know_everything, RGB, DEPTH, make_schedule("joint", 5), context=CONTEXT, on_step=watch)
    assert seen == [(1, 5), (2, 5), (3, 5)]


def test_partial_depth_holds_its_pixels_at_every_noise_level():
    mask = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    mask[..., :4] = True
    known = torch.full_like(DEPTH0, 0.7)
    schedule, seen = make_schedule("joint", 4, log2_alpha=-5.0), []

    def watch(rgb, depth, context, t_rgb, t_depth):
        t = t_depth[:, None, None, None]
        assert_close(depth[mask], ((1 - t) * known + t * DEPTH)[mask])
        seen.append(float(t_depth[0]))
        return know_everything(rgb, depth, context, t_rgb, t_depth)

    _, depth = sample(
        watch, RGB, DEPTH, schedule, context=CONTEXT, partial_depth=PartialDepth(known, DEPTH, mask)
    )
    assert seen == schedule.t_depth[:-1].tolist()
    assert torch.equal(depth[mask], known[mask]) and torch.equal(depth[~mask], DEPTH0[~mask])


def test_draws_depend_on_the_seed_and_the_image_comes_first():
    rgb, depth = draw_noise(5, (2, 3, 2, 2), (2, 1, 8, 8))
    again, larger = draw_noise(5, (2, 3, 2, 2), (2, 1, 8, 8)), draw_noise(5, (2, 3, 2, 2), (2, 1, 16, 16))
    assert torch.equal(rgb, again[0]) and torch.equal(depth, again[1]) and torch.equal(rgb, larger[0])
    assert not torch.equal(rgb, draw_noise(6, (2, 3, 2, 2), (2, 1, 8, 8))[0])
    assert rgb.dtype == depth.dtype == torch.float32


def test_schedule_may_be_any_pair_of_tables():
    schedule = TimeSchedule(torch.tensor([1.0, 0.2, 0.0]), torch.tensor([1.0, 0.9, 0.0]))
    rgb, depth = sample(know_everything, RGB, DEPTH, schedule, context=CONTEXT)
    assert_close(rgb, RGB0)
    assert torch.equal(depth, DEPTH0)
