"""The losses that a card captures: no copy between host and card, and no wait for a number."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

from spatialweave.models.core.layers import positions
from spatialweave.models.core.training.data import collate
from spatialweave.models.core.training.loop import Task
from spatialweave.models.core.training.recipe import Recipe
from spatialweave.models.modality_forcing.training import task as joint_task
from spatialweave.models.tiny.text import TOKENS, TinyTextEncoder, tokenize
from spatialweave.models.trainers.world_samples import CELL_CLASSES

SCRIPT = Path(__file__).parents[1] / "core" / "training" / "inside_card.py"
_spec = importlib.util.spec_from_file_location("inside_card", SCRIPT)
inside_card = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(inside_card)
EMPTY = tokenize([""])[0]


class Samples(torch.utils.data.Dataset):
    """Four times the same random sample."""

    def __init__(self, **shapes):
        self.sample = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.sample


@pytest.fixture(autouse=True)
def tables():
    """Tables that networks keep between calls must not be fake in other tests, nor real in these."""
    positions._kept.cache_clear()
    yield
    positions._kept.cache_clear()


def check(task):
    assert task.draws_there and task.captures
    inside_card.check_loss_stays_on_card(task, collate([task.dataset[i] for i in range(4)]))


@pytest.mark.parametrize("kind", ["text_to_image", "modality_forcing"])
def test_modality_forcing(kind):
    samples = Samples(
        latent=((32, 8, 8), torch.float32), depth_net=((1, 128, 128), torch.float32),
        mask=((1, 128, 128), torch.bool), tokens=((4, TOKENS), torch.int64), cells=((2, 32, 32), torch.int8),
    )  # fmt: skip
    loss = {"kind": kind, "align": 0.5, "depth_gradient": 0.5, "depth_border": 0.5}
    recipe = Recipe(system="tiny_modality_forcing", steps=1, loss=loss)
    text = {"text_encoder": TinyTextEncoder(), "empty_tokens": EMPTY}
    check(joint_task.build(recipe, dataset=samples, classes=CELL_CLASSES, **text))


def test_a_loss_that_asks_the_card_for_a_number_is_found():
    """So that the checks above can fail."""
    samples = Samples(x=((3,), torch.float32))

    def copies(model, batch, generator):
        return torch.zeros(3).to(batch["x"].device).sum(), {}

    def waits(model, batch, generator):
        return batch["x"].sum() if bool(batch["x"].any()) else batch["x"].mean(), {}

    for loss, error in ((copies, AssertionError), (waits, DataDependentOutputException)):
        with pytest.raises(error):
            inside_card.check_loss_stays_on_card(Task(torch.nn.Identity(), loss, samples), samples.sample)
