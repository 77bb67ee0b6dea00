"""Networks that read an image of the world back, and what is concluded from their outputs."""
