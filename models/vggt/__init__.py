"""VGGT: images of one scene in; depth, cameras, points and geometry tokens out."""
