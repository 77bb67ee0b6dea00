"""The depth codec against the contraction's formula, its inverse, and a mean taken by hand."""

import math

import pytest
import torch

from spatialweave.kernels.testing import assert_close
from spatialweave.models.core.geometry.view import View, is_valid
from spatialweave.models.modality_forcing.depth_code import (
    Z_MAX,
    contract,
    depth_to_net,
    net_to_depth,
    uncontract,
    unit_mean,
)

NAN, INF = float("nan"), float("inf")


def test_contract_by_hand():
    r = torch.tensor([0.0, 0.5, 1.0, 2.0, 4.0, 1e30, -0.5, -2.0])
    assert contract(r).tolist() == [0.0, 0.5, 1.0, 1.5, 1.75, 2.0, -0.5, -1.5]


def test_uncontract_is_the_inverse():
    r = torch.logspace(-3, 1.9, 200, dtype=torch.float64)
    assert_close(uncontract(contract(r)), r)
    assert_close(uncontract(contract(-r), z_max=None), -r)


def test_uncontract_is_finite_and_positive_where_a_network_overshoots():
    z = torch.tensor([1.98, 1.99, 1.9999, 2.0, 2.5, 40.0])
    assert_close(uncontract(z), 1 / (2 - z.clamp(max=Z_MAX)), dtype=torch.float32)
    released = uncontract(z, z_max=None)
    assert math.isinf(released[3]) and released[4] < 0


def test_gradients_of_the_codec_are_finite_everywhere():
    for function in (contract, uncontract):
        x = torch.tensor([-1.9, -1.0, 0.0, 1.0, 1.9], requires_grad=True)
        function(x).sum().backward()
        assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("value", [NAN, INF, -INF, 0.0, -1.0])
def test_missing_pixels_do_not_count(value):
    depth = torch.tensor([[[[2.0, value], [6.0, 4.0]]], [[[10.0, 20.0], [30.0, 40.0]]]])
    net = depth_to_net(depth)
    assert_close(net[0, 0], torch.tensor([[0.5, 0.0], [2 - 4 / 6, 1.0]]))
    assert_close(net[1], depth_to_net(depth[1:])[0])
    assert is_valid(depth).sum() == 7


def test_a_mask_takes_pixels_out_and_fill_takes_their_place():
    depth, mask = torch.tensor([[[[1.0, 9.0, 3.0]]]]), torch.tensor([[[[True, False, True]]]])
    net = depth_to_net(depth, mask, torch.full_like(depth, -7.0))
    assert_close(net.flatten(), torch.tensor([0.5, -7.0, 2 - 1 / 1.5]))


def test_unit_mean_is_per_picture_and_safe_without_valid_pixels():
    depth = torch.tensor([[[[1.0, 3.0]]], [[[5.0, NAN]]], [[[NAN, INF]]]])
    scaled, mean = unit_mean(depth, is_valid(depth))
    assert scaled.flatten(1).tolist() == [[0.5, 1.5], [1.0, 0.0], [0.0, 0.0]]
    assert_close(mean, torch.tensor([2.0, 5.0, 1e-12]))


def test_depth_comes_back_up_to_its_scale():
    depth = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 5 + 0.1
    wanted = depth / depth.mean((1, 2, 3), keepdim=True)
    assert_close(net_to_depth(depth_to_net(depth)), wanted)
    assert_close(net_to_depth(depth_to_net(depth * 1000)), wanted)


def test_nothing_behind_the_camera_becomes_a_depth():
    net = torch.tensor([-40.0, -3.0, -2.0, -0.1, 0.0])
    assert net_to_depth(net).tolist() == [0.0] * 5
    assert net_to_depth(net, z_max=None)[1] == 1.0


def test_constant_depth_is_one():
    assert torch.equal(depth_to_net(torch.full((1, 1, 4, 4), 7.0)), torch.ones(1, 1, 4, 4))


SKY_DEPTH = torch.tensor([[[1.0, 3.0, INF], [NAN, 0.0, 2.0]]])
SKY = torch.tensor([[[False, False, True], [False, False, False]]])


def test_sky_encodes_to_two_and_does_not_move_the_mean():
    view = View.from_depth(SKY_DEPTH, units="metric")
    net = depth_to_net(view.depth[:, None], view.mask[:, None], sky=view.sky[:, None])[:, 0]
    # depths 1, 3, 2 over their mean, 2
    assert torch.allclose(net[view.mask], torch.tensor([0.5, 2 - 1 / 1.5, 1.0]))
    assert (net[SKY] == 2).all()


def test_sky_decodes_to_infinity_only_when_the_network_means_it():
    net = torch.tensor([0.5, 1.86, 1.88, 2.0, 2.3])
    assert torch.isinf(net_to_depth(net, infinite_sky=True)).tolist() == [False, False, True, True, True]
    assert torch.isfinite(net_to_depth(net)).all()
