"""Views, cameras, depth, normals, points and their alignment: pure functions on torch tensors."""
