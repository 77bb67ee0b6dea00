"""Dataset folders of the world."""
