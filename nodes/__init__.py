"""The nodes ComfyUI shows, in the order of its menu."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .conversion import ViewFromDa3, ViewFromImage, ViewFromMoge, ViewToDa3, ViewToMask, ViewToMoge
from .depth_files import LoadDepth, SaveDepth
from .evaluate import CompareViews
from .export import DepthMesh, PointCloud, ViewCamera
from .geometry import AlignDepth, NormalsFromDepth, PreviewDepth, StereoPair
from .given_streams import DepthToImageLatent, ImageToDepthLatent, MaskedJointLatent, RefineDepthLatent
from .host.shared.last_resort import with_net
from .intrinsic import IntrinsicCoGeneration, JoinIntrinsicLatent, SplitIntrinsicLatent
from .intrinsic_maps import DecodeIntrinsics, EncodeIntrinsics, LoadIntrinsicVae
from .latents import JoinJointLatent, LoadJointLatent, SaveJointLatent, SplitJointLatent
from .loaders import LoadModalityForcing, LoadTinyDiffusion
from .modality_forcing import DecodeJointLatent, EmptyJointLatent, GuidancePerStream, ModalityOrder


class Extension(ComfyExtension):
    """The explicit list: nothing is found by scanning."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        generate = [LoadModalityForcing, EmptyJointLatent, ImageToDepthLatent, DepthToImageLatent, MaskedJointLatent]
        generate += [RefineDepthLatent, ModalityOrder, GuidancePerStream]
        generate += [DecodeJointLatent, SplitJointLatent, JoinJointLatent, SaveJointLatent, LoadJointLatent]
        intrinsics = [LoadTinyDiffusion, IntrinsicCoGeneration, JoinIntrinsicLatent, SplitIntrinsicLatent]
        intrinsics += [LoadIntrinsicVae, EncodeIntrinsics, DecodeIntrinsics]
        convert = [ViewFromImage, ViewToMask, ViewFromMoge, ViewToMoge, ViewFromDa3, ViewToDa3]
        export = [PointCloud, DepthMesh, ViewCamera, SaveDepth, LoadDepth]
        measure = [AlignDepth, NormalsFromDepth, StereoPair, CompareViews]
        return [with_net(node) for node in (*generate, *intrinsics, PreviewDepth, *convert, *export, *measure)]
