"""Sums of loss terms and means over masks, against numpy's masked arrays."""

import numpy as np
import torch

from spatialweave.models.core.losses import masked_mean, masked_mean_each, sum_terms
from spatialweave.models.core.training.captions import put_empty


def random_values(*shape):
    rng = np.random.default_rng(0)
    return rng.normal(size=shape), rng.random(shape) < 0.4


def test_the_sum_keeps_its_graph_and_the_logged_terms_have_none():
    weight = torch.tensor(2.0, requires_grad=True)
    loss, logs = sum_terms({"a": 3 * weight, "b": weight**2})
    loss.backward()
    assert loss.item() == 10 and weight.grad.item() == 7
    assert {name: value.item() for name, value in logs.items()} == {"a": 6, "b": 4}
    assert not any(value.requires_grad for value in logs.values())


def test_masked_means_are_those_of_numpys_masked_arrays():
    values, mask = random_values(3, 2, 5, 4)
    expected = np.ma.masked_array(values, ~mask)
    found = masked_mean(torch.from_numpy(values), torch.from_numpy(mask))
    np.testing.assert_allclose(found.numpy(), expected.mean(), rtol=1e-12)
    each, count = masked_mean_each(torch.from_numpy(values), torch.from_numpy(mask))
    np.testing.assert_allclose(each.numpy(), expected.reshape(3, -1).mean(axis=1), rtol=1e-12)
    assert count.tolist() == mask.reshape(3, -1).sum(axis=1).tolist()


def test_where_nothing_counts_the_mean_and_its_gradient_are_0_whatever_the_values():
    values = torch.tensor([[torch.nan, torch.inf]], requires_grad=True)
    mask = torch.zeros(1, 2, dtype=torch.bool)
    mean, (each, count) = masked_mean(values, mask), masked_mean_each(values, mask)
    (mean + each.sum()).backward()
    assert mean.item() == 0 and each.tolist() == [0] and count.tolist() == [0]
    assert values.grad.tolist() == [[0, 0]]


def test_dropped_samples_take_the_empty_prompt_alone():
    words, empty = torch.arange(24).reshape(3, 4, 2), torch.full((4, 2), -1)
    found = put_empty(words, empty, torch.tensor([False, True, False]))
    assert torch.equal(found[[0, 2]], words[[0, 2]]) and (found[1] == -1).all()
