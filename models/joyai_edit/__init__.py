"""JoyAI-Image (arXiv 2605.04128): the interface that the released editing model was trained on."""
