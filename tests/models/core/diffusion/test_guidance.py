"""Guidance is a straight line through the two outputs."""

import torch

from spatialweave.models.core.diffusion.guidance import guide, guide_streams


def test_guide_goes_from_unprompted_through_prompted():
    prompted, unprompted = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 1.0])
    assert guide(prompted, unprompted, 0).tolist() == [1.0, 1.0]
    assert guide(prompted, unprompted, 1).tolist() == [2.0, 0.0]
    assert guide(prompted, unprompted, 4).tolist() == [5.0, -3.0]


def test_guide_streams_treats_every_output_alike():
    outputs = guide_streams(
        (torch.tensor(2.0), torch.tensor(3.0)), (torch.tensor(1.0), torch.tensor(5.0)), (2, 2)
    )
    assert [float(x) for x in outputs] == [3.0, 1.0]


def test_guide_streams_leaves_a_stream_of_scale_1_as_it_is():
    prompted = (torch.tensor([0.1, 0.3]), torch.tensor([0.7]))
    outputs = guide_streams(prompted, (torch.tensor([1e8, -1e8]), torch.tensor([5.0])), (1, 3))
    assert torch.equal(outputs[0], prompted[0]) and float(outputs[1]) == 5 + 3 * (torch.tensor(0.7) - 5)
