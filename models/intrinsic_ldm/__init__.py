"""I-LDM (arXiv 2508.10382): joint sampling of an image and its intrinsic maps.

One network samples both; they are coupled in its self-attention.
"""
