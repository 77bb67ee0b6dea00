"""Called by worker.py inside ComfyUI: VGGT's nodes with small random files, and what they refuse."""

import contextlib
import json
import os

import comfy.model_management as management
import folder_paths
import torch
from safetensors.torch import save_file

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py
SIZES = {
    "img_size": 56, "patch_size": 14, "embed_dim": 64, "depth": 4, "num_heads": 2, "backbone_depth": 2,
    "backbone_num_heads": 2,
    "dpt_features": 16, "dpt_out_channels": [16, 16, 24, 32], "dpt_layers": [0, 1, 2, 3],
    "camera_trunk_depth": 1,
    "camera_num_heads": 4,
}  # fmt: skip


def run(node, **inputs):
    return core.NODE_CLASS_MAPPINGS[f"SpatialWeave_{node}"].EXECUTE_NORMALIZED(**inputs).result


def random_state(**changes):
    """(config, state dict) of a small network whose every tensor matters; depth about 1, rotations moderate.
    """
    config = ours("models.vggt.config").VggtConfig.from_json({**SIZES, **changes})
    network = ours("models.vggt.network").Vggt(config)
    generator = torch.Generator().manual_seed(0)
    for name, value in network.named_parameters():
        value.requires_grad_(False)
        if value.ndim > 1:
            value.normal_(0, 0.6 * value[0].numel() ** -0.5, generator=generator)
        elif name.endswith(("weight", "gamma")):
            value.fill_(1.0 if name.endswith("weight") else 0.3)
        else:
            value.normal_(0, 0.05, generator=generator)
    # quaternions near the identity, fields of view near one radian
    network.camera_head.pose_branch.fc2.bias.copy_(torch.tensor([0.1, 0, 0, 0, 0, 0, 0.3, 0.25, 0.25]))
    return config, network.state_dict()


def start(folder):
    """Two files in a folder of models/geometry_estimation: as ours are written,
    and as the published one is, with tracking.
    """
    os.makedirs(folder, exist_ok=True)
    folder_paths.add_model_folder_path("geometry_estimation", folder)
    config, state = random_state()
    save_file(
        state,
        f"{folder}/ours.safetensors",
        metadata={"spatialweave": "VGGT network", "config": json.dumps(config.to_json())},
    )
    published = {**state, "track_head.feature_extractor.norm.weight": torch.ones(4)}
    save_file(published, f"{folder}/vggt_1b_commercial.safetensors")
    return run("LoadVggt", model_name="ours.safetensors")[0]


def views(count=3, height=40, width=61, channels=3):
    """Images of random cells, so that no two are alike."""
    cells = torch.rand(count, 5, 7, channels, generator=torch.Generator().manual_seed(count))
    return (
        torch.nn.functional.interpolate(cells.movedim(-1, 1), size=(height, width), mode="bicubic")
        .movedim(1, -1)
        .clamp(0, 1)
    )


DEFAULTS = {"fit": "pad", "longer_side": 0, "source": "depth", "global_queries": 0}


def reconstruct(folder):
    """An RGBA batch through the nodes and through the pipeline in plain torch;
    then core's nodes on the result.
    """
    from comfy_extras import nodes_depth_anything_3 as da3

    vggt, image = start(folder), views(channels=4)
    view, transparent, notes = run("VggtReconstruct", vggt=vggt, image=image, **DEFAULTS)
    pipeline = ours("models.vggt.pipeline").VggtPipeline.from_file(f"{folder}/ours.safetensors")
    plain = pipeline(image).view
    chunked = run("VggtReconstruct", vggt=vggt, image=image, **{**DEFAULTS, "global_queries": 7})[0]
    (packet,) = run("ViewToDa3", view=view)
    (mesh,) = da3.DA3GeometryToMesh.execute(packet, 1, 1, 0.0, 0.0, False, True).result
    (shown,) = da3.DA3Render.execute(
        packet, {"output": "depth", "normalization": "min_max", "apply_sky_clip": False}
    ).result
    return {
        "depth": list(view.depth.shape), "units": view.units, "valid": bool(view.mask.all()),
        "confident": float(view.confidence.min()),
        "first": view.world_to_cam[0].tolist(), "intrinsics": view.intrinsics.tolist(),
        "image": bool(torch.equal(view.image, image[..., :3])),
        "transparent": float((transparent - (1 - image[..., 3])).abs().max()),
        "plain": max(
            float((view.depth - plain.depth).abs().max()), float(
                (view.world_to_cam - plain.world_to_cam).abs().max()
            )
        ),
        "chunked": float((view.depth - chunked.depth).abs().max()), "notes": notes, "mode": packet["mode"],
        "vertices": mesh.vertices.shape[1], "shown": list(shown.shape), "loaded": vggt.patcher.model in
        [m.model.model for m in management.current_loaded_models if m.model is not None],
        "deviates": float(view.depth.std()),
    }  # fmt: skip


def point_source(folder):
    """The point head's points as depth, recomputed here from the network's own points and poses."""
    vggt, image = start(folder), views(2, 56, 56)
    view = run("VggtReconstruct", vggt=vggt, image=image, **{**DEFAULTS, "source": "point"})[0]
    with torch.no_grad():
        said = vggt.patcher.model(image.movedim(-1, 1)[None])
    pose, _ = ours("models.vggt.pose_code").decode_poses(said.poses[-1], (56, 56))
    z = (said.points[0] * pose[0, :, 2, :3][:, None, None]).sum(-1) + pose[0, :, 2, 3][:, None, None]
    known = z > 0
    return {
        "gap": float((view.depth - z)[known].abs().max()),
        "mask": bool(torch.equal(view.mask, known)),
        "known": float(known.float().mean()),
    }


def tokens(folder):
    vggt, image = start(folder), views(2, 40, 61)
    found, notes = run(
        "VggtGeometryTokens", vggt=vggt, image=image, fit="pad", longer_side=0, global_queries=0
    )
    framed = ours("models.vggt.pipeline").read_inputs(image, vggt.config, "pad")
    with torch.no_grad():
        last = vggt.patcher.model.aggregator(framed.framed, range(4)).layers[3][0]
    return {
        "shape": list(found.tokens.shape), "special": found.special, "grid": list(found.grid),
        "size": list(found.frames[0].size),
        "gap": float((found.tokens - last).abs().max()), "notes": notes,
    }  # fmt: skip


def sizes(folder):
    """Result sizes and intrinsics of odd, wide and tiny images, one view and many."""
    vggt, seen = start(folder), {}
    for name, (count, height, width) in {
        "one": (1, 56, 56), "odd": (2, 101, 51), "wide": (1, 14, 300), "8 px": (2, 8, 8),
        "200": (200, 16, 16),
    }.items():  # fmt: skip
        for fit in ("pad", "crop")[: 1 if count > 99 else 2]:  # 200 square images: neither pads nor crops
            image, settings = (
                views(count, height, width),
                {**DEFAULTS, "fit": fit, "longer_side": 28 if count > 99 else 0},
            )
            view, _, notes = run("VggtReconstruct", vggt=vggt, image=image, **settings)
            middle = view.intrinsics[:, :2, 2].mean(0)
            seen[f"{name} {fit}"] = {
                "depth": list(view.depth.shape), "holes": float((~view.mask).float().mean()),
                "middle": middle.tolist(), "notes": notes,
            }  # fmt: skip
    return seen


@contextlib.contextmanager
def pressed_at(check):
    """Cancel is pressed before the given one of core's checks for it; yields their count."""
    seen, before = [0], management.throw_exception_if_processing_interrupted

    def checked():
        if seen[0] == check:
            management.interrupt_current_processing(True)
        seen[0] += 1
        before()

    management.throw_exception_if_processing_interrupted = checked
    try:
        yield seen
    finally:
        management.throw_exception_if_processing_interrupted = before


def cancel(folder):
    """Cancel at every part of a run, within its views; the next run gives the same numbers.
    The bar counts the parts.
    """
    import comfy.utils

    vggt, image, bars = start(folder), views(3, 56, 56), []
    comfy.utils.set_progress_bar_global_hook(lambda value, total, *rest, **more: bars.append([value, total]))
    with pressed_at(None) as seen:
        before = run("VggtReconstruct", vggt=vggt, image=image, **DEFAULTS)[0]
    comfy.utils.set_progress_bar_global_hook(None)
    stopped, same = [], []
    for check in range(0, seen[0], max(1, seen[0] // 12)):
        try:
            with pressed_at(check):
                run("VggtReconstruct", vggt=vggt, image=image, **DEFAULTS)
            stopped.append(False)
        except management.InterruptProcessingException:
            stopped.append(True)
        again = run("VggtReconstruct", vggt=vggt, image=image, **DEFAULTS)[0]
        same.append(bool(torch.equal(again.depth, before.depth)))
    return {"checks": seen[0], "stopped": all(stopped), "same": all(same), "bar": bars[-1]}


def sentence(call):
    try:
        call()
    except (ValueError, OSError, management.OOM_EXCEPTION) as error:
        return str(error)
    return None


def refusals(folder):
    """Bad input, a sentence each; None where a run came through."""
    vggt = start(folder)
    config, state = random_state()
    load = lambda name: run("LoadVggt", model_name=name)  # noqa: E731

    def elsewhere(kind, node, **inputs):
        folder_paths.add_model_folder_path(kind, folder)
        return sentence(lambda: run(node, **inputs))

    def write(tensors, name, metadata=None):
        save_file(tensors, f"{folder}/{name}", metadata=metadata)
        folder_paths.filename_list_cache.clear()
        return name

    moge = {
        "encoder.backbone.cls_token": torch.zeros(1, 1, 4),
        "points_head.output.weight": torch.zeros(2, 2),
    }
    da = {"pretrained.blocks.0.norm1.weight": torch.zeros(4), "depth_head.norm.weight": torch.zeros(4)}
    half = open(f"{folder}/ours.safetensors", "rb").read()  # noqa: SIM115
    with open(f"{folder}/half.safetensors", "wb") as file:
        file.write(half[: len(half) // 2])
    folder_paths.filename_list_cache.clear()
    lacks = {name: value for name, value in state.items() if "global_blocks.1.mlp" not in name}
    broken = {**state, "aggregator.camera_token": state["aggregator.camera_token"] * float("nan")}
    flat = {name: value for name, value in state.items() if not name.startswith("depth_head.")}
    poses = {name: value for name, value in state.items() if not name.startswith("camera_head.")}
    big = {**state, "depth_head.scratch.output_conv2.2.bias": torch.tensor([200.0, 0.0])}
    shoot = lambda file, **changes: run(  # noqa: E731
        "VggtReconstruct", vggt=load(file)[0], image=views(2), **{**DEFAULTS, **changes}
    )
    nan = views(2)
    nan[1, 3:5] = float("nan")
    return {
        "MoGe's file": sentence(lambda: load(write(moge, "moge.safetensors"))),
        "Depth Anything's file": sentence(lambda: load(write(da, "da.safetensors"))),
        "half a file": sentence(lambda: load("half.safetensors")),
        "tensors missing": sentence(lambda: load(write(lacks, "lacks.safetensors"))),
        "NaN in the file": sentence(lambda: load(write(broken, "broken.safetensors"))),
        "no such file": sentence(lambda: load("vggt_1b.safetensors")),
        "no depth head": sentence(lambda: shoot(write(flat, "flat.safetensors"))),
        "no camera head": sentence(lambda: shoot(write(poses, "poses.safetensors"))),
        "overflow": sentence(lambda: shoot(write(big, "big.safetensors"))),
        "201 views": sentence(lambda: run("VggtReconstruct", vggt=vggt, image=views(201, 8, 8), **DEFAULTS)),
        "longer side": sentence(
            lambda: run("VggtReconstruct", vggt=vggt, image=views(2), **{**DEFAULTS, "longer_side": 9})
        ),
        "VGGT's file in Load Modality Forcing": elsewhere(
            "diffusion_models", "LoadModalityForcing", model_name="ours.safetensors"
        ),
        "VGGT's file in Load Intrinsic VAE": elsewhere(
            "vae", "LoadIntrinsicVae", vae_name="ours.safetensors"
        ),
        "not a network": sentence(lambda: run("VggtReconstruct", vggt="x", image=views(2), **DEFAULTS)),
        "NaN colors": run("VggtReconstruct", vggt=vggt, image=nan, **DEFAULTS)[2],
        "black": run("VggtReconstruct", vggt=vggt, image=torch.zeros(2, 30, 40, 3), **DEFAULTS)[2],
        "equal": run("VggtReconstruct", vggt=vggt, image=views(1).expand(3, -1, -1, -1), **DEFAULTS)[2],
    }


def memory_full(folder):
    """Core's own fault for a full memory, raised within the run,
    as a sentence with the views and the remedies.
    """
    vggt = start(folder)

    def full(*args, **kwargs):
        raise management.OOM_EXCEPTION("out of memory")

    before = vggt.patcher.model.aggregator.forward
    vggt.patcher.model.aggregator.forward = full
    try:
        return sentence(lambda: run("VggtReconstruct", vggt=vggt, image=views(2), **DEFAULTS))
    finally:
        vggt.patcher.model.aggregator.forward = before


def lowvram(folder):
    """The weights left where they are and cast layer by layer,
    as core does where the card is too small for them.
    """
    vggt = start(folder)
    before = run("VggtReconstruct", vggt=vggt, image=views(2), **DEFAULTS)[0]
    vggt.patcher.detach()
    inputs = ours("models.vggt.pipeline").read_inputs(views(2), vggt.config, "pad")
    vggt.patcher.load(vggt.device, lowvram_model_memory=64 * 1024)
    in_lowvram = bool(vggt.patcher.model.model_lowvram)
    with torch.no_grad():
        found = vggt.patcher.model(inputs.framed, heads=("camera", "depth"))
    vggt.patcher.detach()
    view, _ = ours("models.vggt.pipeline").to_views(found, inputs, vggt.config)
    again = run("VggtReconstruct", vggt=vggt, image=views(2), **DEFAULTS)[0]
    return {
        "lowvram": in_lowvram, "gap": float((view[0].depth - before.depth[:1]).abs().max()),
        "again": float((again.depth - before.depth).abs().max()),
    }  # fmt: skip


def licenses(folder):
    """What the loader says of a published name, of another, and of the shipped network;
    tracking tensors are left out by name.
    """
    start(folder)
    said = {}
    shipped = ours("nodes.host.shared.shipped").TINY
    for name in ("vggt_1b_commercial.safetensors", "ours.safetensors", shipped):
        said[name] = list(run("LoadVggt", model_name=name)[0].notes)
    return said


def bfloat16_body(folder):
    """A body in bfloat16 with heads in float32, by core's choice of precision,
    against float32: near, and not equal.
    """
    model = ours("nodes.host.vggt.model")
    vggt = start(folder)
    exact = run("VggtReconstruct", vggt=vggt, image=views(2), **DEFAULTS)[0]
    before = model.choose_dtype
    model.choose_dtype = lambda state, device: torch.bfloat16
    try:
        rounded = run("LoadVggt", model_name="ours.safetensors")[0]
    finally:
        model.choose_dtype = before
    found = run("VggtReconstruct", vggt=rounded, image=views(2), **DEFAULTS)[0]
    dtypes = {
        name.split(".")[0]: str(value.dtype) for name, value in rounded.patcher.model.state_dict().items()
    }
    relative = ((found.depth - exact.depth).abs() / exact.depth).mean()
    return {
        "dtypes": dtypes,
        "relative": float(relative),
        "pose": float((found.world_to_cam - exact.world_to_cam).abs().max()),
    }


def tiny_scene(folder):
    """The shipped network on four views of a held-out scene, through Fuse Views;
    angles to the true relative rotations.
    """
    start(folder)
    multiview = ours("models.world.multiview")
    (scene,) = multiview.sample_views(0, 1, 4, (112, 112), split="test", start=2, lens_jitter=0.2)
    loader = core.NODE_CLASS_MAPPINGS["SpatialWeave_LoadVggt"]
    (put,) = loader.GET_SCHEMA().inputs
    (vggt,) = run("LoadVggt", model_name=put.default)
    view, _, notes = run("VggtReconstruct", vggt=vggt, image=scene.image, **DEFAULTS)
    fused = run("FuseViews", view=view, **defaults_of("FuseViews"))
    pad = ours("models.core.geometry.camera").pad_pose
    rotation, _ = ours("models.core.evaluation.pose_metrics").pair_errors(
        view.world_to_cam, pad(scene.world_to_cam)
    )
    scale = (scene.depth_metric[scene.mask] / view.depth[scene.mask]).median()
    error = ((scale * view.depth - scene.depth_metric).abs() / scene.depth_metric)[scene.mask].mean()
    return {
        "default": put.default, "rotation": float(rotation.median()), "error": float(error), "notes": notes,
        "outputs": [type(value).__name__ for value in fused],
    }  # fmt: skip


def video(folder):
    """Every third frame of a video against the same frames as a batch, and a video with too many."""
    from comfy_api.latest import InputImpl, Types

    vggt, frames, settings = start(folder), views(7, 40, 60), {**DEFAULTS, "longer_side": 56}
    clip = InputImpl.VideoFromComponents(Types.VideoComponents(images=frames, frame_rate=24))
    wired, _, notes = run("VggtReconstruct", vggt=vggt, image=clip, every=3, **settings)
    alone, *_ = run("VggtReconstruct", vggt=vggt, image=frames[[0, 3, 6]], **settings)
    path = f"{folder}/clip.mp4"
    clip.save_to(path)
    saved, *_ = run("VggtReconstruct", vggt=vggt, image=InputImpl.VideoFromFile(path), every=3, **settings)
    long = InputImpl.VideoFromComponents(Types.VideoComponents(images=views(201, 16, 16), frame_rate=24))
    try:
        said = run("VggtReconstruct", vggt=vggt, image=long, **settings)
    except ValueError as error:
        said = str(error)
    return {
        "equal": bool((wired.depth == alone.depth).all()), "notes": notes, "saved": list(saved.depth.shape),
        "said": said,
    }  # fmt: skip


def defaults_of(node):
    """A node's widgets as they stand when it is placed."""
    puts = core.NODE_CLASS_MAPPINGS[f"SpatialWeave_{node}"].GET_SCHEMA().inputs
    return {put.id: put.default for put in puts if getattr(put, "default", None) is not None}
