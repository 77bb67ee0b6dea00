"""How a network runs its blocks: plainly, or with gradient checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

RunBlock = Callable[..., Any]


def run_block(block: nn.Module, *args: Any) -> Any:
    """Run a block. Training with gradient checkpointing gives `forward` another function like this one."""
    return block(*args)


def checkpointed(block: nn.Module, *args: Any) -> Any:
    """Run a block, and again in the backward pass instead of keeping its activations."""
    return checkpoint(block, *args, use_reentrant=False)
