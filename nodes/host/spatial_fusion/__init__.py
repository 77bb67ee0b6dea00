"""SpatialFusion under ComfyUI: files, an MLLM's keys and values, and the wrappers that add F to z_t."""
