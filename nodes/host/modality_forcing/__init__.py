"""Modality Forcing inside ComfyUI."""
