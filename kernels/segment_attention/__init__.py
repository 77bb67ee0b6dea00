"""Attention of coupled streams: one softmax over the keys of several sources, each with a log weight."""

from .segments import Segments, Source

__all__ = ["Segments", "Source"]
