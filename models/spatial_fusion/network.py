"""The two networks of the paper: the spatial transformer, prompt to depth, and the depth adapter.

Letters: b images, h heads of the queries, g heads of keys and values, n tokens of the spatial transformer,
s tokens of the MLLM, d head width, c channels; `h w` only beside c.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..core.layers.dpt import DPTHead
from ..core.layers.positions import RotaryTable
from ..core.layers.vit import VisionTransformer
from .config import IMAGE_MEAN, IMAGE_STD, DepthAdapterConfig, SpatialTransformerConfig

DEPTH_OUTPUTS = 2  # of the depth head: log depth, log of (confidence - 1), as VGGT's

# called without arguments after each block and each layer, for progress; an exception ends the run
OnLayer = Callable[[], None]


class SemanticState(NamedTuple):
    """What a spatial transformer reads of prompts: keys, after rotation, and values of the MLLM's layers."""

    keys: Mapping[int, Tensor]  # layer of the MLLM, from 0 -> (b, g, s, d), padded on the right
    values: Mapping[int, Tensor]
    lengths: tuple[int, ...]  # tokens of each row, without padding


class DepthPlan(NamedTuple):
    """The grid of queries over an image, and the size of its depth map."""

    grid: tuple[int, int]  # (rows, columns)
    size: tuple[int, int]  # (height, width), of the image's aspect


class InferredDepth(NamedTuple):
    """The depth of images that do not exist yet."""

    depth: Tensor  # (b, h, w) float32, > 0, relative
    confidence: Tensor  # (b, h, w) float32, > 1


class SpatialTransformer(nn.Module):
    """Learnable queries, L layers that also attend to the MLLM's keys and values, VGGT's depth head.

    The attention is one-directional: the MLLM never sees these tokens. Names of a layer are the MLLM's,
    those of the image encoder and the depth head are VGGT's.
    """

    def __init__(
        self, config: SpatialTransformerConfig, *, operations=torch.nn, device=None, dtype=None
    ):
        super().__init__()
        self.config = config
        tensor_kwargs = {"device": device, "dtype": dtype}
        factory_kwargs, width = {"operations": operations, **tensor_kwargs}, config.width
        self.queries = nn.Parameter(torch.zeros(1, config.queries_side**2, width, **tensor_kwargs))
        self.image_encoder = VisionTransformer(
            patch=config.patch, table_side=config.encoder_table_side, dim=config.encoder_width,
            depth=config.encoder_depth, heads=config.encoder_heads, registers=config.encoder_registers,
            **factory_kwargs,
        )  # fmt: skip
        self.image_proj = operations.Linear(config.encoder_width, width, **tensor_kwargs)
        self.layers = nn.ModuleList(SpatialLayer(config, **factory_kwargs) for _ in range(config.layers))
        # float32 whatever the body is, as VGGT's: bfloat16 shows as bands in the depth
        exact = dtype and torch.promote_types(dtype, torch.float32)
        self.depth_head = DPTHead(
            width, features=config.dpt_features, out_channels=config.dpt_out_channels,
            outputs=DEPTH_OUTPUTS, **factory_kwargs | {"dtype": exact},
        )  # fmt: skip

    def forward(
        self, semantic: SemanticState, grid: tuple[int, int], size: tuple[int, int], *,
        image: Tensor | None = None, edits: Tensor | None = None, on_layer: OnLayer | None = None,
    ) -> InferredDepth:  # fmt: skip
        """Depth maps of `size` (height, width) from a grid (rows, columns) of queries.

        image: the sources of edits (b, 3, rows patch, columns patch) in [0, 1]; edits: (b,), False in rows
        whose image does not count, None for edits alone.
        """
        device = semantic.keys[self.config.pairs[0]].device
        x = self.embed(grid, image, edits, on_layer).to(device).expand(len(semantic.lengths), -1, -1)
        table = mrope_table(semantic.lengths, grid, self.config, x)
        taps = []
        for i, (layer, paired) in enumerate(zip(self.layers, self.config.pairs, strict=True)):
            x = layer(x, semantic.keys[paired], semantic.values[paired], semantic.lengths, table)
            if i in self.config.dpt_layers:
                taps.append(x)
            if on_layer:
                on_layer()
        exact = self.depth_head.norm.weight.dtype
        raw = self.depth_head([tap.to(exact) for tap in taps], grid, size)
        return InferredDepth(raw[:, 0].exp(), 1 + raw[:, 1].exp())

    def embed(
        self, grid: tuple[int, int], image: Tensor | None = None, edits: Tensor | None = None,
        on_block: OnLayer | None = None,
    ) -> Tensor:  # fmt: skip
        """H_geo of layer 0, (1 or b, n, c): queries, plus the image's features projected to their width."""
        queries = resize_queries(self.queries, grid)
        if image is None:
            return queries
        mean, std = (image.new_tensor(values)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
        patches, _ = self.image_encoder(((image - mean) / std).to(queries.dtype), on_block=on_block)
        features = self.image_proj(patches)
        if edits is not None:
            features = torch.where(edits.to(features.device)[:, None, None], features, 0.0)
        return queries.to(features) + features


class SpatialLayer(nn.Module):
    """A layer as the MLLM's, with weights of its own: RMSNorm, attention, RMSNorm, SwiGLU."""

    def __init__(self, config: SpatialTransformerConfig, *, operations, device, dtype):
        super().__init__()
        factory_kwargs = {"operations": operations, "device": device, "dtype": dtype}
        norm_kwargs = {"eps": config.norm_eps, "device": device, "dtype": dtype}
        self.input_layernorm = operations.RMSNorm(config.width, **norm_kwargs)
        self.self_attn = SpatialAttention(config, **factory_kwargs)
        self.post_attention_layernorm = operations.RMSNorm(config.width, **norm_kwargs)
        self.mlp = GatedMlp(config.width, config.ffn_width, **factory_kwargs)

    def forward(
        self, x: Tensor, keys: Tensor, values: Tensor, lengths: tuple[int, ...], table: RotaryTable
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), keys, values, lengths, table)
        return x + self.mlp(self.post_attention_layernorm(x))


class SpatialAttention(nn.Module):
    """Attn_geo = softmax(Q_geo [K_sem, K_geo]^T / sqrt(d)) [V_sem, V_geo], with grouped queries."""

    def __init__(self, config: SpatialTransformerConfig, *, operations, device, dtype):
        super().__init__()
        tensor_kwargs = {"device": device, "dtype": dtype}
        self.head_dim = config.head_dim
        inner, shared = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = operations.Linear(config.width, inner, **tensor_kwargs)
        self.k_proj = operations.Linear(config.width, shared, **tensor_kwargs)
        self.v_proj = operations.Linear(config.width, shared, **tensor_kwargs)
        self.o_proj = operations.Linear(inner, config.width, bias=False, **tensor_kwargs)

    def forward(
        self, x: Tensor, keys: Tensor, values: Tensor, lengths: tuple[int, ...], table: RotaryTable
    ) -> Tensor:
        q, k, v = (
            rearrange(project(x), "b n (h d) -> b h n d", d=self.head_dim)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate_halves(q, table), rotate_halves(k, table)
        return self.o_proj(attend_one_way(q, k, v, keys.to(q), values.to(q), lengths))


class GatedMlp(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int, hidden: int, *, operations, device, dtype):
        super().__init__()
        made = {"bias": False, "device": device, "dtype": dtype}
        self.gate_proj = operations.Linear(width, hidden, **made)
        self.up_proj = operations.Linear(width, hidden, **made)
        self.down_proj = operations.Linear(hidden, width, **made)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def plan_depth(config: SpatialTransformerConfig, size: tuple[int, int]) -> DepthPlan:
    """For an image of `size` (height, width): its longer side has as many queries as the learned grid."""
    scale = config.queries_side * config.patch / max(size)
    scaled = tuple(max(1, round(side * scale)) for side in size)
    return DepthPlan(tuple(max(1, round(side / config.patch)) for side in scaled), scaled)


def attend_one_way(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, lengths: tuple[int, ...]
) -> Tensor:
    """q (b, h, n, d) over the first `lengths` keys (b, g, s, d) of the MLLM and k (b, g, n, d): (b, n, h d).

    The queries that share a head of keys are one longer sequence of queries: without a mask that is the same.
    Rows with texts of one length run together.
    """
    # imported here: registering the op takes a quarter of the pack's import time
    from ...kernels.segment_attention import Segments, Source, segment_attention

    groups, count = k.shape[1], k.shape[2]
    q = rearrange(q, "b (g r) n d -> b g (r n) d", g=groups)
    rows_of: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        rows_of.setdefault(length, []).append(row)

    def attend_rows(rows: list[int] | slice, length: int) -> Tensor:
        segments = Segments((q.shape[2],), (Source(0, length), Source(length, count)))
        joined_k = torch.cat((keys[rows, :, :length], k[rows]), dim=2)
        joined_v = torch.cat((values[rows, :, :length], v[rows]), dim=2)
        return segment_attention(q[rows], joined_k, joined_v, segments)

    if len(rows_of) == 1:
        out = attend_rows(slice(None), lengths[0])
    else:
        order = [row for rows in rows_of.values() for row in rows]
        out = torch.cat([attend_rows(rows, length) for length, rows in rows_of.items()])
        out = out[[order.index(row) for row in range(len(order))]]
    return rearrange(out, "b g (r n) d -> b n (g r d)", n=count)


def mrope_table(
    lengths: tuple[int, ...], grid: tuple[int, int], config: SpatialTransformerConfig, like: Tensor
) -> RotaryTable:
    """Cosines and sines (b, 1, n, d/2) of M-RoPE for a grid behind texts of these lengths s.

    As of an image behind its text, position (row, column) of the grid is (s, s + row, s + column).
    """
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")
    axes = torch.stack((torch.zeros_like(rows), rows, columns)).flatten(1).double()
    starts = torch.tensor(lengths, dtype=torch.float64)
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    axis = torch.repeat_interleave(torch.arange(3), torch.tensor(config.mrope_section))
    angle = (starts[:, None, None] + axes[axis].T) / config.rope_theta**exponent
    dtype = torch.promote_types(like.dtype, torch.float32)
    return tuple(part[:, None].to(like.device, dtype) for part in (angle.cos(), angle.sin()))


def rotate_halves(x: Tensor, table: RotaryTable) -> Tensor:
    """Rotate channel pairs (i, i + d/2) of x (b, h, n, d) by their angles, in float32 at least."""
    cos, sin = table
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def resize_queries(queries: Tensor, grid: tuple[int, int]) -> Tensor:
    """A square grid of queries (1, side^2, c) at another grid (rows, columns), bilinearly: (1, n, c)."""
    side = round(queries.shape[1] ** 0.5)
    if tuple(grid) == (side, side):
        return queries
    square = rearrange(queries, "one (h w) c -> one c h w", h=side)
    resized = F.interpolate(
        square.to(torch.promote_types(queries.dtype, torch.float32)), tuple(grid), mode="bilinear",
        align_corners=False,
    )  # fmt: skip
    return rearrange(resized, "one c h w -> one (h w) c").to(queries.dtype)


class AdapterNetwork(nn.Module):
    """The depth adapter E: F = E(D), added to z_t where the denoising network reads it.

    Convolutions of stride 2 with SiLU, then one to the latent's channels, which is zero at the start, so that
    training starts at the base model.
    """

    def __init__(self, config: DepthAdapterConfig, *, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        self.config = config
        made = {"kernel_size": 3, "padding": 1, "device": device, "dtype": dtype}
        channels = (config.inputs, *config.widths)
        self.down = nn.ModuleList(
            operations.Conv2d(before, after, stride=2, **made)
            for before, after in zip(channels, channels[1:], strict=False)
        )
        self.out = operations.Conv2d(channels[-1], config.latent_channels, **made)
        if self.out.weight.device.type != "meta":
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def forward(self, coded: Tensor, mask: Tensor) -> Tensor:
        """Code and mask (b, h, w), sides multiples of the stride, to the addend (b, c, h / s, w / s)."""
        x = coded[:, None]
        if self.config.invalid == "channel":
            x = torch.cat((x, mask[:, None].to(x)), dim=1)
        for layer in self.down:
            x = F.silu(layer(x))
        addend = self.out(x)
        if self.config.invalid == "zero":
            addend = addend * F.max_pool2d(mask[:, None].to(addend), self.config.stride)
        return addend
