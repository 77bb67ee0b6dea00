"""A frozen network sharded over all processes (FSDP2): each block is gathered when it runs."""

from __future__ import annotations

from torch import nn

from .loop import find_device


def make_mesh():
    """All processes as one dimension, over which weights are sharded; accelerate's group is begun here."""
    from accelerate import PartialState
    from torch.distributed.device_mesh import init_device_mesh

    device = find_device()
    state = PartialState(cpu=device.type == "cpu")
    if state.num_processes < 2:
        raise ValueError(
            "Expected several processes for the recipe's shard, got one. Start it with accelerate launch "
            "--num_processes, or set shard to false."
        )
    return init_device_mesh(device.type, (state.num_processes,))


def shard_unit(unit: nn.Module, mesh) -> None:
    """Keep this process's part of the unit's weights on its device."""
    from torch.distributed.fsdp import fully_shard

    unit.to(find_device())
    fully_shard(unit, mesh=mesh, reshard_after_forward=True)
