"""Guidance is a straight line through the two outputs."""

import torch

from spatialweave.models.core.diffusion.guidance import guide, guide_streams


def test_guide_goes_from_unprompted_through_prompted():
    prompted, unprompted = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 1.0])
    assert guide(prompted, unprompted, 0).tolist() == [1.0, 1.0]
    assert guide(prompted, unprompted, 1).tolist() == [2.0, 0.0]
    assert guide(prompted, unprompted, 4).tolist() == [5.0, -3.0]


def test_guide_streams_treats_every_output_alike():
    outputs = guide_streams((torch.tensor(2.0), torch.tensor(3.0)), (torch.tensor(1.0), torch.tensor(5.0)), 2)
    assert [float(x) for x in outputs] == [3.0, 1.0]
