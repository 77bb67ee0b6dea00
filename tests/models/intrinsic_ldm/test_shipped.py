"""The tiny system as it ships, judged by exact scenes and by networks that it does not know:
it is the pack's evidence.
"""

import pytest
import torch

from spatialweave.models.benchmarks.held_out import hold_out
from spatialweave.models.benchmarks.intrinsic_ldm_judge import Judge, code_frames, read_codes
from spatialweave.models.core.training.alignment import code_positions, collect_activations
from spatialweave.models.core.weights.files import read_header
from spatialweave.models.intrinsic_ldm import tiny
from spatialweave.models.intrinsic_ldm.rows import Rows
from spatialweave.models.intrinsic_ldm.schedules import Gaussian
from spatialweave.models.world.judges.predictor import Predictor
from spatialweave.models.world.judges.scene_maps import compare_maps, exact_maps
from spatialweave.models.world.judges.scorer import Scorer
from spatialweave.models.world.render import render

FILES = (tiny.BASE_FILE, tiny.VAE_FILE, tiny.LORA_FILE)
COUNT = 12


@pytest.fixture(scope="module")
def system():
    pytest.importorskip("diffusers", reason="the trainer's extra is not installed")
    from spatialweave.models.intrinsic_ldm.pipeline import IntrinsicPipeline

    return IntrinsicPipeline.from_preset("tiny")


@pytest.fixture(scope="module")
def held_out():
    """Scenes that no training saw, as (frames, captions)."""
    scenes, captions = hold_out(5000, COUNT)
    return render(scenes, tiny.SIZE, tiny.SIZE), captions


@pytest.fixture(scope="module")
def made(system, held_out):
    return system(held_out[1], schedule=Gaussian(), steps=10, seed=0)


def test_all_that_ships_is_small():
    assert sum(file.stat().st_size for file in FILES) < 12e6
    assert set(read_header(tiny.BASE_FILE).dtypes.values()) == {"F16"}


@torch.no_grad()
def test_both_autoencoders_bring_back_scenes_that_they_never_saw(system, held_out):
    """Image: peak signal to noise; maps: as far from the exact ones as the code costs,
    measured as the evidence measures them.
    """
    frames, _ = held_out
    x = frames.image.movedim(-1, 1) * 2 - 1
    back = system.image_vae.module.decode(system.image_vae.module.encode(x).latent_dist.mode()).sample.clamp(
        -1, 1
    )
    assert 10 * torch.log10(4 / (back - x).square().mean()) > 29
    maps = code_frames(frames)
    again = system.maps_vae.module.decode(
        system.maps_vae.module.encode(maps).latent_dist.mode()
    ).sample.clamp(-1, 1)
    found = {
        name: float(value.nanmean())
        for name, value in compare_maps(read_codes(again), exact_maps(frames)).items()
    }
    assert found["depth_absrel"] < 0.035 and found["normal_angle"] < 6, found
    assert found["segmentation_miou"] > 0.8 and found["line_f1"] > 0.95, found


def test_pictures_show_what_their_captions_say(made, held_out):
    """By the world's scorer, and better than they show what other captions say."""
    scorer, captions = Scorer.from_pretrained(), held_out[1]
    judged = {
        name: [fact.holds for each in scorer.judge(made.image, texts) for fact in each.facts]
        for name, texts in (("own", captions), ("another's", captions[1:] + captions[:1]))
    }
    share = {name: sum(holds) / len(holds) for name, holds in judged.items()}
    assert share["own"] > 0.5 and share["own"] > share["another's"] + 0.2, share


def test_the_maps_are_those_of_the_picture(made, held_out):
    """Co-generated maps agree with what a network reads off the finished picture,
    and not with the next picture's maps.
    """
    judge, captions = Judge(Scorer.from_pretrained(), Predictor.from_pretrained()), held_out[1]
    own, others = (
        judge.measure(made.image, captions, maps) for maps in (made.maps, made.maps.roll(1, dims=0))
    )
    for name, better in (
        ("depth_absrel", -1), ("normal_angle", -1), ("segmentation_miou", 1), ("line_f1", 1),
    ):
        gain = better * float(own[name].nanmean() - others[name].nanmean())
        assert gain > 0.2 * float(others[name].nanmean().abs()), name


@torch.no_grad()
def test_the_keys_of_the_shipped_base_tell_places(system, held_out):
    """Read by least squares on half of the scenes, from noised latents;
    on the other half keys are put where they are.
    """
    coupling, rows = system.coupling, Rows(("prompt",), COUNT, ("image",))
    image = held_out[0].image.movedim(-1, 1) * 2 - 1
    latent = system.image_vae.module.encode(image).latent_dist.mode() * system.image_vae.scale
    noised = (
        0.7**0.5 * latent
        + 0.3**0.5 * torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    )
    with (
        collect_activations(
            system.backbone.network.mid_block.attentions[0].transformer_blocks[0].attn1.to_k
        ) as activations,
        coupling.call(rows),
    ):
        system.backbone.network(noised, 400, encoder_hidden_states=torch.zeros(COUNT, 24, tiny.TEXT_WIDTH))
    keys, codes = activations[0].double(), code_positions(8, 8).double()
    learnt, left = keys[: COUNT // 2], keys[COUNT // 2 :]
    read = torch.linalg.lstsq(learnt.flatten(0, 1), codes.repeat(COUNT // 2, 1)).solution
    found = (left @ read @ codes.T).argmax(-1)
    assert float((found == torch.arange(64)).double().mean()) > 0.4, "of 64 places"
