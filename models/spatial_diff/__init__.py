"""SpatialDiff: geometry tokens of the reference image in the sequence of an image editor."""
