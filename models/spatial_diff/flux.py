"""The editor: FLUX.1 with clean reference latents beside the noisy target. Tensors in, tensors out.

Parameter names are BFL's, so that one file loads here and into ComfyUI's Flux class; Flux-Kontext is the
preset with its defaults. Letters: b batch, n tokens, h heads, d head width, c channels; `h w` only beside c.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..core.layers.attention import Attend, attend
from ..core.layers.blocks import RunBlock, run_block
from ..core.layers.modulation import modulate, timestep_embedding
from ..core.layers.positions import RotaryTable, apply_rotary, rotary_table
from ..core.padding import pad_to_patch

TIME_CHANNELS = 256  # of the sinusoidal embeddings of time and guidance
TARGET, REFERENCE = 0.0, 1.0  # first axis of the ids of target and references


@dataclass(frozen=True)
class FluxConfig:
    """All sizes and constants of one editor. Defaults: Flux-Kontext."""

    in_channels: int = 16  # of a latent, before patches
    patch_size: int = 2  # side in latent pixels of the square that one token covers
    context_in_dim: int = 4096
    vec_in_dim: int = 768  # of the pooled text embedding; 0: none
    hidden_size: int = 3072
    mlp_ratio: float = 4.0
    num_heads: int = 24
    depth: int = 19
    depth_single_blocks: int = 38
    axes_dim: tuple[int, ...] = (16, 56, 56)
    theta: int = 10000
    guidance_embed: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes_dim", tuple(self.axes_dim))
        if self.hidden_size % self.num_heads or sum(self.axes_dim) != self.hidden_size // self.num_heads:
            raise ValueError(
                f"Expected axes_dim that add up to hidden_size / num_heads, got {self.axes_dim} for "
                f"{self.hidden_size} / {self.num_heads}. Change one of them."
            )
        if len(self.axes_dim) != 3 or any(dim % 2 for dim in self.axes_dim):
            raise ValueError(f"Expected axes_dim as three even numbers, got {self.axes_dim}. Correct them.")

    @property
    def token_channels(self) -> int:
        return self.in_channels * self.patch_size**2

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    def for_core(self) -> dict[str, Any]:
        """The same network in the words of ComfyUI's FluxParams."""
        names = (
            "in_channels", "context_in_dim", "hidden_size", "mlp_ratio", "num_heads", "depth",
            "depth_single_blocks", "theta", "patch_size", "guidance_embed",
        )  # fmt: skip
        values = {name: getattr(self, name) for name in names}
        rest = {"vec_in_dim": self.vec_in_dim or None, "axes_dim": list(self.axes_dim)}
        return values | rest | {"out_channels": self.in_channels, "qkv_bias": True, "txt_ids_dims": []}


KONTEXT = FluxConfig()

PRESETS: Mapping[str, FluxConfig] = MappingProxyType(
    {
        "kontext": KONTEXT,
        # the tiny codec's latents at 128 px, a token each
        "tiny": replace(
            KONTEXT, in_channels=32, patch_size=1, context_in_dim=128, vec_in_dim=0, hidden_size=160,
            num_heads=5, depth=1, depth_single_blocks=5, axes_dim=(8, 12, 12), theta=100,
            guidance_embed=False,
        ),
    }
)  # fmt: skip


class ExtraTokens(NamedTuple):
    """Tokens that join the image stream behind target and references."""

    tokens: Tensor  # (b, n, hidden_size)
    ids: Tensor  # (n, 3) float32


class FluxOutput(NamedTuple):
    """The network's output."""

    velocity: Tensor  # (b, c, h, w)
    rows: Tensor | None  # of the extra tokens after the last block, (b, n, hidden_size)


class Flux(nn.Module):
    """Noisy latent, text and clean reference latents -> velocity of the target."""

    def __init__(self, config: FluxConfig, *, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        self.config = config
        factory = {"operations": operations, "device": device, "dtype": dtype}
        linear = {"device": device, "dtype": dtype}
        width = config.hidden_size
        self.img_in = operations.Linear(config.token_channels, width, **linear)
        self.txt_in = operations.Linear(config.context_in_dim, width, **linear)
        self.time_in = FluxEmbedder(TIME_CHANNELS, width, **factory)
        self.vector_in = FluxEmbedder(config.vec_in_dim, width, **factory) if config.vec_in_dim else None
        self.guidance_in = FluxEmbedder(TIME_CHANNELS, width, **factory) if config.guidance_embed else None
        self.double_blocks = nn.ModuleList(FluxDoubleBlock(config, **factory) for _ in range(config.depth))
        self.single_blocks = nn.ModuleList(
            FluxSingleBlock(config, **factory) for _ in range(config.depth_single_blocks)
        )
        self.final_layer = FluxFinalLayer(width, config.token_channels, **factory)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor,
        references: Sequence[Tensor] = (),
        *,
        pooled: Tensor | None = None,
        guidance: Tensor | None = None,
        extra: ExtraTokens | None = None,
        attend: Attend = attend,
        run: RunBlock = run_block,
    ) -> FluxOutput:
        """x (b, c, h, w), t (b,), context (b, n, c), references (b, c, h', w') each, pooled (b, c), guidance
        (b,)."""
        size, patch = x.shape[-2:], self.config.patch_size
        latents = [pad_to_patch(each, patch) for each in (x, *references)]
        grids = [(each.shape[-2] // patch, each.shape[-1] // patch) for each in latents]
        count = grids[0][0] * grids[0][1]

        img = self.img_in(torch.cat([patchify(each, patch) for each in latents], dim=1))
        ids = sequence_ids([each.shape[-2:] for each in (x, *references)], patch, device=x.device)
        if extra is not None:
            img, ids = torch.cat((img, extra.tokens.to(img)), dim=1), torch.cat((ids, extra.ids.to(ids)))
        txt, vec = self.txt_in(context), self.embed_vector(t, pooled, guidance, x)
        table = rotary_table(
            torch.cat((ids.new_zeros(txt.shape[1], 3), ids)), self.config.axes_dim, self.config.theta
        )

        for block in self.double_blocks:
            img, txt = run(block, img, txt, vec, table, attend)
        joint = torch.cat((txt, img), dim=1)
        for block in self.single_blocks:
            joint = run(block, joint, vec, table, attend)
        img = joint[:, txt.shape[1] :]

        out = unpatchify(self.final_layer(img[:, :count], vec), grids[0], patch)
        rows = None if extra is None else img[:, -extra.tokens.shape[1] :]
        return FluxOutput(out[..., : size[0], : size[1]], rows)

    def embed_vector(self, t: Tensor, pooled: Tensor | None, guidance: Tensor | None, like: Tensor) -> Tensor:
        """The vector (b, c) that modulates every block."""
        vec = self.time_in(embed_number(t, like))
        if self.guidance_in is not None:
            if guidance is None:
                raise ValueError("Expected a guidance for a network with guidance_embed, got none. Give one.")
            vec = vec + self.guidance_in(embed_number(guidance, like))
        if self.vector_in is not None:
            pooled = like.new_zeros(len(like), self.config.vec_in_dim) if pooled is None else pooled
            vec = vec + self.vector_in(pooled)
        return vec


class FluxDoubleBlock(nn.Module):
    """Image and text stream with weights of their own, and one attention over both."""

    def __init__(self, config: FluxConfig, *, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        factory = {"operations": operations, "device": device, "dtype": dtype}
        width, hidden = config.hidden_size, int(config.hidden_size * config.mlp_ratio)
        for name in ("img", "txt"):
            self.add_module(f"{name}_mod", FluxModulation(width, 6, **factory))
            self.add_module(f"{name}_attn", FluxAttention(width, config.num_heads, **factory))
            self.add_module(f"{name}_mlp", flux_mlp(width, hidden, **factory))

    def forward(
        self, img: Tensor, txt: Tensor, vec: Tensor, table: RotaryTable, attend: Attend
    ) -> tuple[Tensor, Tensor]:
        img_mod, txt_mod = self.img_mod(vec), self.txt_mod(vec)
        img_heads = self.img_attn.heads(modulate(img, img_mod[0], 1 + img_mod[1]))
        txt_heads = self.txt_attn.heads(modulate(txt, txt_mod[0], 1 + txt_mod[1]))
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(txt_heads, img_heads, strict=True))
        mixed = attend(apply_rotary(q, table), apply_rotary(k, table), v)
        txt_mixed, img_mixed = mixed[:, : txt.shape[1]], mixed[:, txt.shape[1] :]

        img = torch.addcmul(img, img_mod[2], self.img_attn.proj(img_mixed))
        img = torch.addcmul(img, img_mod[5], self.img_mlp(modulate(img, img_mod[3], 1 + img_mod[4])))
        txt = torch.addcmul(txt, txt_mod[2], self.txt_attn.proj(txt_mixed))
        txt = torch.addcmul(txt, txt_mod[5], self.txt_mlp(modulate(txt, txt_mod[3], 1 + txt_mod[4])))
        return img, txt


class FluxSingleBlock(nn.Module):
    """Attention and MLP side by side from one norm: x += gate * linear2([attention | mlp])."""

    def __init__(self, config: FluxConfig, *, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        width, hidden = config.hidden_size, int(config.hidden_size * config.mlp_ratio)
        self.num_heads, self.widths = config.num_heads, (3 * width, hidden)
        self.linear1 = operations.Linear(width, 3 * width + hidden, device=device, dtype=dtype)
        self.linear2 = operations.Linear(width + hidden, width, device=device, dtype=dtype)
        self.norm = FluxNorm(config.head_dim, device=device, dtype=dtype)
        self.modulation = FluxModulation(width, 3, operations=operations, device=device, dtype=dtype)

    def forward(self, x: Tensor, vec: Tensor, table: RotaryTable, attend: Attend) -> Tensor:
        shift, scale, gate = self.modulation(vec)
        qkv, hidden = self.linear1(modulate(x, shift, 1 + scale)).split(self.widths, dim=-1)
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        q, k = self.norm(q, k)
        mixed = attend(apply_rotary(q, table), apply_rotary(k, table), v)
        out = self.linear2(torch.cat((mixed, F.gelu(hidden, approximate="tanh")), dim=-1))
        return torch.addcmul(x, gate, out)


class FluxAttention(nn.Module):
    """The weights of one stream in the joint attention."""

    def __init__(self, width: int, num_heads: int, *, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = operations.Linear(width, 3 * width, device=device, dtype=dtype)
        self.norm = FluxNorm(width // num_heads, device=device, dtype=dtype)
        self.proj = operations.Linear(width, width, device=device, dtype=dtype)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (b, n, c) -> normalized q, k and plain v, each (b, h, n, d)."""
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        return *self.norm(q, k), v


class FluxNorm(nn.Module):
    """RMS norms of queries and keys over the head width."""

    def __init__(self, dim: int, *, device=None, dtype=None):
        super().__init__()
        self.query_norm = FluxScale(dim, device=device, dtype=dtype)
        self.key_norm = FluxScale(dim, device=device, dtype=dtype)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.query_norm(q), self.key_norm(k)


class FluxScale(nn.Module):
    """x / rms(x) in float32, back to x's dtype, times a learned scale."""

    def __init__(self, dim: int, *, device=None, dtype=None):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], eps=1e-6).to(x.dtype) * self.scale.to(x)


class FluxModulation(nn.Module):
    """vec (b, c) -> `count` vectors (b, 1, c): shift, scale and gate, once or twice."""

    def __init__(self, width: int, count: int, *, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        self.count = count
        self.lin = operations.Linear(width, count * width, device=device, dtype=dtype)

    def forward(self, vec: Tensor) -> tuple[Tensor, ...]:
        return self.lin(F.silu(vec))[:, None].chunk(self.count, dim=-1)


class FluxEmbedder(nn.Module):
    """Two linear layers with SiLU between: an embedding -> vec."""

    def __init__(self, channels: int, width: int, *, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        self.in_layer = operations.Linear(channels, width, device=device, dtype=dtype)
        self.out_layer = operations.Linear(width, width, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_layer(F.silu(self.in_layer(x)))


class FluxFinalLayer(nn.Module):
    """Modulated norm and projection out of the network (shift first, then scale)."""

    def __init__(self, width: int, channels: int, *, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        self.linear = operations.Linear(width, channels, device=device, dtype=dtype)
        self.adaLN_modulation = nn.Sequential(
            nn.SiLU(), operations.Linear(width, 2 * width, device=device, dtype=dtype)
        )

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(vec)[:, None].chunk(2, dim=-1)
        return self.linear(modulate(x, shift, 1 + scale))


def flux_mlp(width: int, hidden: int, *, operations, device, dtype) -> nn.Sequential:
    kwargs = {"device": device, "dtype": dtype}
    return nn.Sequential(
        operations.Linear(width, hidden, **kwargs),
        nn.GELU("tanh"),
        operations.Linear(hidden, width, **kwargs),
    )


def embed_number(values: Tensor, like: Tensor) -> Tensor:
    """Sinusoidal embedding (b, TIME_CHANNELS) of timesteps or guidances, computed in float32."""
    return timestep_embedding(values, TIME_CHANNELS, dtype=torch.float32).to(like)


def sequence_ids(
    sizes: Sequence[Sequence[int]], patch: int, *, device: torch.device | None = None
) -> Tensor:
    """Ids (n, 3) of target and references of these sizes (h, w) in latent pixels, each (set, row, column).

    The target's grid comes first; references lie beside each other, down or across, whichever is shorter, as
    ComfyUI's method "offset" has it.
    """
    grids = [tuple(-(-side // patch) for side in size) for size in sizes]
    ids, height, width = [grid_ids(TARGET, grids[0], device=device)], 0, 0
    for (rows, columns), grid in zip(sizes[1:], grids[1:], strict=True):
        down, across = (0, width) if rows + height > columns + width else (height, 0)
        starts = [(side + patch // 2) // patch for side in (down, across)]
        ids.append(grid_ids(REFERENCE, grid, *starts, device=device))
        height, width = max(height, rows + down), max(width, columns + across)
    return torch.cat(ids)


def grid_ids(
    first: float, grid: tuple[int, int], down: int = 0, across: int = 0, device: torch.device | None = None
) -> Tensor:
    """Ids (h w, 3) float32 of a row-major grid whose first token is at (down, across)."""
    down_to, across_to = down + grid[0], across + grid[1]
    rows, columns = torch.meshgrid(
        torch.arange(down, down_to, device=device), torch.arange(across, across_to, device=device),
        indexing="ij",
    )  # fmt: skip
    ids = torch.stack((torch.full_like(rows, int(first)), rows, columns), dim=-1)
    return rearrange(ids, "h w axes -> (h w) axes").float()


def patchify(latent: Tensor, patch: int) -> Tensor:
    return rearrange(latent, "b c (h ph) (w pw) -> b (h w) (c ph pw)", ph=patch, pw=patch)


def unpatchify(tokens: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    return rearrange(
        tokens, "b (h w) (c ph pw) -> b c (h ph) (w pw)", h=grid[0], w=grid[1], ph=patch, pw=patch
    )
