"""SpatialDiff under ComfyUI: connectors in core's memory management, geometry tokens in core's Flux."""
