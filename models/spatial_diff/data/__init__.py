"""Training data of SpatialDiff: triples of reference, instruction and target, and their encodings."""
