"""A dataset that lies on the device as tensors: a recipe's `resident`.

A batch is gathered there by its indices, so that the host neither reads nor copies while a card computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .data import collate, describe, read_many

READ = 1024  # samples read at once
FREE_SHARE = 0.8  # of a card's free memory that a dataset may take: the network needs the rest


class Constants(torch.nn.Module):
    """Tensors that a loss needs in every step: as a companion of its Task they move to the device once."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        super().__init__()
        for name, value in tensors.items():
            self.register_buffer(name, value)

    def bind(self, loss: Callable, key: str = "") -> Callable:
        """`loss(model, batch, generator)` with each tensor as its argument, or all of them as the mapping
        `key`.
        """

        def bound(model, batch, generator):
            tensors = dict(self.named_buffers())
            return loss(model, batch, generator, **({key: tensors} if key else tensors))

        return bound


class ResidentDataset(torch.utils.data.Dataset):
    """All samples of `source`, read once; `__getitems__` gives the batch that its `collate` would give.

    Tensors lie on `device`, strings on the host.
    """

    def __init__(self, source: Any, device: torch.device, collate_samples: Callable = collate):
        if collate_samples is not collate:
            raise ValueError(
                "Expected samples that are stacked to a batch for the recipe's resident, got a dataset with "
                "batches of its own. Leave resident out."
            )
        self.count = len(source)
        self.columns: dict[str, Any] = {}
        for start in range(0, self.count, READ):
            self.add(start, read_batch(source, range(start, min(start + READ, self.count))), device)

    def add(self, start: int, batch: Mapping[str, Any], device: torch.device) -> None:
        if not start:
            check_room(batch, self.count, device)
            self.columns = {
                name: torch.empty((self.count, *value.shape[1:]), dtype=value.dtype, device=device)
                if isinstance(value, Tensor) else []
                for name, value in batch.items()
            }  # fmt: skip
        shapes = {name: column[:1] for name, column in self.columns.items()}
        if batch.keys() != shapes.keys() or describe(cut_rows(batch)) != describe(shapes):
            raise ValueError(
                f"Expected samples of one size for the recipe's resident, got {describe(shapes)} and "
                f"{describe(cut_rows(batch))} from sample {start} on. Set data.size to resize all samples."
            )
        for name, value in batch.items():
            if isinstance(value, Tensor):
                self.columns[name][start : start + len(value)].copy_(value)
            else:
                self.columns[name].extend(value)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: column[index] for name, column in self.columns.items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        rows: dict[torch.device, Tensor] = {}
        return {name: gather(column, indices, rows) for name, column in self.columns.items()}


def gather(column: Any, indices: Sequence[int], rows: dict[torch.device, Tensor]) -> Any:
    """The rows of a column; `rows` keeps the indices on each device."""
    if not isinstance(column, Tensor):
        return [column[index] for index in indices]
    if column.device not in rows:
        rows[column.device] = torch.as_tensor(indices).to(column.device)
    return column[rows[column.device]]


def read_batch(source: Any, indices: Sequence[int]) -> Mapping[str, Any]:
    """These samples as one batch, read as a loader reads them."""
    if hasattr(source, "__getitems__"):
        return collate(source.__getitems__(list(indices)))
    return collate(read_many(source, indices))


def cut_rows(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The first sample of each tensor, as a batch of one."""
    return {name: value[:1] for name, value in batch.items()}


def check_room(batch: Mapping[str, Any], count: int, device: torch.device) -> None:
    """ValueError if a card has too little free memory for `count` samples."""
    if device.type != "cuda":
        return
    sample = sum(value[0].nbytes for value in batch.values() if isinstance(value, Tensor))
    free = torch.cuda.mem_get_info(device)[0]
    if sample * count > FREE_SHARE * free:
        raise ValueError(
            f"Expected room for the dataset's {sample * count / 2**30:.1f} GiB on the card for the recipe's "
            f"resident, got {free / 2**30:.1f} GiB free. Leave resident out."
        )
