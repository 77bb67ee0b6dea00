"""Called by worker.py inside ComfyUI: posed views of the world's scenes through our nodes and core's."""

import asyncio
import os
from dataclasses import replace
from types import SimpleNamespace

import folder_paths
import torch
from comfy import model_management as management

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py

FUSE = {"every": 1, "min_confidence": 0.0, "drop_percent": 0.0, "edge_threshold": 0.04, "tolerance": 0.03}
FUSE |= {"min_views": 1, "voxel_size": 0.0, "max_points": 1200000, "fov_degrees": 65.0}
SAVE = {"filename_prefix": "colmap/kitchen", "layout": "both", "units": "as they are", "max_points": 400}
FACTOR = 2.5  # metres a unit of the relative views


def run(node, **inputs):
    return core.NODE_CLASS_MAPPINGS[f"SpatialWeave_{node}"].EXECUTE_NORMALIZED(**inputs).result


def metric_views(count=4, seed=1, height=48, width=64):
    (item,) = ours("models.world.multiview").sample_views(
        seed, 1, count, (height, width), split="test", samples=1, lens_jitter=0.2
    )
    depth = item.depth_metric.masked_fill(~item.mask, torch.inf)
    others = {"image": item.image, "intrinsics": item.intrinsics, "world_to_cam": item.world_to_cam}
    return ours("models.core.geometry.view").View.from_depth(depth, units="metric", **others)


def relative_views(**options):
    view = metric_views(**options)
    pose = view.world_to_cam.clone()
    pose[:, :3, 3] /= FACTOR
    return replace(view, depth=view.depth / FACTOR, world_to_cam=pose, units="relative")


class PosedViews:
    """A node of this test: the relative views of a scene."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("SPATIALWEAVE_VIEW", "SPATIALWEAVE_VIEW"), "make", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def make(self):
        return relative_views(), metric_views()[2]


def execute(graph):
    """Check and run a graph in API form by ComfyUI's own executor: outputs shown, and the errors."""
    import execution

    core.NODE_CLASS_MAPPINGS["TestPosedViews"] = PosedViews
    extras = os.path.join(folder_paths.base_path, "comfy_extras", "nodes_load_3d.py")
    assert asyncio.run(core.load_custom_node(extras, module_parent="comfy_extras"))
    sent = []
    server = SimpleNamespace(
        client_id="test",
        last_node_id=None,
        send_sync=lambda event, data, sid=None: sent.append((event, data)),
    )
    try:
        good, error, outputs, node_errors = asyncio.run(execution.validate_prompt("id", graph, None))
        assert good, (error, node_errors)
        executor = execution.PromptExecutor(server, cache_args={"lru": 0, "ram": 0.0, "ram_inactive": 0.0})
        executor.execute(graph, "id", {"client_id": "test"}, outputs)
    finally:
        del core.NODE_CLASS_MAPPINGS["TestPosedViews"]
    shown = {data["node"]: data["output"] for event, data in sent if event == "executed"}
    return shown, [data["exception_message"] for event, data in sent if event == "execution_error"]


def graph_of(method, **changes):
    """Views, scaled, fused, shown and saved."""
    scale = {"view": ["1", 0], "metric": ["1", 1], "fov_degrees": 65.0}
    scale |= {name if name == "method" else f"method.{name}": value for name, value in method.items()}
    fuse = {**FUSE, "view": ["2", 0]} | changes.pop("fuse", {})
    shown = {"model_3d": ["3", 0], "camera_info": ["3", 2], "viewport_state": {}, "width": 640, "height": 480}
    return {
        "1": {"class_type": "TestPosedViews", "inputs": {}},
        "2": {"class_type": "SpatialWeave_ScaleViews", "inputs": scale},
        "3": {"class_type": "SpatialWeave_FuseViews", "inputs": fuse},
        "4": {"class_type": "PreviewPointCloud", "inputs": shown},
        "5": {"class_type": "SpatialWeave_SaveColmap", "inputs": {**SAVE, "cloud": ["3", 1], **changes}},
        "6": {"class_type": "PreviewAny", "inputs": {"source": ["2", 1]}},
        "7": {"class_type": "PreviewAny", "inputs": {"source": ["3", 3]}},
    }


def whole_graph(folder, method, **changes):
    folder_paths.set_output_directory(folder)
    folder_paths.set_temp_directory(folder)
    asyncio.run(
        core.load_custom_node(
            os.path.join(folder_paths.base_path, "comfy_extras", "nodes_preview_any.py"),
            module_parent="comfy_extras",
        )
    )
    shown, errors = execute(graph_of(method, **changes))
    return {"shown": shown, "errors": errors}


def scaled(method, with_metric=True):
    """The largest error of the scaled views, relative to the true ones, and the text."""
    true, relative = metric_views(), relative_views()
    view, text = run(
        "ScaleViews", view=relative, method=method, fov_degrees=65.0, metric=true[2] if with_metric else None
    )
    depth = ((view.depth - true.depth).abs() / true.depth.clamp_min(1e-6))[true.mask].max()
    pose = (view.world_to_cam - true.world_to_cam).abs().max()
    return {"depth": float(depth), "pose": float(pose), "units": view.units, "text": text}


def points_by_core_and_by_us():
    """The points of each view by core's DA3 point cloud node, and by ours, of one multi-view packet."""
    from comfy_extras import nodes_depth_anything_3 as da3

    view = metric_views(count=3)
    (packet,) = run("ViewToDa3", view=view)
    (again,) = run("ViewFromDa3", da3_geometry=packet, units="metric")
    out = {"poses": float((again.world_to_cam - view.world_to_cam).abs().max()), "gaps": []}
    fused = run("FuseViews", view=again, **{**FUSE, "tolerance": 0.0, "edge_threshold": 0.0})[1]
    sizes = view.mask.sum(dim=(1, 2)).tolist()
    for index, mine in enumerate(fused.cloud.points.split(sizes)):
        cloud = da3.DA3GeometryToPointCloud.execute(packet, index, 0.0, True, 1).result[0]
        pixel = view.depth[index][view.mask[index]] / view.intrinsics[index, 0, 0]  # its width on the surface
        gap = (cloud["points"] - mine).norm(dim=1) / pixel
        out["gaps"].append([float(gap.min()), float(gap.max())])
    (mesh,) = da3.DA3GeometryToMesh.execute(packet, 1, 1, 0.0, 0.0, True, True).result
    low, high = (getattr(mesh.vertices[0], name)(0).values.tolist() for name in ("min", "max"))
    return out | {"mesh": [low, high]}


def video(folder):
    """Frames of a VIDEO by core's own node as the views' images, every second one fused."""
    from fractions import Fraction

    from comfy_api.latest import InputImpl, Types
    from comfy_extras import nodes_video

    view = metric_views(count=6, height=32, width=48)
    made = InputImpl.VideoFromComponents(Types.VideoComponents(images=view.image, frame_rate=Fraction(8)))
    frames = nodes_video.GetVideoComponents.execute(made).result[0]
    fused = run("FuseViews", view=replace(view, image=frames), **{**FUSE, "every": 2, "edge_threshold": 0.0})[
        1
    ]
    folder_paths.set_output_directory(folder)
    large = frames.repeat_interleave(2, 1).repeat_interleave(2, 2)
    saved, _ = run("SaveColmap", cloud=fused, images=large, **SAVE)
    return {
        "folder": saved,
        "indices": list(fused.indices),
        "points": len(fused.cloud.points),
        "colors": fused.cloud.colors is not None,
    }


def sentence(call):
    try:
        call()
    except (ValueError, OSError) as error:
        return str(error)
    return None


def refusals(folder):
    folder_paths.set_output_directory(folder)
    with open(os.path.join(folder, "file"), "wb"):
        pass
    relative, metric = relative_views(), metric_views(count=2)
    cloud = run("FuseViews", view=relative, **FUSE)[1]
    far = metric.world_to_cam.clone()
    far[1, :3, 3] += 1000
    depth = {"method": "metric depth", "metric_view": 0}
    scale = {"view": relative, "fov_degrees": 65.0}
    return {
        "no metric": sentence(lambda: run("ScaleViews", method=depth, **scale)),
        "relative metric": sentence(lambda: run("ScaleViews", method=depth, metric=relative, **scale)),
        "no poses": sentence(lambda: run("FuseViews", view=replace(relative, world_to_cam=None), **FUSE)),
        "apart": sentence(lambda: run("FuseViews", view=replace(metric, world_to_cam=far), **FUSE)),
        "voxel": sentence(lambda: run("FuseViews", view=metric, **{**FUSE, "voxel_size": 90.0})),
        "confidence": sentence(lambda: run("FuseViews", view=metric, **{**FUSE, "min_confidence": 3.0})),
        "nothing sure": sentence(
            lambda: run(
                "FuseViews",
                view=replace(metric, confidence=metric.depth * 0),
                **{**FUSE, "min_confidence": 3.0},
            )
        ),
        "not metres": sentence(lambda: run("SaveColmap", cloud=cloud, **{**SAVE, "units": "metric"})),
        "outside": sentence(lambda: run("SaveColmap", cloud=cloud, **{**SAVE, "filename_prefix": "../x"})),
        "in a file": sentence(
            lambda: run("SaveColmap", cloud=cloud, **{**SAVE, "filename_prefix": "file/x"})
        ),
    }


def cancelled(folder, at):
    """Cancel at a check of Fuse Views, then of Save COLMAP: how each ended,
    and what lies in the output folder.
    """
    folder_paths.set_output_directory(folder)
    view = metric_views()
    cloud = run("FuseViews", view=view, **FUSE)[1]
    calls = {
        "FuseViews": lambda: run("FuseViews", view=view, **FUSE),
        "SaveColmap": lambda: run("SaveColmap", cloud=cloud, **SAVE),
    }
    out, checked = {}, management.throw_exception_if_processing_interrupted
    for name, call in calls.items():
        seen = [0]

        def check(seen=seen):
            if seen[0] == at:
                management.interrupt_current_processing(True)
            seen[0] += 1
            checked()

        management.throw_exception_if_processing_interrupted = check
        try:
            call()
            out[name] = False
        except management.InterruptProcessingException:
            out[name] = True
        finally:
            management.throw_exception_if_processing_interrupted = checked
    return out | {
        "left": sorted(os.listdir(os.path.join(folder, "colmap")))
        if os.path.isdir(os.path.join(folder, "colmap"))
        else []
    }
