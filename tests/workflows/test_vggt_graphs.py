"""The VGGT graphs: how they look as files, and run in a real ComfyUI on what ships with the pack."""

import json

import pytest

GRAPHS = ["vggt_reconstruct", "vggt_to_splat"]


def read(root, name, api=False):
    folder = root / "workflows" / ("api" if api else "")
    (path,) = folder.glob(f"{name}.json" if api else f"*_{name}.json")
    return json.loads(path.read_text(encoding="utf-8"))


def of_kind(graph, kind):
    return next(key for key, node in graph.items() if node["class_type"] == kind)


@pytest.fixture(params=GRAPHS)
def name(request):
    return request.param


def test_the_note_says_how_to_use_ones_own_images(root, name):
    text = read(root, name)["nodes"][0]["widgets_values"][0]
    assert "Your own images" in text and "VGGT-1B" in text and "models/geometry_estimation" in text


@pytest.mark.comfyui
def test_ones_own_images_go_in_as_the_note_says(server, runner, root, installed):
    """A Load Image for each and one Batch Images, of two sizes."""
    np, image = pytest.importorskip("numpy"), pytest.importorskip("PIL.Image")
    note = read(root, GRAPHS[1])["nodes"][0]["widgets_values"][0]
    assert "a *Load Image* for each and one *Batch Images*" in note
    graph = read(root, GRAPHS[1], api=True)
    (installed / "input").mkdir(exist_ok=True)
    for number, side in enumerate((112, 140)):
        cells = np.random.default_rng(3).integers(0, 256, (7, 7, 3), dtype=np.uint8)
        image.fromarray(cells).resize((side, side)).save(installed / "input" / f"own{number}.png")
        graph[f"own{number}"] = {"class_type": "LoadImage", "inputs": {"image": f"own{number}.png"}}
    wires = {f"images.image{number}": [f"own{number}", 0] for number in range(2)}
    views = of_kind(graph, "SpatialWeave_LoadExampleViews")
    graph[views] = {"class_type": "BatchImagesNode", "inputs": wires}
    graph[of_kind(graph, "SpatialWeave_SaveColmap")]["inputs"]["filename_prefix"] = "own/two"
    server[0].wait(server[0].queue(graph), 120)
    (folder,) = (installed / "output" / "own").iterdir()
    assert len(json.loads((folder / "transforms.json").read_text())["frames"]) == 2


@pytest.mark.comfyui
def test_vggt_reconstruct_saves_one_cloud_of_four_views(server, runner, root, tmp_path):
    """Read by another program: the cones' orange and the room's gray, in front of the first camera."""
    plyfile = pytest.importorskip("plyfile")
    paths = server[0].collect(
        server[0].wait(server[0].queue(read(root, "vggt_reconstruct", api=True)), 120), tmp_path
    )
    (path,) = [path for path in paths if path.suffix == ".ply" and "vggt_reconstruct" in path.name]
    points = plyfile.PlyData.read(path)["vertex"]
    red, color = points["red"].astype(int), points["blue"].astype(int)
    blue = color - red > 60
    assert 100_000 < len(points) < 4 * 224 * 224 and 0.01 < blue.mean() < 0.2
    assert (points["z"] < 0).mean() > 0.99, "the camera looks along -z"


@pytest.mark.comfyui
def test_vggt_to_splat_saves_a_folder_that_colmap_reads(server, runner, root, installed):
    pycolmap = pytest.importorskip("pycolmap")
    graph = read(root, "vggt_to_splat", api=True)
    save = of_kind(graph, "SpatialWeave_SaveColmap")
    server[0].wait(server[0].queue(runner.change_inputs(graph, [f"{save}.filename_prefix=splat/one"])), 120)
    (folder,) = (installed / "output" / "splat").iterdir()
    scene = pycolmap.Reconstruction(str(folder / "sparse" / "0"))
    assert scene.num_reg_images() == 4 and 50_000 < scene.num_points3D() <= 100_000
    assert len(json.loads((folder / "transforms.json").read_text())["frames"]) == 4
    assert scene.compute_mean_reprojection_error() < 1, "points fall on the pixels that they are from"
