"""Evaluation of whole systems on held-out scenes of the procedural world."""
