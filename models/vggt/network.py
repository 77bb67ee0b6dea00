"""The VGGT network: images of one scene to depth, cameras and points. Tensors in, tensors out.

Parameter names are the released ones. Letters: b scenes, v views, n tokens of a view, h heads, c channels;
`h w` only beside c. Camera poses are the pose encodings of pose_code.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from ..core.layers.attention import Attend, attend, attend_by_queries
from ..core.layers.dpt import DPTHead
from ..core.layers.positions import grid_rotary_table
from ..core.layers.vit import Block, Mlp, VisionTransformer
from .config import HEADS, VggtConfig

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
POSE_NUMBERS = 9  # translation 3, quaternion xyzw 4, vertical and horizontal field of view
OUTPUTS = {"depth": 2, "point": 4}  # of the dense heads; the last channel is the confidence

# called without arguments after each block and each view of a dense head, for progress; an exception ends
# the run
OnPart = Callable[[], None]


class Encoded(NamedTuple):
    """Intermediate outputs of the aggregator by index of the block pair, frame and global concatenated."""

    layers: Mapping[int, Tensor]  # index -> (b, v, n, 2c): camera token, registers, patches row-major
    patch_start: int


class Prediction(NamedTuple):
    """Outputs of the camera, depth and point heads; None for a head that the network lacks or did not run."""

    poses: tuple[Tensor, ...] | None  # pose encodings (b, v, 9), one for each iteration of the camera head
    depth: Tensor | None  # (b, v, h, w), > 0, relative
    depth_confidence: Tensor | None  # (b, v, h, w), > 1
    points: Tensor | None  # (b, v, h, w, 3) in the first camera's frame
    points_confidence: Tensor | None  # (b, v, h, w), > 1


class Vggt(nn.Module):
    """Images (b, v, 3, h, w) in [0, 1], their sides multiples of the patch size -> `Prediction`.

    The first view's camera frame is the common frame, so the order of the views matters.
    """

    def __init__(self, config: VggtConfig, *, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        self.config = config
        body_kwargs = {"operations": operations, "device": device, "dtype": dtype}
        # float32 whatever the body is: bfloat16 heads show as bands in the depth and as steps in the poses
        head_kwargs = body_kwargs | {"dtype": dtype and torch.float32}
        self.aggregator = Aggregator(config, **body_kwargs)
        if "camera" in config.heads:
            self.camera_head = CameraHead(config, **head_kwargs)
        for name in ("depth", "point"):
            if name in config.heads:
                dense = DPTHead(
                    config.layer_dim,
                    features=config.dpt_features,
                    out_channels=config.dpt_out_channels,
                    outputs=OUTPUTS[name],
                    **head_kwargs,
                )
                self.add_module(f"{name}_head", dense)

    def forward(
        self,
        images: Tensor,
        *,
        heads: Collection[str] = HEADS,
        attend: Attend = attend,
        queries: int = 0,
        on_part: OnPart | None = None,
    ) -> Prediction:
        """The aggregator, then those of `heads` that the network has.

        Only the aggregator's entries that the heads read are kept, and the dense heads run on one view at a
        time. `queries` above 0: global attention runs on that many queries at a time.
        """
        encoded = self.aggregator(
            images, (*self.config.dpt_layers, self.config.depth - 1), attend=attend, queries=queries,
            on_part=on_part,
        )  # fmt: skip
        return self.predict(encoded, images.shape[-2:], heads=heads, attend=attend, on_part=on_part)

    def count_parts(self, views: int, heads: Collection[str] = HEADS) -> int:
        """Calls of `on_part` in a run of these heads; without heads, in the aggregator alone."""
        dense = len({"depth", "point"} & set(heads) & set(self.config.heads))
        return self.config.backbone_depth + 2 * self.config.depth + views * dense

    def predict(
        self,
        encoded: Encoded,
        size: tuple[int, int],
        *,
        heads: Collection[str] = HEADS,
        attend: Attend = attend,
        views_at_once: int = 1,
        on_part: OnPart | None = None,
    ) -> Prediction:
        """The heads alone, on the entries of `dpt_layers` and the last one.

        The dense heads run on `views_at_once` views at a time; 0 is all at once.
        """
        present = set(heads) & set(self.config.heads)
        poses = None
        if "camera" in present:
            camera_tokens = encoded.layers[self.config.depth - 1][:, :, 0].float()
            poses = tuple(self.camera_head(camera_tokens, attend=attend))
        depth, depth_confidence = None, None
        if "depth" in present:
            raw = self.run_dense(self.depth_head, encoded, size, views_at_once, on_part=on_part)
            depth, depth_confidence = raw[:, :, 0].exp(), 1 + raw[:, :, 1].exp()
        points, points_confidence = None, None
        if "point" in present:
            raw = self.run_dense(self.point_head, encoded, size, views_at_once, on_part=on_part)
            points, points_confidence = activate_points(raw)
        return Prediction(poses, depth, depth_confidence, points, points_confidence)

    def run_dense(
        self,
        head: DPTHead,
        encoded: Encoded,
        size: tuple[int, int],
        views_at_once: int,
        *,
        on_part: OnPart | None,
    ) -> Tensor:
        """(b, v, outputs, h, w) of one dense head."""
        taps = [encoded.layers[i][:, :, encoded.patch_start :] for i in self.config.dpt_layers]
        grid = (size[0] // self.config.patch_size, size[1] // self.config.patch_size)
        views, outputs = taps[0].shape[1], []
        step = views_at_once or views
        for start in range(0, views, step):
            part = [rearrange(tap[:, start : start + step], "b v n c -> (b v) n c") for tap in taps]
            raw = head([tokens.float() for tokens in part], grid, size)
            outputs.append(rearrange(raw, "(b v) c h w -> b v c h w", b=len(taps[0])))
            if on_part:
                on_part()
        return torch.cat(outputs, dim=1)


class Aggregator(nn.Module):
    """Image encoder, then alternating attention within each view and over all views."""

    def __init__(self, config: VggtConfig, *, operations, device, dtype):
        super().__init__()
        self.config = config
        tensor_kwargs = {"device": device, "dtype": dtype}
        factory_kwargs, width = {"operations": operations, **tensor_kwargs}, config.embed_dim
        registers = config.num_register_tokens
        self.patch_embed = VisionTransformer(
            patch=config.patch_size,
            table_side=config.table_side,
            dim=width,
            depth=config.backbone_depth,
            heads=config.backbone_num_heads,
            mlp_ratio=config.backbone_mlp_ratio,
            registers=registers,
            **factory_kwargs,
        )
        # entry 0 is the first view's, entry 1 that of all others
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, width, **tensor_kwargs))
        self.register_token = nn.Parameter(torch.zeros(1, 2, registers, width, **tensor_kwargs))
        block = {"mlp_ratio": config.mlp_ratio, "qk_norm": True, "eps": 1e-5, **factory_kwargs}
        self.frame_blocks = nn.ModuleList(
            Block(width, config.num_heads, **block) for _ in range(config.depth)
        )
        self.global_blocks = nn.ModuleList(
            Block(width, config.num_heads, **block) for _ in range(config.depth)
        )

    def forward(
        self,
        images: Tensor,
        keep: Iterable[int],
        *,
        attend: Attend = attend,
        queries: int = 0,
        on_part: OnPart | None = None,
    ) -> Encoded:
        """The entries `keep`; the others are dropped as soon as the next block has read them."""
        config, kept, layers = self.config, set(keep), {}
        b, v, _, height, width = images.shape
        rows, columns = height // config.patch_size, width // config.patch_size
        table = grid_rotary_table(
            rows, columns, config.embed_dim // config.num_heads, config.rope_freq,
            special=config.special_tokens, device=images.device,
        )  # fmt: skip
        global_table = tuple(repeat(part, "n half k -> (v n) half k", v=v) for part in table)
        global_attend = attend_by_queries(attend, queries) if queries else attend

        x = self.embed(images, attend, on_part)
        for i, (frame_block, global_block) in enumerate(zip(self.frame_blocks, self.global_blocks)):
            x = frame_block(rearrange(x, "b v n c -> (b v) n c"), table, attend)
            if on_part:
                on_part()
            frame = rearrange(x, "(b v) n c -> b v n c", b=b)
            x = global_block(rearrange(frame, "b v n c -> b (v n) c"), global_table, global_attend)
            if on_part:
                on_part()
            x = rearrange(x, "b (v n) c -> b v n c", v=v)
            if i in kept:
                layers[i] = torch.cat((frame, x), dim=-1)
        return Encoded(layers, config.special_tokens)

    def embed(self, images: Tensor, attend: Attend, on_part: OnPart | None) -> Tensor:
        """Camera token, registers and patch tokens of each view: (b, v, n, c)."""
        b, v = images.shape[:2]
        weight = self.patch_embed.patch_embed.proj.weight
        mean, std = (images.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        flat = rearrange((images - mean) / std, "b v c h w -> (b v) c h w")
        patches, _ = self.patch_embed(flat.to(body_dtype(weight, images)), attend=attend, on_block=on_part)
        special = torch.cat((self.camera_token, self.register_token), dim=2).to(patches)
        first, others = special[:, :1], special[:, 1:].expand(-1, v - 1, -1, -1)
        special = torch.cat((first, others), dim=1).expand(b, -1, -1, -1)
        return torch.cat((special, rearrange(patches, "(b v) n c -> b v n c", b=b)), dim=2)


def body_dtype(weight: Tensor, images: Tensor) -> torch.dtype:
    """Dtype that the aggregator computes in: the images' if below float32, else the weights'."""
    return weight.dtype if images.dtype == torch.float32 else images.dtype


class CameraHead(nn.Module):
    """Camera tokens (b, v, c) of the last entry -> pose encodings, iteratively refined from a learned one."""

    def __init__(self, config: VggtConfig, *, operations, device, dtype):
        super().__init__()
        tensor_kwargs = {"device": device, "dtype": dtype}
        factory_kwargs, width = {"operations": operations, **tensor_kwargs}, config.layer_dim
        self.iterations = config.camera_iterations
        self.trunk = nn.ModuleList(
            Block(width, config.camera_num_heads, mlp_ratio=4.0, eps=1e-5, **factory_kwargs)
            for _ in range(config.camera_trunk_depth)
        )
        self.token_norm = operations.LayerNorm(width, eps=1e-5, **tensor_kwargs)
        self.trunk_norm = operations.LayerNorm(width, eps=1e-5, **tensor_kwargs)
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, POSE_NUMBERS, **tensor_kwargs))
        self.embed_pose = operations.Linear(POSE_NUMBERS, width, **tensor_kwargs)
        modulation = operations.Linear(width, 3 * width, **tensor_kwargs)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), modulation)
        self.pose_branch = Mlp(width, width // 2, POSE_NUMBERS, **factory_kwargs)

    def forward(self, tokens: Tensor, *, attend: Attend = attend) -> list[Tensor]:
        """One pose encoding (b, v, 9) for each iteration.

        The fields of view of these go through a ReLU; the next iteration reads them without it.
        """
        tokens = self.token_norm(tokens)
        empty = self.empty_pose_tokens.to(tokens).expand(*tokens.shape[:2], -1)
        pose, encodings = None, []
        for _ in range(self.iterations):
            # no gradient flows from one iteration to the one before
            previous = empty if pose is None else pose.detach()
            shift, scale, gate = self.poseLN_modulation(self.embed_pose(previous)).chunk(3, dim=-1)
            normed = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
            x = tokens + gate * (normed * (1 + scale) + shift)
            for block in self.trunk:
                x = block(x, attend=attend)
            delta = self.pose_branch(self.trunk_norm(x))
            pose = delta if pose is None else pose + delta
            encodings.append(torch.cat((pose[..., :7], F.relu(pose[..., 7:])), dim=-1))
        return encodings


def activate_points(raw: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 4, h, w) -> points (..., h, w, 3), the inverse of sign(x) log(1 + |x|), and confidence > 1."""
    xyz = rearrange(raw[..., :3, :, :], "... c h w -> ... h w c")
    return xyz.sign() * xyz.abs().expm1(), 1 + raw[..., 3, :, :].exp()
