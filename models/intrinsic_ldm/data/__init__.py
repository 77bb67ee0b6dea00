"""Dataset folders of I-LDM: reading, building with a running ComfyUI, and encoding to latents."""
