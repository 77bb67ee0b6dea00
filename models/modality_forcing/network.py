"""The Modality Forcing network: FLUX.2 with a third, depth, stream. Tensors in, tensors out.

Parameter names are the released ones without their `dit.` prefix. No biases; layer norms have no parameters.
Letters: b batch, n tokens, h heads, d head width, c channels; `h w` only beside c.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..core.layers.attention import Attend, attend
from ..core.layers.modulation import (
    Modulation,
    ModulationProjection,
    TimeEmbedder,
    modulate,
    stack_modulation,
    timestep_embedding,
)
from ..core.layers.positions import RotaryTable, apply_rotary, kept_joint_table
from .config import ModalityForcingConfig

STREAMS = ("txt", "img", "depth")  # their order in every joint attention


class ModalityForcing(nn.Module):
    """Noisy image latent and noisy depth, each with its own timestep -> image velocity and clean depth x0."""

    def __init__(self, config: ModalityForcingConfig, *, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        self.config = config
        factory_kwargs = {"operations": operations, "device": device, "dtype": dtype}
        linear = {"bias": False, "device": device, "dtype": dtype}
        width = config.hidden_size

        self.img_in = operations.Linear(config.in_channels, width, **linear)
        self.txt_in = operations.Linear(config.context_in_dim, width, **linear)
        self.depth_in = operations.Linear(config.depth_channels, width, **linear)
        self.time_in = TimeEmbedder(config.time_embed_dim, width, **factory_kwargs)
        self.time_in_depth = TimeEmbedder(config.time_embed_dim, width, **factory_kwargs)
        self.time_in_depth_to_img = TimeEmbedder(config.time_embed_dim, width, **factory_kwargs)
        self.time_in_rgb_to_depth = TimeEmbedder(config.time_embed_dim, width, **factory_kwargs)
        self.cross_alpha_img = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))
        self.cross_alpha_depth = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))

        self.double_stream_modulation_img = ModulationProjection(width, 2, **factory_kwargs)
        self.double_stream_modulation_txt = ModulationProjection(width, 2, **factory_kwargs)
        self.double_stream_modulation_depth = ModulationProjection(width, 2, **factory_kwargs)
        self.single_stream_modulation = ModulationProjection(width, 1, **factory_kwargs)
        self.single_stream_modulation_depth = ModulationProjection(width, 1, **factory_kwargs)
        self.depth_decoder_modulation = ModulationProjection(width, 1, **factory_kwargs)

        self.double_blocks = nn.ModuleList(
            TripleStreamBlock(config, **factory_kwargs) for _ in range(config.num_double_blocks)
        )
        self.single_blocks = nn.ModuleList(
            SingleStreamBlock(config, **factory_kwargs) for _ in range(config.num_single_blocks)
        )
        self.depth_decoder_blocks = nn.ModuleList(
            SingleStreamBlock(config, **factory_kwargs) for _ in range(config.num_depth_decoder_blocks)
        )

        self.final_layer = FinalLayer(width, config.in_channels, **factory_kwargs)
        # float32 regardless of the body: a bfloat16 head shows as bands in the depth
        self.depth_final_layer = make_depth_head(
            config, **factory_kwargs | {"dtype": dtype and torch.float32}
        )

    def forward(
        self,
        img: Tensor,
        depth: Tensor,
        context: Tensor,
        t_rgb: Tensor,
        t_depth: Tensor,
        *,
        attend: Attend = attend,
        time_dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Velocity of img (b, c, h, w) and clean depth x0 (b, 1, p h, p w).

        img is the image latent, depth (b, 1, p h, p w) is in network space, context (b, n, c), both timesteps
        (b,). The body computes in img's dtype; the depth returns in float32. `time_dtype` is the precision of
        the timestep embedding, by default the body's as in the release.
        """
        grid, tokens = tuple(img.shape[-2:]), img.shape[-2] * img.shape[-1]
        self.check_inputs(img, depth, context)
        img_vec, depth_vec = self.time_vectors(t_rgb, t_depth, img.dtype, time_dtype or img.dtype)
        table = self.rotary(context.shape[1], grid, depth=True, device=img.device)

        streams = {
            "txt": self.txt_in(context.to(img.dtype)),
            "img": self.img_in(latent_to_tokens(img)),
            "depth": self.depth_in(depth_to_tokens(depth.to(img.dtype), self.config.depth_patch)),
        }
        streams = self.run_double_blocks(streams, img_vec, depth_vec, table, attend)

        (image_rows,) = self.single_stream_modulation(img_vec)
        (depth_rows,) = self.single_stream_modulation_depth(depth_vec)
        rows = stack_modulation([(image_rows, context.shape[1] + tokens), (depth_rows, tokens)])
        x = torch.cat([streams[name] for name in STREAMS], dim=1)
        img_x, depth_x = self.run_single_blocks(x, context.shape[1], rows, table, attend).chunk(2, dim=1)
        (decoder_rows,) = self.depth_decoder_modulation(depth_vec)
        depth_table = tuple(angles[-tokens:] for angles in table)
        for block in self.depth_decoder_blocks:
            depth_x = block(depth_x, decoder_rows, depth_table, attend)

        velocity = tokens_to_latent(self.final_layer(img_x, img_vec), grid)
        x0 = self.depth_final_layer(depth_x.float(), depth_vec.float(), grid)
        return velocity, tokens_to_depth(x0, grid, self.config.depth_patch)

    def forward_image(
        self,
        img: Tensor,
        context: Tensor,
        t_rgb: Tensor,
        *,
        attend: Attend = attend,
        time_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """The text-to-image network alone, without depth tokens and timestep -> velocity (b, c, h, w)."""
        grid, text = tuple(img.shape[-2:]), context.shape[1]
        vec = self.time_in(self.embed_time(t_rgb, img.dtype, time_dtype or img.dtype))
        table = self.rotary(text, grid, depth=False, device=img.device)
        streams = {"txt": self.txt_in(context.to(img.dtype)), "img": self.img_in(latent_to_tokens(img))}
        streams = self.run_double_blocks(streams, vec, None, table, attend)
        (rows,) = self.single_stream_modulation(vec)
        x = torch.cat([streams["txt"], streams["img"]], dim=1)
        x = self.run_single_blocks(x, text, rows, table, attend)
        return tokens_to_latent(self.final_layer(x, vec), grid)

    def time_vectors(
        self, t_rgb: Tensor, t_depth: Tensor, dtype: torch.dtype, time_dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Each stream's vec (b, c): its own timestep, plus alpha times the other stream's."""
        rgb, depth = self.embed_time(t_rgb, dtype, time_dtype), self.embed_time(t_depth, dtype, time_dtype)
        img_vec = self.time_in(rgb) + self.cross_alpha_img.to(rgb) * self.time_in_depth_to_img(depth)
        from_rgb = self.cross_alpha_depth.to(rgb) * self.time_in_rgb_to_depth(rgb)
        depth_vec = self.time_in_depth(depth) + from_rgb
        return img_vec, depth_vec

    def embed_time(self, t: Tensor, dtype: torch.dtype, time_dtype: torch.dtype) -> Tensor:
        c = self.config
        kwargs = {"dtype": time_dtype, "max_period": c.time_max_period, "time_factor": c.time_factor}
        return timestep_embedding(t, c.time_embed_dim, **kwargs).to(dtype)

    def rotary(self, text: int, grid: tuple[int, int], *, depth: bool, device: torch.device) -> RotaryTable:
        return kept_joint_table(tuple(self.config.axes_dim), self.config.theta, text, grid, depth, device)

    def run_single_blocks(
        self, x: Tensor, text: int, rows: Modulation, table: RotaryTable, attend: Attend
    ) -> Tensor:
        """x (b, n, c) -> (b, n - text, c). In inference the last block computes only k and v of the text."""
        *blocks, last = self.single_blocks
        for block in blocks:
            x = block(x, rows, table, attend)
        trains = torch.is_grad_enabled()  # a loss may read the last block's output
        return last(x, rows, table, attend)[:, text:] if trains else last(x, rows, table, attend, skip=text)

    def run_double_blocks(
        self,
        streams: dict[str, Tensor],
        img_vec: Tensor,
        depth_vec: Tensor | None,
        table: RotaryTable,
        attend: Attend,
    ) -> dict[str, Tensor]:
        """All double blocks over `streams`; text tokens are modulated by the image's timestep."""
        mods = {
            "txt": self.double_stream_modulation_txt(img_vec),
            "img": self.double_stream_modulation_img(img_vec),
        }
        if depth_vec is not None:
            mods["depth"] = self.double_stream_modulation_depth(depth_vec)
        for block in self.double_blocks:
            streams = block(streams, mods, table, attend)
        return streams

    def check_inputs(self, img: Tensor, depth: Tensor, context: Tensor) -> None:
        c, (b, _, h, w) = self.config, img.shape
        expected = (
            (b, c.in_channels, h, w),
            (b, 1, h * c.depth_patch, w * c.depth_patch),
            (b, context.shape[1], c.context_in_dim),
        )
        got = tuple(tuple(x.shape) for x in (img, depth, context))
        if got != expected:
            raise ValueError(
                f"Expected image latent, depth and context of shapes {expected}, got {got}. Give matching "
                "inputs."
            )


class TripleStreamBlock(nn.Module):
    """A FLUX.2 double block with a third stream: weights per stream, one attention over all tokens."""

    def __init__(self, config: ModalityForcingConfig, *, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        factory_kwargs = {"operations": operations, "device": device, "dtype": dtype}
        for name in STREAMS:
            self.add_module(
                f"{name}_attn", StreamAttention(config.hidden_size, config.num_heads, **factory_kwargs)
            )
            self.add_module(f"{name}_mlp", gated_mlp(config.hidden_size, config.mlp_hidden, **factory_kwargs))

    def forward(
        self,
        streams: dict[str, Tensor],
        mods: Mapping[str, tuple[Modulation, ...]],
        table: RotaryTable,
        attend: Attend,
    ) -> dict[str, Tensor]:
        attns = [getattr(self, f"{name}_attn") for name in streams]
        heads = [
            attn.heads(modulate(x, *mods[name][0][:2]))
            for attn, (name, x) in zip(attns, streams.items(), strict=True)
        ]
        q, k, v = (torch.cat(parts, dim=1) for parts in zip(*heads, strict=True))
        mixed = attend_heads(q, k, v, table, attend).split([x.shape[1] for x in streams.values()], dim=1)

        out = {}
        for attn, rows, (name, x) in zip(attns, mixed, streams.items(), strict=True):
            first, second = mods[name]
            x = torch.addcmul(x, first.gate, attn.proj(rows))
            out[name] = torch.addcmul(
                x, second.gate, getattr(self, f"{name}_mlp")(modulate(x, second.shift, second.scale))
            )
        return out


class SingleStreamBlock(nn.Module):
    """Attention and gated MLP side by side from one norm: x += gate * linear2([attention | mlp])."""

    def __init__(self, config: ModalityForcingConfig, *, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        width, linear = config.hidden_size, {"bias": False, "device": device, "dtype": dtype}
        self.num_heads = config.num_heads
        self.widths = (3 * width, 2 * config.mlp_hidden)
        self.linear1 = operations.Linear(width, sum(self.widths), **linear)
        self.linear2 = operations.Linear(width + config.mlp_hidden, width, **linear)
        self.norm = QKNorm(config.head_dim, device=device, dtype=dtype)

    def forward(
        self, x: Tensor, mod: Modulation, table: RotaryTable, attend: Attend, *, skip: int = 0
    ) -> Tensor:
        """x (b, n, c) -> (b, n - skip, c): of the first `skip` tokens only keys and values are used."""
        qkv, mlp = self.linear1(modulate(x, mod.shift, mod.scale)).split(self.widths, dim=-1)
        q, k, v = split_heads(qkv, self.num_heads)
        q, mlp, x = q[:, skip:], mlp[:, skip:], x[:, skip:]
        gate = mod.gate[:, -x.shape[1] :]  # one row for all tokens, or one each
        mixed = attend_heads(*self.norm(q, k), v, table, attend)
        return torch.addcmul(x, gate, self.linear2(torch.cat((mixed, gate_silu(mlp)), dim=-1)))


class StreamAttention(nn.Module):
    """The weights of one stream in the joint attention."""

    def __init__(self, hidden_size: int, num_heads: int, *, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        linear = {"bias": False, "device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.qkv = operations.Linear(hidden_size, 3 * hidden_size, **linear)
        self.norm = QKNorm(hidden_size // num_heads, device=device, dtype=dtype)
        self.proj = operations.Linear(hidden_size, hidden_size, **linear)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (b, n, c) -> normalized q, k and plain v, each (b, n, h, d)."""
        q, k, v = split_heads(self.qkv(x), self.num_heads)
        return *self.norm(q, k), v


class QKNorm(nn.Module):
    """RMS norms of queries and keys over the head width."""

    def __init__(self, dim: int, *, device=None, dtype=None):
        super().__init__()
        self.query_norm = RMSScale(dim, device=device, dtype=dtype)
        self.key_norm = RMSScale(dim, device=device, dtype=dtype)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.query_norm(q), self.key_norm(k)


class RMSScale(nn.Module):
    """x / rms(x) in float32, back to x's dtype, times a learned scale."""

    def __init__(self, dim: int, *, device=None, dtype=None):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32:  # the same product without a pass of its own
            return F.rms_norm(x, x.shape[-1:], self.scale.to(x), eps=1e-6)
        return F.rms_norm(x.float(), x.shape[-1:], eps=1e-6).to(x.dtype) * self.scale.to(x)


class FinalLayer(nn.Module):
    """Modulated norm and projection out of the network (shift first, then scale).

    With a `kernel` above 1 the projection reads the kernel x kernel neighborhood of each token, as a
    convolution over the token grid does; it stays a linear layer, (out, c kernel kernel), for whoever adapts,
    quantizes or offloads one.
    """

    def __init__(
        self,
        hidden_size: int,
        out_channels: int,
        *,
        kernel: int = 1,
        operations=torch.nn,
        device=None,
        dtype=None,
    ):
        super().__init__()
        linear = {"bias": False, "device": device, "dtype": dtype}
        self.kernel = kernel
        self.linear = operations.Linear(hidden_size * kernel**2, out_channels, **linear)
        self.adaLN_modulation = nn.Sequential(
            nn.SiLU(), operations.Linear(hidden_size, 2 * hidden_size, **linear)
        )

    def forward(self, x: Tensor, vec: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """x (b, h w, c), vec (b, c), grid (h, w), which a kernel above 1 needs -> (b, h w, out)."""
        shift, scale = self.adaLN_modulation(vec)[:, None].chunk(2, dim=-1)
        x = modulate(x, shift, 1 + scale)
        return self.linear(x if self.kernel == 1 else gather_neighbors(x, grid, self.kernel))


def make_depth_head(config: ModalityForcingConfig, **factory_kwargs) -> FinalLayer:
    return FinalLayer(
        config.hidden_size, config.depth_channels, kernel=config.depth_head_kernel, **factory_kwargs
    )


def gather_neighbors(x: Tensor, grid: tuple[int, int], kernel: int) -> Tensor:
    """(b, h w, c) -> (b, h w, c kernel kernel): the tokens around each token, zero beyond the grid."""
    x = F.unfold(tokens_to_latent(x, grid), kernel, padding=kernel // 2)
    return rearrange(x, "b c n -> b n c")


class GatedSiLU(nn.Module):
    """[gate | value] -> SiLU(gate) * value."""

    def forward(self, x: Tensor) -> Tensor:
        return gate_silu(x)


def gated_mlp(
    hidden_size: int, mlp_hidden: int, *, operations=torch.nn, device=None, dtype=None
) -> nn.Sequential:
    linear = {"bias": False, "device": device, "dtype": dtype}
    return nn.Sequential(
        operations.Linear(hidden_size, 2 * mlp_hidden, **linear),
        GatedSiLU(),
        operations.Linear(mlp_hidden, hidden_size, **linear),
    )


def gate_silu(x: Tensor) -> Tensor:
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(b, n, 3 h d) -> q, k, v, each (b, n, h, d)."""
    q, k, v = rearrange(qkv, "b n (three h d) -> three b n h d", three=3, h=num_heads)
    return q, k, v


def attend_heads(q: Tensor, k: Tensor, v: Tensor, table: RotaryTable, attend: Attend) -> Tensor:
    """RoPE, then attention: k, v (b, n, h, d), q (b, m, h, d) of the last m tokens -> (b, m, h d)."""
    last = tuple(angles[k.shape[1] - q.shape[1] :] for angles in table)
    q, k, v = (rearrange(x, "b n h d -> b h n d") for x in (q, k, v))
    return attend(apply_rotary(q, last), apply_rotary(k, table), v)


def latent_to_tokens(latent: Tensor) -> Tensor:
    """(b, c, h, w) -> (b, h w, c)."""
    return rearrange(latent, "b c h w -> b (h w) c")


def tokens_to_latent(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(b, h w, c) -> (b, c, h, w)."""
    return rearrange(tokens, "b (h w) c -> b c h w", h=grid[0], w=grid[1])


def depth_to_tokens(depth: Tensor, patch: int) -> Tensor:
    """(b, 1, h p, w q) -> (b, h w, p q) with p = q = patch: one token per patch, its pixels row by row."""
    return rearrange(depth, "b 1 (h p) (w q) -> b (h w) (p q)", p=patch, q=patch)


def tokens_to_depth(tokens: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """Inverse of `depth_to_tokens`."""
    return rearrange(tokens, "b (h w) (p q) -> b 1 (h p) (w q)", h=grid[0], w=grid[1], p=patch, q=patch)
