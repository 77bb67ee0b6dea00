"""What the shipped tiny models give for fixed seeds. A change of structure keeps these;
new weights or arithmetic change them on purpose.

The stored values are a few of each output, from one processor; others round sums otherwise, which the
tolerance allows for. To write them anew after new weights: `python tests/models/test_unchanged_outputs.py`.
"""

import json
from pathlib import Path

import numpy as np
import pytest

STORED = Path(__file__).with_name("unchanged_outputs.json")
TOLERANCE = 2e-4  # of values around 1; torch 2.11 and 2.14, AVX2 and AVX-512 differ by 1e-5


def sample(tensor, count=24):
    """Values spread over a tensor, corners left out."""
    flat = tensor.detach().flatten()
    return flat[flat.numel() // (2 * count) :: max(1, flat.numel() // count)][:count].tolist()


def joint_outputs():
    from spatialweave.models.modality_forcing.pipeline import ModalityForcingPipeline

    pipeline = ModalityForcingPipeline.from_preset("tiny")
    pair = pipeline("a red ball to the left of a blue box", seed=3, steps=4)
    depth = pipeline(mode="image_to_depth", image=pair.image, steps=2, seed=1).view
    image = pipeline("a green cone", mode="depth_to_image", depth=depth, steps=2, seed=2).image
    return {
        "joint image": pair.image, "joint depth": pair.view.depth, "image to depth": depth.depth,
        "depth to image": image,
    }


def intrinsic_outputs():
    from spatialweave.models.intrinsic_ldm.pipeline import IntrinsicPipeline
    from spatialweave.models.intrinsic_ldm.schedules import Gaussian

    pipeline = IntrinsicPipeline.from_preset("tiny")
    made = pipeline(["a red ball behind a blue box"], schedule=Gaussian(), steps=3, seed=3)
    return {"co-generated image": made.image, "co-generated maps": made.maps}


def judge_outputs():
    from spatialweave.models.world.judges.predictor import Predictor
    from spatialweave.models.world.judges.scorer import Scorer
    from spatialweave.models.world.render import render
    from spatialweave.models.world.scene import sample_scenes

    image = render(sample_scenes(5, 1, split="test"), 64, 64).image
    planes = image.movedim(-1, 1)
    outputs = {"rendered image": image}
    for name, judge in (("predictor", Predictor.from_pretrained()), ("scorer", Scorer.from_pretrained())):
        judge.network.requires_grad_(False)
        outputs |= {f"{name}, {head}": value.float() for head, value in judge.network(planes).items()}
    return outputs


OUTPUTS = {"joint": joint_outputs, "intrinsic": intrinsic_outputs, "judges": judge_outputs}


@pytest.mark.parametrize("system", OUTPUTS)
def test_the_shipped_models_give_what_they_gave(system):
    if system == "intrinsic":
        pytest.importorskip("diffusers", reason="the trainer's extra is not installed")
    stored = json.loads(STORED.read_text(encoding="utf-8"))[system]
    made = OUTPUTS[system]()
    assert made.keys() == stored.keys()
    for name, tensor in made.items():
        assert list(tensor.shape) == stored[name]["shape"]
        np.testing.assert_allclose(
            sample(tensor), stored[name]["values"], rtol=TOLERANCE, atol=TOLERANCE, err_msg=name
        )


if __name__ == "__main__":
    written = {
        system: {
            name: {"shape": list(value.shape), "values": sample(value)} for name, value in outputs().items()
        }
        for system, outputs in OUTPUTS.items()
    }
    STORED.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
