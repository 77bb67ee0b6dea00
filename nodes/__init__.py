"""The nodes that ComfyUI lists, in the order of its menu."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .conversion import ViewFromDa3, ViewFromImage, ViewFromMoge, ViewToDa3, ViewToMask, ViewToMoge
from .edit_check import CheckEdit
from .evaluate import CompareViews
from .export import DepthMesh, LoadDepth, PointCloud, SaveDepth, ViewCamera
from .fusion import FuseViews, SaveColmap, ScaleViews
from .geometry import AlignDepth, NormalsFromDepth, PreviewDepth, StereoPair, UpscaleDepth
from .host.shared.last_resort import with_net
from .intrinsic_ldm import IntrinsicCoGeneration, JoinIntrinsicLatent, LoadTinyDiffusion, SplitIntrinsicLatent
from .intrinsic_ldm_maps import DecodeIntrinsics, EncodeIntrinsics, LoadIntrinsicVae
from .joyai_edit import JoyMoveCamera, JoyMoveObject, JoyRotateObject
from .joyai_edit_ask import AskAboutViews
from .joyai_edit_framing import JoyFit, JoyRestore
from .modality_forcing import DecodeJointLatent, GuidancePerStream, LoadModalityForcing, ModalityOrder
from .modality_forcing_latents import (
    DepthToImageLatent,
    EmptyJointLatent,
    ImageToDepthLatent,
    JoinJointLatent,
    LoadJointLatent,
    MaskedJointLatent,
    RefineDepthLatent,
    SaveJointLatent,
    SplitJointLatent,
)
from .pick_best import PickBest
from .spatial_diff import AddGeometryTokens, LoadGeometryConnector, LoadTinyEditor, MoveObjectInstruction
from .spatial_fusion import (
    DepthAdapter,
    LoadDepthAdapter,
    LoadSpatialTransformer,
    LoadTinyLanguageModel,
    SpatialDepth,
)
from .vggt import LoadExampleViews, LoadVggt, VggtGeometryTokens, VggtReconstruct


class Extension(ComfyExtension):
    """The explicit list of nodes; no folder is scanned."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        generate = [LoadModalityForcing, EmptyJointLatent, ImageToDepthLatent, DepthToImageLatent]
        generate += [MaskedJointLatent, RefineDepthLatent, ModalityOrder, GuidancePerStream]
        generate += [DecodeJointLatent, SplitJointLatent, JoinJointLatent, SaveJointLatent, LoadJointLatent]
        intrinsics = [LoadTinyDiffusion, IntrinsicCoGeneration, JoinIntrinsicLatent, SplitIntrinsicLatent]
        intrinsics += [LoadIntrinsicVae, EncodeIntrinsics, DecodeIntrinsics]
        convert = [ViewFromImage, ViewToMask, ViewFromMoge, ViewToMoge, ViewFromDa3, ViewToDa3]
        export = [PointCloud, DepthMesh, ViewCamera, SaveDepth, LoadDepth]
        measure = [AlignDepth, NormalsFromDepth, UpscaleDepth, StereoPair, CompareViews, CheckEdit]
        measure += [PickBest]
        joy = [JoyFit, JoyMoveObject, JoyRotateObject, JoyMoveCamera, JoyRestore, AskAboutViews]
        several = [LoadVggt, VggtReconstruct, VggtGeometryTokens, ScaleViews, FuseViews, SaveColmap]
        several += [LoadExampleViews]
        moves = [LoadTinyEditor, LoadGeometryConnector, AddGeometryTokens, MoveObjectInstruction]
        fusion = [LoadDepthAdapter, DepthAdapter, LoadSpatialTransformer, LoadTinyLanguageModel]
        fusion += [SpatialDepth]
        nodes = [*generate, *intrinsics, *joy, PreviewDepth, *convert, *export, *measure, *several]
        nodes += [*fusion, *moves]
        return [with_net(node) for node in nodes]
