"""Which rows of a batch are images and which are their intrinsic maps."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Stream = Literal["image", "intrinsic"]
BOTH: tuple[Stream, ...] = ("image", "intrinsic")


@dataclass(frozen=True)
class Rows:
    """The row layout (chunk, stream, b) of a batch: each chunk has `batch` rows per stream, image first.

    A chunk is one prompt on one area of the image, identified by a key that is the same in every call of a
    step; CFG has two or more. An image and its intrinsic maps are partners within a chunk, so a conditional
    row never attends to an unconditional one.
    """

    chunks: tuple[Hashable, ...]
    batch: int
    streams: tuple[Stream, ...] = BOTH

    @property
    def count(self) -> int:
        return len(self.chunks) * len(self.streams) * self.batch

    def check(self, count: int) -> None:
        if count != self.count:
            raise ValueError(
                f"Expected {self.count} rows in one call of the model ({len(self.chunks)} prompts, "
                f"{' and '.join(self.streams)}, a batch of {self.batch}), got {count}: a node regroups the "
                "batch. Remove it from the model's chain of nodes."
            )

    def grid(self, tensor: Tensor) -> Tensor:
        """(rows, ...) as a view (chunks, streams, batch, ...)."""
        return tensor.unflatten(0, (len(self.chunks), len(self.streams), self.batch))

    def select(self, tensor: Tensor, stream: Stream) -> Tensor:
        """The rows of one stream as a writable view (chunks, batch, ...)."""
        return self.grid(tensor)[:, self.streams.index(stream)]

    def partners(self) -> list[int]:
        """For each row the index of its partner row in the other stream."""
        return [
            (chunk * 2 + 1 - stream) * self.batch + index
            for chunk in range(len(self.chunks))
            for stream in range(2)
            for index in range(self.batch)
        ]
