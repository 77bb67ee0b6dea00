"""I-LDM inside ComfyUI."""
