"""The trainer: recipe, data, loop, checkpoint.

It takes a model and a loss, and is independent of the systems.
"""
