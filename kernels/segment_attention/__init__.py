"""Attention of coupled streams: one softmax over the keys of several sources, each with a log weight."""

from .composition import Inner
from .op import cross_domain_attention, segment_attention
from .segments import Segments, Source

__all__ = ["Inner", "Segments", "Source", "cross_domain_attention", "segment_attention"]
