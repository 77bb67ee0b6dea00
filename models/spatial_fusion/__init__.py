"""SpatialFusion: depth of an image before it is generated, added to the latent being denoised."""
