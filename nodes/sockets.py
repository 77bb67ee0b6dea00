"""Our socket types."""

from __future__ import annotations

from comfy_api.latest import io

View = io.Custom("SPATIALWEAVE_VIEW")  # models/core/geometry/view.py: depth with its unit, mask and camera
