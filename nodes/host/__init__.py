"""The one place that touches ComfyUI's internals: networks as core MODEL, CLIP and VAE, and where their files lie."""
