"""Training: `loss` of a batch, its `noise` levels, the weights to `start` from, the `task` of a recipe."""
