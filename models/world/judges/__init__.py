"""Networks that estimate the content of an image of the world, and the scores computed from their outputs."""
