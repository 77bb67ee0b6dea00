"""OmniGen2 for training: noisy latent, text features and clean reference latents -> velocity.

Parameter names are the release's, so that one file loads here and into ComfyUI's class. Conventions are the
house's, as core calls that class: t = 1 noise, t = 0 clean, velocity = noise - x0. Inside, the network reads
1 - t and predicts the negative. Letters: b batch, n tokens, h heads, d head width, c channels; `h w` only
beside c.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from ..core.layers.attention import attend
from ..core.layers.blocks import RunBlock, run_block
from ..core.layers.positions import RotaryTable, apply_rotary
from ..core.padding import pad_to_patch

TIME_FREQUENCIES = 128  # of the sinusoidal embedding, whose angles are TIME_SCALE * frequency * (1 - t)
TIME_SCALE, TIME_PERIOD = 1000.0, 10000.0
MOST_TIME_CHANNELS = 1024
EPS, OUT_EPS = 1e-5, 1e-6
# paths of the layers that a LoRA trains: every block's attention
LORA_PATHS = re.compile(
    r"(layers|noise_refiner|ref_image_refiner|context_refiner)\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0)"
)


@dataclass(frozen=True)
class OmniGen2Config:
    """All sizes of one network. Defaults: the release."""

    in_channels: int = 16  # of a latent, before patches
    patch_size: int = 2  # side in latent pixels of the square that one token covers
    context_in_dim: int = 2048  # of the language model's last hidden states
    hidden_size: int = 2520
    mlp_hidden: int = 10240
    num_heads: int = 21
    num_kv_heads: int = 7
    depth: int = 32
    depth_refiner: int = 2  # blocks for each of text, references and noisy image before they join
    axes_dim: tuple[int, ...] = (40, 40, 40)
    theta: int = 10000
    most_references: int = 5

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes_dim", tuple(self.axes_dim))
        if self.hidden_size % self.num_heads or self.num_heads % self.num_kv_heads:
            raise ValueError(
                "Expected a hidden_size divisible by num_heads, and num_heads by num_kv_heads, got "
                f"{self.hidden_size}, {self.num_heads} and {self.num_kv_heads}. Change one of them."
            )
        if len(self.axes_dim) != 3 or any(dim % 2 for dim in self.axes_dim):
            raise ValueError(f"Expected axes_dim as three even numbers, got {self.axes_dim}. Correct them.")
        if sum(self.axes_dim) != self.head_dim:
            raise ValueError(
                f"Expected axes_dim that add up to hidden_size / num_heads, got {self.axes_dim} for "
                f"{self.hidden_size} / {self.num_heads}. Change one of them."
            )

    @property
    def token_channels(self) -> int:
        return self.in_channels * self.patch_size**2

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def time_channels(self) -> int:
        """Channels of the vector that modulates every block."""
        return min(self.hidden_size, MOST_TIME_CHANNELS)

    def for_core(self) -> dict[str, Any]:
        """The same network in the words of ComfyUI's class."""
        return {
            "patch_size": self.patch_size, "in_channels": self.in_channels, "hidden_size": self.hidden_size,
            "num_layers": self.depth, "num_refiner_layers": self.depth_refiner,
            "num_attention_heads": self.num_heads, "num_kv_heads": self.num_kv_heads,
            # core rounds four times the width up to a multiple of this
            "multiple_of": self.mlp_hidden, "norm_eps": EPS, "axes_dim_rope": self.axes_dim,
            "text_feat_dim": self.context_in_dim, "timestep_scale": TIME_SCALE,
        }  # fmt: skip


RELEASED = OmniGen2Config()

PRESETS: Mapping[str, OmniGen2Config] = MappingProxyType(
    {
        "omnigen2": RELEASED,
        # the smallest that has every part: grouped keys, both kinds of blocks, three axes
        "tiny": replace(
            RELEASED, context_in_dim=48, hidden_size=96, mlp_hidden=384, num_heads=4, num_kv_heads=2,
            depth=2, depth_refiner=1, axes_dim=(8, 8, 8),
        ),
    }
)  # fmt: skip


class OmniGen2(nn.Module):
    """Text, references and noisy image are refined by blocks of their own, then attend to each other."""

    def __init__(self, config: OmniGen2Config, *, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        self.config = config
        kwargs = {"device": device, "dtype": dtype}
        factory = {"operations": operations, **kwargs}
        width, channels = config.hidden_size, config.token_channels
        self.x_embedder = operations.Linear(channels, width, **kwargs)
        self.ref_image_patch_embedder = operations.Linear(channels, width, **kwargs)
        self.image_index_embedding = nn.Parameter(torch.zeros(config.most_references, width, **kwargs))
        self.time_caption_embed = OmniGen2Embedders(config, **factory)
        for name in ("noise_refiner", "ref_image_refiner"):
            blocks = (OmniGen2Block(config, **factory) for _ in range(config.depth_refiner))
            self.add_module(name, nn.ModuleList(blocks))
        self.context_refiner = nn.ModuleList(
            OmniGen2Block(config, modulated=False, **factory) for _ in range(config.depth_refiner)
        )
        self.layers = nn.ModuleList(OmniGen2Block(config, **factory) for _ in range(config.depth))
        self.norm_out = OmniGen2FinalLayer(config, **factory)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor,
        references: Sequence[Tensor] = (),
        *,
        mask: Tensor | None = None,
        run: RunBlock = run_block,
    ) -> Tensor:
        """x (b, c, h, w), t (b,), context (b, n, c), references (b, c, h', w') each -> velocity (b, c, h, w).

        `mask` (b, n) is nonzero at a prompt's own tokens, which come first; the others are not attended to.
        """
        patch = self.config.patch_size
        images = [pad_to_patch(each, patch) for each in (*references, x)]
        grids = [(each.shape[-2] // patch, each.shape[-1] // patch) for each in images]
        *refs, img = (patchify_rows(each, patch) for each in images)
        vec, txt = self.time_caption_embed(t, context)

        # positions follow each prompt's own length; True where attention may look
        lengths = None if mask is None else mask.bool().sum(dim=1)
        table = self.make_table(txt.shape[1], lengths, grids, x.device)
        counts = txt.shape[1], sum(each.shape[1] for each in refs), img.shape[1]
        txt_table, ref_table, img_table = split_table(table, counts)
        txt_mask = joint_mask = None
        if mask is not None:
            txt_mask = rearrange(mask.bool(), "b n -> b 1 1 n")
            joint_mask = F.pad(txt_mask, (0, counts[1] + counts[2]), value=True)

        # each stream by itself
        for block in self.context_refiner:
            txt = run(block, txt, None, txt_table, txt_mask)
        img = self.x_embedder(img)
        for block in self.noise_refiner:
            img = run(block, img, vec, img_table, None)
        streams = [txt, img]
        if refs:
            ref = self.embed_references(refs)
            for block in self.ref_image_refiner:
                ref = run(block, ref, vec, ref_table, None)
            streams.insert(1, ref)

        # all of them together
        joint = torch.cat(streams, dim=1)
        for block in self.layers:
            joint = run(block, joint, vec, table, joint_mask)
        out = self.norm_out(joint[:, -counts[2] :], vec)
        out = rearrange(
            out, "b (h w) (ph pw c) -> b c (h ph) (w pw)", h=grids[-1][0], ph=patch, pw=patch
        )
        return -out[..., : x.shape[-2], : x.shape[-1]]

    def embed_references(self, refs: Sequence[Tensor]) -> Tensor:
        """Tokens (b, n, c) of each reference, marked with its number, one reference behind the other."""
        most = self.config.most_references
        if len(refs) > most:
            raise ValueError(f"Expected at most {most} references, got {len(refs)}. Remove some.")
        numbered = zip(refs, self.image_index_embedding, strict=False)
        return torch.cat([self.ref_image_patch_embedder(each) + index for each, index in numbered], dim=1)

    def make_table(
        self, text: int, lengths: Tensor | None, grids: Sequence[tuple[int, int]], device: torch.device
    ) -> RotaryTable:
        """Cosines and sines (b or 1, 1, n, d / 2) of text, references and image."""
        seen = image_positions(grids).to(device)
        starts = torch.tensor([text], device=device) if lengths is None else lengths
        first = rearrange(seen[:, 0], "n -> 1 n") + rearrange(starts, "b -> b 1")
        seen = torch.stack((first, *(seen[:, axis].expand_as(first) for axis in (1, 2))), dim=-1)
        words = repeat(torch.arange(text, device=device), "n -> b n axes", b=len(starts), axes=3)
        positions = torch.cat((words, seen), dim=1)
        return position_table(positions, self.config.axes_dim, self.config.theta)


class OmniGen2Embedders(nn.Module):
    """Time and text features to the widths of the blocks."""

    def __init__(self, config: OmniGen2Config, *, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        kwargs = {"device": device, "dtype": dtype}
        time, text = config.time_channels, config.context_in_dim
        self.timestep_embedder = nn.ModuleDict(
            {
                "linear_1": operations.Linear(2 * TIME_FREQUENCIES, time, **kwargs),
                "linear_2": operations.Linear(time, time, **kwargs),
            }
        )
        self.caption_embedder = nn.Sequential(
            operations.RMSNorm(text, eps=EPS, **kwargs),
            operations.Linear(text, config.hidden_size, **kwargs),
        )

    def forward(self, t: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """vec (b, c) and text tokens (b, n, c)."""
        hidden = self.timestep_embedder["linear_1"](embed_clean_time(t).to(context))
        return self.timestep_embedder["linear_2"](F.silu(hidden)), self.caption_embedder(context)


class OmniGen2Block(nn.Module):
    """x += gate * norm(attention(scale * norm(x))), then the same with the MLP; gates are tanh of vec's."""

    def __init__(
        self, config: OmniGen2Config, *, modulated: bool = True, operations=torch.nn, device=None, dtype=None
    ):
        super().__init__()
        factory = {"operations": operations, "device": device, "dtype": dtype}
        norm = {"eps": EPS, "device": device, "dtype": dtype}
        width = config.hidden_size
        self.attn = OmniGen2Attention(config, **factory)
        self.feed_forward = OmniGen2Mlp(width, config.mlp_hidden, **factory)
        self.norm1 = (
            OmniGen2Modulation(config, **factory) if modulated else operations.RMSNorm(width, **norm)
        )
        for name in ("norm2", "ffn_norm1", "ffn_norm2"):
            self.add_module(name, operations.RMSNorm(width, **norm))

    def forward(self, x: Tensor, vec: Tensor | None, table: RotaryTable, mask: Tensor | None) -> Tensor:
        scales, gates = ((1.0, 1.0), (1.0, 1.0)) if vec is None else self.norm1.project(vec)
        mixed = self.attn(scales[0] * self.norm1(x), table, mask)
        x = x + gates[0] * self.norm2(mixed)
        hidden = self.feed_forward(scales[1] * self.ffn_norm1(x))
        return x + gates[1] * self.ffn_norm2(hidden)


class OmniGen2Modulation(nn.Module):
    """The first norm of a block, and what modulates the block."""

    def __init__(self, config: OmniGen2Config, *, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        kwargs = {"device": device, "dtype": dtype}
        self.linear = operations.Linear(config.time_channels, 4 * config.hidden_size, **kwargs)
        self.norm = operations.RMSNorm(config.hidden_size, eps=EPS, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)

    def project(self, vec: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Scales of attention and MLP, then their gates, each (b, 1, c)."""
        values = rearrange(self.linear(F.silu(vec)), "b (mlp gate c) -> mlp gate b 1 c", mlp=2, gate=2)
        return (1 + values[0, 0], 1 + values[1, 0]), (values[0, 1].tanh(), values[1, 1].tanh())


class OmniGen2Attention(nn.Module):
    """Grouped-query attention with RMS norms of queries and keys over the head width."""

    def __init__(self, config: OmniGen2Config, *, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        kwargs = {"device": device, "dtype": dtype}
        self.groups = config.num_heads // config.num_kv_heads
        self.head_dim = config.head_dim
        width, kv_width = config.hidden_size, config.num_kv_heads * config.head_dim
        for name, outputs in (("to_q", width), ("to_k", kv_width), ("to_v", kv_width)):
            self.add_module(name, operations.Linear(width, outputs, bias=False, **kwargs))
        for name in ("norm_q", "norm_k"):
            self.add_module(name, operations.RMSNorm(config.head_dim, eps=EPS, **kwargs))
        self.to_out = nn.ModuleList([operations.Linear(width, width, bias=False, **kwargs)])

    def forward(self, x: Tensor, table: RotaryTable, mask: Tensor | None) -> Tensor:
        q, k, v = (
            rearrange(project(x), "b n (h d) -> b h n d", d=self.head_dim)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        q, k = apply_rotary(self.norm_q(q), table), apply_rotary(self.norm_k(k), table)
        # each key head serves the queries of its group
        k, v = (repeat(each, "b h n d -> b (h group) n d", group=self.groups) for each in (k, v))
        return self.to_out[0](attend(q, k, v, mask))


class OmniGen2Mlp(nn.Module):
    """SwiGLU: linear_2(silu(linear_1(x)) * linear_3(x))."""

    def __init__(self, width: int, hidden: int, *, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        for name, sizes in (
            ("linear_1", (width, hidden)), ("linear_2", (hidden, width)), ("linear_3", (width, hidden))
        ):  # fmt: skip
            self.add_module(name, operations.Linear(*sizes, bias=False, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)) * self.linear_3(x))


class OmniGen2FinalLayer(nn.Module):
    """LayerNorm, scaled by vec's projection, and the projection to a patch's channels."""

    def __init__(self, config: OmniGen2Config, *, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        kwargs = {"device": device, "dtype": dtype}
        self.linear_1 = operations.Linear(config.time_channels, config.hidden_size, **kwargs)
        self.linear_2 = operations.Linear(config.hidden_size, config.token_channels, **kwargs)

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        scale = 1 + rearrange(self.linear_1(F.silu(vec)), "b c -> b 1 c")
        return self.linear_2(scale * F.layer_norm(x, x.shape[-1:], eps=OUT_EPS))


def embed_clean_time(t: Tensor) -> Tensor:
    """Cosines, then sines, of TIME_SCALE * ((1 - t) * frequency): t (b,) -> (b, 2 TIME_FREQUENCIES), float32.

    The factor comes last, as in the release: float32 rounds angles of up to 1000 visibly.
    """
    steps = torch.arange(TIME_FREQUENCIES, dtype=torch.float32, device=t.device)
    frequency = torch.exp(-math.log(TIME_PERIOD) * steps / TIME_FREQUENCIES)
    angle = TIME_SCALE * (rearrange(1.0 - t.float(), "b -> b 1") * frequency)
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


def image_positions(grids: Sequence[tuple[int, int]]) -> Tensor:
    """Positions (n, 3) of references and image behind a text of length 0, each (start, row, column).

    The first axis starts at 0 and goes on behind each image by its longer side, in tokens.
    """
    start, parts = 0, []
    for rows, columns in grids:
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        grid = torch.stack((torch.full_like(row, start), row, column), dim=-1)
        parts.append(rearrange(grid, "h w axes -> (h w) axes"))
        start += max(rows, columns)
    return torch.cat(parts)


def position_table(positions: Tensor, axes_dim: Sequence[int], theta: float) -> RotaryTable:
    """Cosines and sines (b, 1, n, d / 2) in float32 of positions (b, n, axes); angles in float64."""
    angles = []
    for axis, dim in enumerate(axes_dim):
        exponent = torch.arange(0, dim, 2, dtype=torch.float64) / dim
        frequency = (1.0 / theta**exponent).to(positions.device)
        angles.append(rearrange(positions[..., axis], "b n -> b 1 n 1") * frequency)
    angle = torch.cat(angles, dim=-1)
    return angle.cos().float(), angle.sin().float()


def split_table(table: RotaryTable, tokens: Sequence[int]) -> list[RotaryTable]:
    """The tables of consecutive parts of a sequence."""
    return list(zip(*(part.split(tokens, dim=2) for part in table), strict=True))


def patchify_rows(latent: Tensor, patch: int) -> Tensor:
    """(b, c, h, w) to tokens (b, n, c), whose channels are ordered row, column, latent channel."""
    return rearrange(latent, "b c (h ph) (w pw) -> b (h w) (ph pw c)", ph=patch, pw=patch)
