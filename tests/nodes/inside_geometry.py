"""Called by worker.py inside ComfyUI: views through our nodes and through core's own depth and 3D nodes."""

import torch

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py


def run(node, **inputs):
    return core.NODE_CLASS_MAPPINGS[f"SpatialWeave_{node}"].EXECUTE_NORMALIZED(**inputs).result


def scene(height=23, width=37, batch=1, camera=True):
    """A floor and a box before it, with a NaN pixel and a row of sky; everything odd in size."""
    x = torch.linspace(0, 1, width).expand(batch, height, width)
    depth = (2 + x).clone()
    depth[:, height // 2 :, : width // 3] = 1.25
    depth[:, -1, -1] = float("nan")
    depth[:, 0] = float("inf")
    others = {"image": torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(0))}
    if camera:
        others["intrinsics"] = ours("models.core.geometry.camera").intrinsics_from_fov(60.0, width, height)
    return ours("models.core.geometry.view").View.from_depth(depth, units="metric", **others)


def sentence(call):
    """The words of the error that a call ends with."""
    try:
        call()
    except (ValueError, IndexError, OSError) as error:
        return str(error)
    return None


def packets():
    """Core's MoGe and DA3 nodes on our packets, and our views of them."""
    from comfy_extras import nodes_depth_anything_3 as da3
    from comfy_extras import nodes_moge as moge

    view = scene()
    (packet,) = run("ViewToMoge", view=view, fov_degrees=65.0)
    fov, focal = moge.MoGeGeometryToFOV.execute(packet, "horizontal", "degrees").result
    (mesh,) = moge.MoGePointMapToMesh.execute(packet, 0, 1, 0.04, True).result
    (shown,) = moge.MoGeRender.execute(packet, "depth").result
    (again,) = run("ViewFromMoge", moge_geometry=packet, units="metric")
    (da3_packet,) = run("ViewToDa3", view=view)
    (da3_mesh,) = da3.DA3GeometryToMesh.execute(da3_packet, 0, 1, 0.04, 0.1, True, True).result
    (raw,) = da3.DA3Render.execute(
        da3_packet, {"output": "depth", "normalization": "raw", "apply_sky_clip": False}
    ).result
    (da3_again,) = run("ViewFromDa3", da3_geometry=da3_packet, units="metric")
    (from_raw, text) = run(
        "ViewFromImage", image=raw, values="depth as it is", units="metric", near=1.0, far=10.0,
        fov_degrees=0.0,
    )
    return {
        "fov": fov,
        "mesh_z": [float(mesh.vertices[..., 2].min()), float(mesh.vertices[..., 2].max())],
        "da3_mesh_z": [float(da3_mesh.vertices[..., 2].min()), float(da3_mesh.vertices[..., 2].max())],
        "render": list(shown.shape),
        "moge_equal": bool(torch.equal(again.depth, view.depth) and torch.equal(again.sky, view.sky)),
        "da3_equal": bool(torch.equal(da3_again.depth, view.depth) and torch.equal(da3_again.sky, view.sky)),
        "raw_equal": bool(torch.equal(from_raw.depth[view.mask], view.depth[view.mask])),
        "text": text,
    }


def rgba():
    """RGBA and one-channel depth pictures, and an RGBA picture beside them."""
    grey = torch.linspace(0.1, 1, 15).reshape(1, 3, 5, 1)
    alpha = torch.ones(1, 3, 5, 1)
    alpha[0, 0, 0] = 0
    options = {"values": "depth as it is", "units": "metric", "near": 1.0, "far": 10.0, "fov_degrees": 0.0}
    picture = torch.rand(1, 3, 5, 4)
    view, text = run(
        "ViewFromImage", image=torch.cat([grey, grey, grey, alpha], -1), picture=picture, **options
    )
    single, _ = run("ViewFromImage", image=grey, **options)
    valid, sky = run("ViewToMask", view=view)
    return {
        "picture": list(view.image.shape),
        "text": text,
        "valid": valid[0].tolist(),
        "sky": float(sky.sum()),
        "single": bool(torch.equal(single.depth, grey[..., 0])),
    }


def bad_depth(kind):
    """A depth picture of bad numbers: what becomes of it."""
    picture = torch.ones(1, 3, 5, 3)
    if kind == "all zero":
        picture = picture * 0
    if kind == "holes":
        picture[0, 0, 0], picture[0, 0, 1], picture[0, 0, 2] = float("nan"), float("inf"), -1.0
    options = {"values": "depth as it is", "units": "relative", "near": 1.0, "far": 10.0, "fov_degrees": 0.0}
    made = []
    refusal = sentence(lambda: made.append(run("ViewFromImage", image=picture, **options)))
    return {"refusal": refusal, "text": made[0][1] if made else None}


def batches():
    """Four depths with three pictures, and with one."""
    options = {"values": "depth as it is", "units": "relative", "near": 1.0, "far": 10.0, "fov_degrees": 0.0}
    depth = torch.ones(4, 3, 5, 3)
    refusal = sentence(lambda: run("ViewFromImage", image=depth, picture=torch.ones(3, 3, 5, 3), **options))
    (view, _) = run("ViewFromImage", image=depth, picture=torch.ones(1, 3, 5, 3), **options)
    return {"refusal": refusal, "broadcast": list(view.image.shape)}


def world_scene():
    """The same scene from a camera that stands in a world."""
    from dataclasses import replace

    pose = ours("models.core.geometry.camera").look_at((1.0, 2.0, 3.0), (0.0, 0.0, 0.0))
    return replace(scene(), world_to_cam=pose.unsqueeze(0))


def into_space(folder, frame):
    """Cloud, mesh and camera through core's savers and previews into files of `folder`;
    what our nodes said beside them.
    """
    import folder_paths
    from comfy_extras import nodes_load_3d as load_3d
    from comfy_extras import nodes_save_3d as save_3d

    folder_paths.set_output_directory(folder)
    folder_paths.set_temp_directory(folder)
    view = world_scene()
    options = {"index": 0, "fov_degrees": 65.0, "edge_threshold": 0.04, "frame": frame}
    cloud, holes, _ = run("PointCloud", view=view, max_points=1200000, **options)
    (mesh,) = run("DepthMesh", view=view, stride=1, **options)
    camera, fov_x, fov_y = run("ViewCamera", view=view, index=0, fov_degrees=65.0, frame=frame)
    save_3d.SavePointCloud.execute(cloud, {}, 640, 480, "cloud", camera_info=camera)
    save_3d.SaveGLB.PREPARE_CLASS_CLONE({"hidden_inputs": {}}).execute(mesh, "mesh")
    shown = load_3d.PreviewPointCloud.execute(cloud, {}, 640, 480, camera_info=camera)
    (file_3d,) = save_3d.MeshToFile3D.execute(mesh).result
    load_3d.Preview3D.execute(file_3d, camera_info=camera)
    return {
        "camera": camera,
        "shown_camera": shown.result[2] == camera,
        "fov": [fov_x, fov_y],
        "holes": float(holes.sum()),
        "pixels": holes.numel(),
        "depth": view.depth[0].tolist(),
        "image": view.image[0].tolist(),
    }


def cloud_camera():
    """The camera that Point Cloud from Depth makes for core's viewer of point clouds,
    and the points it is for.
    """
    view = world_scene()
    options = {"index": 0, "fov_degrees": 65.0, "edge_threshold": 0.04, "frame": "camera"}
    cloud, _, camera = run("PointCloud", view=view, max_points=1200000, **options)
    (points,) = ours("models.core.geometry.points").view_to_point_cloud(view)
    return {
        "camera": camera, "ply": cloud.get_bytes().hex(), "pixels": points.pixels.tolist(),
        "size": view.depth[0].shape,
    }


def mesh_file(path, shading, picture=True):
    """A mesh through core's writer into a GLB, and the picture it shows."""
    from comfy_extras import nodes_save_3d as save_3d

    view = scene()
    if not picture:
        view = ours("models.core.geometry.view").View.from_depth(view.depth, units="metric")
    given = {"index": 0, "fov_degrees": 65.0, "edge_threshold": 0.04, "stride": 1, "frame": "camera"}
    (mesh,) = run("DepthMesh", view=view, **given, **shading)
    (file_3d,) = save_3d.MeshToFile3D.execute(mesh).result
    file_3d.save_to(path)
    return view.image[0].tolist() if picture else None


def space_refusals():
    flat = {"index": 0, "fov_degrees": 65.0, "edge_threshold": 0.04, "frame": "camera"}
    points = {"max_points": 10, **flat}
    rough = ours("models.core.geometry.view").View.from_depth(
        torch.tensor([[1.0, 9.0], [9.0, 1.0]]), units="metric"
    )
    return {
        "index": sentence(lambda: run("PointCloud", view=scene(batch=2), **{**points, "index": 2})),
        "frame": sentence(lambda: run("PointCloud", view=scene(), **{**points, "frame": "world"})),
        "no points": sentence(lambda: run("PointCloud", view=rough, **points)),
        "no triangles": sentence(lambda: run("DepthMesh", view=rough, stride=1, **flat)),
    }


def save_and_load(folder, kind, scale=0.0, batch=1):
    """Save twice into an output folder, load the first file back through the input folder."""
    import folder_paths

    folder_paths.set_output_directory(folder)
    folder_paths.set_input_directory(folder)
    view = scene(batch=batch)
    node = core.NODE_CLASS_MAPPINGS["SpatialWeave_SaveDepth"].PREPARE_CLASS_CLONE(None)
    node.hidden = type(
        "Hidden", (), {"prompt": {"1": {"class_type": "Any"}}, "extra_pnginfo": {"workflow": {"nodes": []}}}
    )
    options = {"format": kind, "png_scale": scale, "exr_picture": True}
    first, second = (node.execute(view=view, filename_prefix="d %width%", **options).ui for _ in range(2))
    name = first["images" if kind == "png" else "files"][0]["filename"]
    loader = core.NODE_CLASS_MAPPINGS["SpatialWeave_LoadDepth"]
    again, text = run("LoadDepth", file=name, units="as the file says", png_scale=0.0, exr_channel="")
    other, _ = run("LoadDepth", file=f"{name} [output]", units="relative", png_scale=0.0, exr_channel="")
    return {
        "names": [
            [file["filename"] for file in shown["images" if kind == "png" else "files"]]
            for shown in (first, second)
        ],
        "said": first["text"][0],
        "listed": name in loader.GET_SCHEMA().inputs[0].options
        or name in ours("nodes.host.shared.folders").list_depth_files(),
        "valid": loader.validate_inputs(file=name),
        "fingerprint": loader.fingerprint_inputs(file=name, units="metric"),
        "units": [again.units, other.units],
        "error": float((again.depth[0] - view.depth[0]).abs().max()),
        "mask": bool(torch.equal(again.mask[0], view.mask[0])),
        "camera": bool(torch.equal(again.intrinsics, view.intrinsics)),
        "batch": len(again),
        "text": text,
        "depth": view.depth[0].tolist(),
    }


def saved_without_metadata(folder):
    """As ComfyUI started with --disable-metadata saves, and a name with the number in the batch."""
    import folder_paths
    from comfy.cli_args import args

    folder_paths.set_output_directory(folder)
    node = core.NODE_CLASS_MAPPINGS["SpatialWeave_SaveDepth"].PREPARE_CLASS_CLONE(None)
    node.hidden = type("Hidden", (), {"prompt": {"1": {}}, "extra_pnginfo": {"workflow": {}}})
    args.disable_metadata = True
    try:
        shown = node.execute(
            view=scene(batch=2), filename_prefix="b%batch_num%", format="png", png_scale=0.0, exr_picture=True
        ).ui
    finally:
        args.disable_metadata = False
    return [file["filename"] for file in shown["images"]]


def file_refusals(folder):
    import folder_paths

    folder_paths.set_output_directory(folder)
    folder_paths.set_input_directory(folder)
    save = {"filename_prefix": "d", "format": "png", "png_scale": 0.0, "exr_picture": True}
    empty = ours("models.core.geometry.view").View.from_depth(torch.zeros(1, 2, 2), units="metric")
    loader = core.NODE_CLASS_MAPPINGS["SpatialWeave_LoadDepth"]
    return {
        "outside": sentence(lambda: run("SaveDepth", view=scene(), **{**save, "filename_prefix": "../../d"})),
        "nothing valid": sentence(lambda: run("SaveDepth", view=empty, **save)),
        "too deep": sentence(lambda: run("SaveDepth", view=scene(), **{**save, "png_scale": 1e-6})),
        "not there": loader.validate_inputs(file="../secret.npz"),
    }


def judged():
    """A depth in relative units beside the truth: compared, aligned, compared again;
    normals of a floor that rises.
    """
    import math

    view_type, camera = ours("models.core.geometry.view").View, ours("models.core.geometry.camera")
    truth = scene()
    view = view_type.from_depth(truth.depth / 4 + 0.1, units="relative", mask=truth.mask)
    options = {"quantity": "depth", "fov_degrees": 65.0}
    compare = core.NODE_CLASS_MAPPINGS["SpatialWeave_CompareViews"].EXECUTE_NORMALIZED
    before = compare(view=view, reference=truth, alignment="scale", **options)
    aligned, text = run("AlignDepth", view=view, reference=truth, method="scale and shift", quantity="depth")
    after = compare(view=aligned, reference=truth, alignment="none", **options)
    intrinsics = camera.intrinsics_from_fov(60.0, 40, 30)
    y = (torch.arange(30) + 0.5 - 15) / intrinsics[1, 1]
    # nearer below: it faces up
    floor = (2 / (1 + y * math.tan(math.radians(30)))).reshape(1, 30, 1).expand(1, 30, 40)
    rising = view_type.from_depth(floor, units="metric", intrinsics=intrinsics)
    maps = [
        run("NormalsFromDepth", view=rising, style=style, fov_degrees=65.0, edge_threshold=0.04)[0]
        for style in ("opengl", "directx")
    ]
    return {
        "before": before.result[:7],
        "after": after.result[:7],
        "shown": after.ui.as_dict()["text"][0] == after.result[7],
        "text": text,
        "normals": [one[0, 15, 20].tolist() for one in maps],
        "refusal": sentence(lambda: compare(view=view, reference=truth, alignment="none", **options)),
        "size": sentence(
            lambda: run("AlignDepth", view=view, reference=rising, method="scale", quantity="depth")
        ),
    }


def stereo(height, width):
    """A pair of any size: its shapes, and which columns of a box stay known."""
    view = scene(height, width)
    out = run("StereoPair", view=view, parallax=4.0, screen=0.5, edge_threshold=0.04)
    bare = ours("models.core.geometry.view").View.from_depth(view.depth, units="metric")
    return {
        "shapes": [list(part.shape) for part in out],
        "holes": [float(part.mean()) for part in out[2:]],
        "refusal": sentence(
            lambda: run("StereoPair", view=bare, parallax=4.0, screen=0.5, edge_threshold=0.04)
        ),
    }


def upscaled(height, width):
    """A depth at three times its size: its outline is the image's; transparency is not looked at."""
    depth = torch.full((1, height, width), 4.0)
    depth[:, :, : width // 2] = 2.0
    image = torch.zeros(1, 3 * height, 3 * width, 4)
    image[:, :, : 3 * (width // 2), :3] = 0.8
    view = ours("models.core.geometry.view").View.from_depth(depth, units="metric")
    (large,) = run("UpscaleDepth", view=view, image=image)
    return {
        "units": large.units,
        "shape": list(large.depth.shape),
        "left": large.depth[..., : 3 * (width // 2)].unique().tolist(),
        "right": large.depth[..., 3 * (width // 2) :].unique().tolist(),
        "refusal": sentence(lambda: run("UpscaleDepth", view=view, image=image[:, :height])),
    }


def odd_size(height, width):
    """Every node that makes pictures or masks keeps the size to the pixel."""
    view = scene(height, width)
    pictures = [
        *run("StereoPair", view=view, parallax=4.0, screen=0.5, edge_threshold=0.04),
        *run("ViewToMask", view=view),
        run("NormalsFromDepth", view=view, style="opengl", fov_degrees=65.0, edge_threshold=0.04)[0],
        run(
            "PointCloud", view=view, index=0, fov_degrees=65.0, edge_threshold=0.0, max_points=10,
            frame="camera",
        )[1],
        core.NODE_CLASS_MAPPINGS["SpatialWeave_PreviewDepth"]
        .EXECUTE_NORMALIZED(view=view, style="control", near_percentile=0.0, far_percentile=100.0)
        .result[0],
    ]
    return sorted({tuple(picture.shape[1:3]) for picture in pictures})
