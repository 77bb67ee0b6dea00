"""The linear map from latents to colours, on codecs whose map is known."""

import torch
import torch.nn.functional as F

from spatialweave.models.tiny.codec import STRIDE, TinyCodec
from spatialweave.models.tiny.codec_colors import fit_colors, random_pictures


class MeanCodec:
    """A latent that is the mean colour, mixed and shifted."""

    mix = torch.tensor([[0.5, -1.0, 0.2], [0.3, 0.4, -0.7], [1.0, 0.1, 0.6]])

    def encode(self, image):
        return torch.einsum("bchw,cd->bdhw", F.avg_pool2d(image, STRIDE), self.mix) + 0.3


def test_a_linear_codec_is_inverted():
    factors, bias = fit_colors(MeanCodec())
    assert torch.allclose(MeanCodec.mix @ factors, torch.eye(3), atol=0.01)
    assert torch.allclose(0.3 * factors.sum(dim=0) + bias, torch.zeros(3), atol=0.01)


def test_a_nonlinear_codec_is_fitted_as_far_as_it_goes():
    """On pictures it was not fitted on, with a codec of random weights: most of the colour comes back."""
    torch.manual_seed(0)
    codec, pictures = TinyCodec().train(False), random_pictures(16, seed=9)
    factors, bias = fit_colors(codec)
    assert factors.shape == (32, 3) and bias.shape == (3,)
    with torch.no_grad():
        shown = codec.encode(pictures).movedim(1, -1) @ factors + bias
    colours = F.avg_pool2d(pictures, STRIDE).movedim(1, -1)
    assert (shown - colours).var() < 0.25 * colours.var()


def test_the_fit_repeats():
    assert torch.equal(fit_colors(MeanCodec())[0], fit_colors(MeanCodec())[0])
