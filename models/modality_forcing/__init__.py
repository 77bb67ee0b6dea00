"""Modality Forcing (arXiv 2606.13676): an image and its depth from one FLUX.2 network with a depth stream."""
