"""The geometry connector and the depth head of its training. Tensors in, tensors out.

Letters: b batch, n geometry tokens, q queries, h heads, d head width, c channels.
"""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from ..core.layers.attention import Attend, attend
from ..core.layers.vit import Mlp
from .config import ConnectorConfig

QUERY_STD = 0.02  # of the learned queries before training


class GeometryConnector(nn.Module):
    """Geometry tokens (b, n, geometry_width) -> tokens (b, q, width) of the editor's sequence.

    Learned queries read the geometry tokens by cross-attention, layer by layer; there is no self-attention.
    The result does not depend on the time step: it is computed once for each image.
    """

    def __init__(self, config: ConnectorConfig, *, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        self.config = config
        made = {"operations": operations, "device": device, "dtype": dtype}
        self.queries = nn.Parameter(torch.empty(config.queries, config.width, device=device, dtype=dtype))
        nn.init.normal_(self.queries, std=QUERY_STD)
        self.layers = nn.ModuleList([CrossAttentionLayer(config, **made) for _ in range(config.layers)])
        self.norm_out = operations.LayerNorm(config.width, device=device, dtype=dtype)

    def forward(self, tokens: Tensor, attend: Attend = attend) -> Tensor:
        x = repeat(self.queries, "q c -> b q c", b=len(tokens)).to(tokens)
        for layer in self.layers:
            x = layer(x, tokens, attend)
        return self.norm_out(x)


class CrossAttentionLayer(nn.Module):
    """Pre-norm cross-attention and feed-forward: x (b, q, width), tokens (b, n, geometry_width)."""

    def __init__(self, config: ConnectorConfig, *, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.heads = config.heads
        inner, hidden = config.inner_width, int(config.width * config.mlp_ratio)
        self.norm_queries = operations.LayerNorm(config.width, **factory)
        self.norm_tokens = operations.LayerNorm(config.geometry_width, **factory)
        self.to_q = operations.Linear(config.width, inner, **factory)
        self.to_kv = operations.Linear(config.geometry_width, 2 * inner, **factory)
        self.to_out = operations.Linear(inner, config.width, **factory)
        self.norm_mlp = operations.LayerNorm(config.width, **factory)
        self.mlp = Mlp(config.width, hidden, config.width, operations=operations, **factory)

    def forward(self, x: Tensor, tokens: Tensor, attend: Attend) -> Tensor:
        q = rearrange(self.to_q(self.norm_queries(x)), "b q (h d) -> b h q d", h=self.heads)
        k, v = rearrange(
            self.to_kv(self.norm_tokens(tokens)), "b n (two h d) -> two b h n d", two=2, h=self.heads
        )
        x = x + self.to_out(attend(q, k, v))
        return x + self.mlp(self.norm_mlp(x))


class LatentDepthHead(nn.Module):
    """The tokens' rows of the editor's last block (b, q, width) -> a depth latent (b, c, h, w).

    The `Dbar` of the latent depth loss: LayerNorm, linear, and each token to its square of latent pixels.
    """

    def __init__(self, config: ConnectorConfig, *, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        self.grid, self.patch = config.grid, config.depth_patch
        values = config.depth_channels * config.depth_patch**2
        self.norm = operations.LayerNorm(config.width, device=device, dtype=dtype)
        self.linear = operations.Linear(config.width, values, device=device, dtype=dtype)

    def forward(self, rows: Tensor) -> Tensor:
        height, width = self.grid
        return rearrange(
            self.linear(self.norm(rows)), "b (h w) (c ph pw) -> b c (h ph) (w pw)",
            h=height, w=width, ph=self.patch, pw=self.patch,
        )  # fmt: skip
