"""The trainer: recipe, data, loop, checkpoint. It receives a model and a loss, and knows no system."""
