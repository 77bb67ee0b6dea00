"""attend against softmax(q k / sqrt d) v written out in float64."""

import torch

from spatialweave.kernels.testing import assert_close
from spatialweave.models.core.layers.attention import attend, attend_by_queries, attend_with_scores


def reference(q, k, v, mask=None):
    logits = torch.einsum("bhnd,bhmd->bhnm", q.double(), k.double()) / q.shape[-1] ** 0.5
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    mixed = torch.einsum("bhnm,bhmd->bhnd", logits.softmax(-1), v.double())
    return mixed.permute(0, 2, 1, 3).reshape(q.shape[0], q.shape[2], -1)


def test_attend_is_softmax_attention_with_heads_side_by_side():
    q, k, v = torch.randn(3, 2, 3, 7, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    assert_close(attend(q, k, v), reference(q, k, v), dtype=torch.float32)


def test_attend_leaves_masked_tokens_out():
    q, k, v = torch.randn(3, 1, 2, 5, 4, generator=torch.Generator().manual_seed(1)).unbind(0)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    assert_close(attend(q, k, v, mask), reference(q, k, v, mask), dtype=torch.float32)
    assert_close(attend(q, k, v, mask)[:, 0], v[:, :, 0].flatten(1), dtype=torch.float32)


def test_attention_by_queries_and_with_scores_is_the_same_attention():
    q, k, v = (torch.randn(2, 3, 11, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    expected = attend(q, k, v)
    assert_close(attend_with_scores(q, k, v), expected, dtype=torch.float32)
    for queries in (1, 4, 11, 50):
        assert_close(attend_by_queries(attend, queries)(q, k, v), expected, dtype=torch.float32)
