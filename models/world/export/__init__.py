"""Dataset folders of the procedural world."""
