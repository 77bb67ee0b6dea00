"""The four intrinsic maps: channels, segmentation colors, and the eight-channel form that the VAE takes."""
