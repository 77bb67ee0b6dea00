"""Our public ops, one line each."""

from .dispatch import use_backend
from .segment_attention import Inner, Segments, Source, cross_domain_attention, segment_attention

__all__ = ["Inner", "Segments", "Source", "cross_domain_attention", "segment_attention", "use_backend"]
