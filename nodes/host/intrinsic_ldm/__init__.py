"""I-LDM in ComfyUI: coupled sampling of an image and its intrinsic maps on core's MODEL and VAE."""
