"""Called by worker.py inside ComfyUI: depth files of other programs, and names of files that come
through a link.
"""

import asyncio
import json
import math
import os
from pathlib import Path

import folder_paths
import torch

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py
WIDGETS = {"units": "as the file says", "png_scale": 0.0, "exr_channel": ""}
# without what came later
SAVED = {"filename_prefix": "scaled", "format": "png", "png_scale": 0.0, "exr_picture": True}


def node(name):
    return core.NODE_CLASS_MAPPINGS[f"SpatialWeave_{name}"]


def checked(graph):
    """What ComfyUI's own check has against a graph in API form, or None; core's switch is loaded for it."""
    import execution

    extras = os.path.join(folder_paths.base_path, "comfy_extras")
    for name in ("nodes_logic.py", "nodes_primitive.py"):
        assert asyncio.run(core.load_custom_node(os.path.join(extras, name), module_parent="comfy_extras")), (
            name
        )
    good, error, _, node_errors = asyncio.run(execution.validate_prompt("checked", graph, None))
    return None if good else json.dumps([error, node_errors], default=str)


def linked_file(name):
    """The name of a file behind a link that fits any socket, core's switch: what core's check says,
    and what it asks for the cache.
    """
    graph = {
        "1": {"class_type": "PrimitiveString", "inputs": {"value": "depth.exr"}},
        "2": {
            "class_type": "ComfySwitchNode",
            "inputs": {"switch": False, "on_false": ["1", 0], "on_true": ["1", 0]},
        },
        "3": {"class_type": f"SpatialWeave_{name}", "inputs": {"file": ["2", 0]}},
    }
    if name == "LoadDepth":
        graph["3"]["inputs"] |= WIDGETS
        shown = {"style": "colour", "near_percentile": 0.0, "far_percentile": 100.0}
        graph["4"] = {"class_type": "SpatialWeave_PreviewDepth", "inputs": {"view": ["3", 0], **shown}}
    else:
        graph["4"] = {
            "class_type": "SpatialWeave_SaveJointLatent",
            "inputs": {"samples": ["3", 0], "filename_prefix": "x"},
        }
    return {"check": checked(graph), "anew": math.isnan(node(name).fingerprint_inputs(file=None))}


def z_pass(folder):
    """An EXR as Blender writes it, loaded without and with its background stated."""
    folder_paths.set_input_directory(folder)
    depth = torch.linspace(2, 6, 48).repeat(32, 1)
    depth[:16] = 1e10
    data = ours("models.core.export.exr").encode_exr({"Z": depth.numpy()})
    Path(folder, "z.exr").write_bytes(data)
    said = {**WIDGETS, "units": "metric"}
    as_it_is = node("LoadDepth").EXECUTE_NORMALIZED(file="z.exr", **said).result
    stated = node("LoadDepth").EXECUTE_NORMALIZED(file="z.exr", **said, background_at=1e10).result
    return {"as it is": as_it_is[1], "stated": stated[1], "sky": int(stated[0].sky.sum())}


def missing_file(folder):
    """The sentence of a run whose link brought the name of a file that is not there."""
    folder_paths.set_input_directory(folder)
    try:
        node("LoadDepth").EXECUTE_NORMALIZED(file="gone.exr", **WIDGETS)
    except ValueError as error:
        return str(error)
    return None


def sentence(work):
    try:
        work()
    except ValueError as error:
        return str(error)
    return None


def load_scaled(folder, value, said):
    """What Load Depth makes of a PNG of this one value, by Pillow, as "depths" or as the sentence it
    refuses with.
    """
    from PIL import Image

    folder_paths.set_input_directory(folder)
    Image.new("I;16", (4, 3), value).save(Path(folder, "grey.png"))
    Path(folder, "z.exr").write_bytes(
        ours("models.core.export.exr").encode_exr({"Z": torch.ones(3, 4).numpy()})
    )
    said = {"file": "grey.png", **WIDGETS, "units": "metric", **said}
    found = []
    refused = sentence(lambda: found.append(node("LoadDepth").EXECUTE_NORMALIZED(**said).result[0]))
    return {"refused": refused, "depths": [float(value) for view in found for value in view.depth.unique()]}


def save_scaled(folder, said):
    """A depth of 2 to 5 metres through Save Depth: what was said, and the path of the file."""
    folder_paths.set_output_directory(folder)
    depth = torch.linspace(2, 5, 12).reshape(1, 3, 4)
    view = ours("models.core.geometry.view").View.from_depth(depth, units="metric")
    saver = node("SaveDepth").PREPARE_CLASS_CLONE(None)
    said = {**SAVED, **said}
    found = []
    refused = sentence(lambda: found.append(saver.EXECUTE_NORMALIZED(view=view, **said).ui))
    files = [str(Path(folder, file["filename"])) for shown in found for file in shown.get("images", ())]
    return {
        "refused": refused, "text": [line for shown in found for line in shown["text"]], "files": files,
        "depth": depth[0].tolist(),
    }


def accepted(inputs, name):
    """What core's check has against one of our nodes with these inputs from the API, or None."""
    graph = {
        "1": {"class_type": "PrimitiveString", "inputs": {"value": "depth.exr"}},
        "2": {
            "class_type": "ComfySwitchNode",
            "inputs": {"switch": False, "on_false": ["1", 0], "on_true": ["1", 0]},
        },
        "3": {"class_type": "SpatialWeave_LoadDepth", "inputs": {"file": ["2", 0], **WIDGETS}},
        "4": {"class_type": "SpatialWeave_SaveDepth", "inputs": {"view": ["3", 0], **SAVED}},
    }
    next(node for node in graph.values() if node["class_type"] == f"SpatialWeave_{name}")["inputs"] |= inputs
    return checked(graph)


def changing_sidecar(folder):
    """What Load Depth reads of one PNG, and its fingerprint, while the JSON beside it changes."""
    from PIL import Image

    folder_paths.set_input_directory(folder)
    Image.new("I;16", (4, 3), 5000).save(Path(folder, "d.png"))
    beside, depths, prints = Path(folder, "d.json"), [], []
    for scale in ("0.001 ", "0.0002", "0.0004"):
        beside.write_text(f'{{"depth_units": "metric", "depth_scale": {scale}}}')
        os.utime(beside, (1, 1))
        prints.append(node("LoadDepth").fingerprint_inputs(file="d.png", **WIDGETS))
        depths.append(
            float(node("LoadDepth").EXECUTE_NORMALIZED(file="d.png", **WIDGETS).result[0].depth.max())
        )
    return {"depths": depths, "prints": prints}


def foreign_export(folder):
    """An NPZ in the layout of Depth Anything 3's exporter through what makes clouds, meshes, normals,
    pairs and files of it.
    """
    import numpy as np

    folder_paths.set_input_directory(folder)
    folder_paths.set_output_directory(folder)
    image = np.zeros((1, 12, 16, 3), np.uint8)
    image[..., 1], image[..., 2] = 51, 204
    depth = np.linspace(2, 3, 192).reshape(1, 12, 16)
    np.savez(
        Path(folder, "da3.npz"), image=image, depth=depth, conf=np.ones_like(depth),
        extrinsics=np.eye(4)[None, :3],
        intrinsics=np.array([[[20.0, 0, 8], [0, 20, 6], [0, 0, 1]]]), world_points=np.zeros((1, 12, 16, 3)),
    )  # fmt: skip
    view, text = node("LoadDepth").EXECUTE_NORMALIZED(file="da3.npz", **{**WIDGETS, "units": "metric"}).result
    clouds = ours("models.core.geometry.points").view_to_point_cloud(view)
    ours("models.core.geometry.mesh").view_to_mesh(view)
    ours("models.core.geometry.normals").view_with_normals(view)
    ours("models.core.geometry.stereo").stereo_pair(view)
    for packet in ("Moge", "Da3"):
        back = (
            node(f"ViewTo{packet}")
            .EXECUTE_NORMALIZED(view=view, **({"fov_degrees": 60.0} if packet == "Moge" else {}))
            .result[0]
        )
        node(f"ViewFrom{packet}").EXECUTE_NORMALIZED(units="metric", **{f"{packet.lower()}_geometry": back})
    exr = ours("models.core.export.depth_files")
    written = exr.write_depth(Path(folder, "out.exr"), view)
    return {
        "image": view.image[0, 0, 0].tolist(),
        "camera": str(view.intrinsics.dtype),
        "colors": float(clouds[0].colors.max()),
        "exr": float(exr.read_depth(written, channel="B", units="relative").depth.max()),
        "text": text,
    }


def listed(folder):
    """What Load Depth offers of two folders: images by Pillow, names alone, and Save Depth's files."""
    from PIL import Image

    given, written = Path(folder, "input"), Path(folder, "output")
    for place in (given, written / "Image"):
        place.mkdir(parents=True)
        Image.new("I;16", (4, 3), 500).save(place / "deep.png")
        Image.new("RGB", (4, 3)).save(place / "picture.png")
        Image.new("L", (4, 3)).save(place / "gray.png")
        (place / "empty.png").write_bytes(b"")
        for name in ("a.exr", "a.NPZ", "a.json", "a.jpg"):
            (place / name).write_bytes(b"x")
    (given / "below").mkdir()
    Image.new("I;16", (4, 3), 500).save(given / "below/deep.png")
    folder_paths.set_input_directory(str(given))
    folder_paths.set_output_directory(str(written))
    view = ours("models.core.geometry.view").View.from_depth(torch.rand(1, 3, 4) + 1, units="metric")
    for kind in ("png", "exr", "npz"):
        saver = node("SaveDepth").PREPARE_CLASS_CLONE(None)
        saver.EXECUTE_NORMALIZED(view=view, **SAVED | {"filename_prefix": "depth/new/d", "format": kind})
    names = node("LoadDepth").define_schema().inputs[0].options
    saved = [name for name in names if name.startswith("depth/")]
    loaded = [node("LoadDepth").EXECUTE_NORMALIZED(file=name, **WIDGETS).result[0] for name in saved]
    return {"names": names, "loaded": [float((one.depth - view.depth).abs().max()) for one in loaded]}
