"""What a network is asked to compute, operator by operator: shape, strides, type and alignment
of every argument.

Equal numbers on one machine say little of another, where a convolution or a product is chosen by how its
arguments lie. Equal operators on equal arguments that lie alike say it of any machine that computes the same
thing twice alike.
"""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

ALIGNED = 512  # bytes to which a CUDA allocation is aligned


def lie(value):
    """How a tensor lies in memory; anything else as it is written."""
    if not isinstance(value, torch.Tensor):
        return repr(value)
    return (
        str(value.dtype), tuple(value.shape), tuple(value.stride()),
        value.storage_offset() * value.element_size() % ALIGNED,
    )


class Asked(TorchDispatchMode):
    """While `open`, the last of `calls` collects the operators that compute something; views do not."""

    def __init__(self):
        super().__init__()
        self.calls, self.open = [], False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if self.open and not is_view(function):
            self.calls[-1]["operators"].append(
                (str(function), tree_map(lie, args), tree_map(lie, kwargs or {}))
            )
        return out


def is_view(function):
    """Whether an operator only looks at its argument in another way."""
    returned = function._schema.returns
    return (
        bool(returned)
        and all(each.alias_info is not None and not each.alias_info.is_write for each in returned)
    )


@contextlib.contextmanager
def asked_of(network):
    """The network's calls, as a list that grows: the tensors that "came" and the "operators"
    that followed.
    """
    asked = Asked()

    def opens(module, args, kwargs):
        came = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        asked.calls.append({"came": [(lie(each), each.clone()) for each in came], "operators": []})
        asked.open = True

    def closes(module, args, out):
        asked.open = False

    handles = [
        network.register_forward_pre_hook(opens, with_kwargs=True),
        network.register_forward_hook(closes, always_call=True),
    ]
    try:
        with asked:
            yield asked.calls
    finally:
        for handle in handles:
            handle.remove()


def same_arguments(a, b):
    """Whether the same tensors came to two calls, bit for bit, and lay alike."""
    pairs = list(zip(a["came"], b["came"], strict=True))
    return all(
        lies == other_lies and torch.equal(tensor, other) for (lies, tensor), (other_lies, other) in pairs
    )


def first_difference(a, b):
    """Of two calls' operators, in words; None where there is none."""
    for number, (one, other) in enumerate(zip(a["operators"], b["operators"])):
        if one != other:
            return f"{number}: {one} against {other}"
    counts = [len(call["operators"]) for call in (a, b)]
    return None if counts[0] == counts[1] else f"{counts[0]} operators against {counts[1]}"
