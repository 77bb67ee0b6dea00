"""Training of SpatialDiff: the tiny editor, the connector, and the LoRA with the depth head."""
