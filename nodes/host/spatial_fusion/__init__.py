"""Depth adapters under ComfyUI: files, and the wrappers that add F to what a network reads."""
