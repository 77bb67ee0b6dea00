"""A VIEW to the addend: framing, sizes, and the hook on a network of diffusers."""

import dataclasses

import pytest
import torch

from spatialweave.models.core.geometry.view import View
from spatialweave.models.spatial_fusion.config import find_preset
from spatialweave.models.spatial_fusion.depth_code import code_depth
from spatialweave.models.spatial_fusion.network import AdapterNetwork
from spatialweave.models.spatial_fusion.pipeline import add_to_latents, adding, frame_depth, view_to_addend

LOG = {"code": "log_iqr", "bound": 3.0, "least_iqr": 0.1}


def random_adapter(preset="sd21", **changes):
    adapter = AdapterNetwork(dataclasses.replace(find_preset(preset), **changes))
    with torch.no_grad():
        for value in adapter.parameters():
            value.normal_(0, 0.2, generator=torch.Generator().manual_seed(value.numel()))
    return adapter


def make_view(count=1, height=64, width=96, **more):
    depth = torch.rand(count, height, width, generator=torch.Generator().manual_seed(0)) * 4 + 1
    return View.from_depth(depth, units="relative", **more)


def test_addend_is_the_adapter_of_the_code_at_the_latents_size():
    adapter, view = random_adapter(), make_view(2)
    want = adapter(code_depth(view.depth, view.mask, **LOG), view.mask)
    found = view_to_addend(adapter, view, (8, 12))
    assert torch.equal(found.values, want) and found.values.shape == (2, 4, 8, 12) and found.notes == ()
    assert not found.values.requires_grad


@pytest.mark.parametrize("size", [(65, 97), (511, 770), (32, 48), (64, 95)])
def test_a_view_of_the_same_aspect_to_a_latent_cell_is_only_scaled(size):
    found = view_to_addend(random_adapter(), make_view(1, *size), (8, 12))
    assert found.values.shape == (1, 4, 8, 12) and found.notes == ()


def test_a_gradient_keeps_its_place_through_crop_pad_and_stretch():
    """Depth rises with x: where each column of the target comes from."""
    depth = torch.linspace(1, 2, 96).expand(1, 64, 96)
    view = View.from_depth(depth, units="relative")
    cropped, mask, notes = frame_depth(view, (64, 64), 8, "crop")
    assert torch.equal(cropped, depth[:, :, 16:80]) and mask.all() and "33% is cropped" in notes[0]
    padded, mask, notes = frame_depth(view, (96, 96), 8, "pad")
    assert torch.equal(padded[:, 16:80], depth) and torch.equal(padded > 0, mask) and not mask[:, :16].any()
    assert padded.shape == (1, 96, 96) and "padded with invalid depth" in notes[0]
    same, _, notes = frame_depth(view, (96, 96), 8, "stretch")
    assert torch.equal(same, depth) and notes == ()
    tall, mask, _ = frame_depth(view, (128, 96), 8, "pad")
    assert tall.shape == (1, 128, 96) and mask[:, 32:96].all() and mask.sum() == 64 * 96
    high, _, _ = frame_depth(view, (32, 96), 8, "crop")
    assert torch.equal(high, depth[:, 16:48])
    wide, mask, _ = frame_depth(view, (64, 192), 8, "pad")
    assert wide.shape == (1, 64, 192) and torch.equal(wide[:, :, 48:144], depth)


def test_what_does_not_fit_is_a_sentence():
    adapter, square = random_adapter(), make_view(1, 64, 64)
    with pytest.raises(ValueError, match="aspect, 96 x 64 pixels, got one of 64 x 64. Set framing"):
        view_to_addend(adapter, square, (8, 12))
    with pytest.raises(ValueError, match="Expected one of refuse, crop, pad, stretch, got 'fill'"):
        view_to_addend(adapter, square, (8, 12), framing="fill")
    nothing = View.from_depth(torch.zeros(1, 64, 96), units="relative")
    with pytest.raises(ValueError, match="Expected a valid pixel"):
        view_to_addend(adapter, nothing, (8, 12))
    left = torch.zeros(1, 64, 200)
    left[:, :, :20] = 1
    with pytest.raises(ValueError, match="to which it is cropped"):
        view_to_addend(adapter, View.from_depth(left, units="relative"), (8, 8), framing="crop")


class Plain(torch.nn.Module):
    def forward(self, sample, timestep=None, hidden_states=None):
        return sample


def test_a_network_of_diffusers_reads_the_sum_while_the_hook_is_on():
    network, x = Plain(), torch.randn(4, 4, 8, 12)
    addend = torch.randn(2, 4, 8, 12)
    want = x + torch.cat((addend, addend))
    with adding(network, addend):
        assert torch.equal(network(x), want) and torch.equal(network(sample=x), want)
        with pytest.raises(ValueError, match="got 2 for 3 rows"):
            network(x[:3])
    assert torch.equal(network(x), x)


def test_packed_latents_of_flux_get_the_addend_in_their_own_order():
    addend = torch.randn(1, 16, 8, 12)
    diffusers = pytest.importorskip("diffusers", reason="the trainer's extra is not installed")
    pack = diffusers.FluxPipeline._pack_latents
    latent = torch.randn(2, 16, 8, 12)
    packed = pack(latent, 2, 16, 8, 12)
    want = pack(latent + addend, 2, 16, 8, 12)
    assert torch.equal(add_to_latents(packed, addend), want)
    reference = torch.cat((packed, torch.randn(2, 5, 64)), dim=1)
    assert torch.equal(add_to_latents(reference, addend)[:, 24:], reference[:, 24:])
