"""I-LDM (arXiv 2508.10382): an image and its intrinsic maps sampled together by one network, coupled in its self-attention."""
