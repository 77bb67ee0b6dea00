"""Training a network: `loss` of a batch, its `noise` levels, the weights it `start`s from, and the `task` of
a recipe.
"""
