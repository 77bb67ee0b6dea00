"""The only code that uses ComfyUI's internals: networks as core MODEL, CLIP and VAE, and their folders."""
