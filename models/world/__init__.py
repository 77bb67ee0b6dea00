"""The procedural 3D world: seeded scenes with exact geometry, captions and edits; torch only."""
