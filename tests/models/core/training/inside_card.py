"""A card that is not there: torch's fake tensors have a device and no numbers, so what a loss does with its
device can be checked on any machine."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CARD = torch.device("cuda", 0)


class CardGenerator(torch.Generator):
    """Says that it is on the card, which is all that a loss asks; fake tensors draw no numbers from it."""

    @property
    def device(self):
        return CARD


class NoCopies(TorchDispatchMode):
    """Refuses copies between the host and the card."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [value for value in tree_leaves((args, kwargs, out)) if isinstance(value, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors if tensor.device.type != "meta"}
        assert len(devices) < 2 or "copy" not in func.name(), f"{func.name()} between {sorted(devices)}"
        return out


def put_on_card(module):
    """A module whose parameters and buffers are on the card."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = torch.nn.Parameter(empty_like(value), value.requires_grad)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = empty_like(value)
    return module


def empty_like(value):
    return torch.empty(value.shape, dtype=value.dtype, device=CARD)


def check_loss_stays_on_card(task, batch):
    """The forward pass of a Task's loss on a card, with a batch of the shapes and types of `batch`.

    A copy between host and card is an error, and so is to wait for a number of the card.
    """
    with FakeTensorMode():
        model = put_on_card(task.model)
        for companion in task.companions:
            put_on_card(companion)
        there = {k: empty_like(v) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        with NoCopies():
            loss, logs = task.loss(model, there, CardGenerator())
        assert loss.device == CARD and all(value.device == CARD for value in logs.values())
