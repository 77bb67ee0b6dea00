"""VGGT under ComfyUI: its memory management, progress and Cancel."""
