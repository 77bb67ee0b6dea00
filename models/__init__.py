"""Everything that computes, without ComfyUI: core, then one folder per system."""
