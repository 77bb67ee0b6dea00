"""Evaluation on held-out scenes of the procedural world: a file per system, shared parts beside them."""
