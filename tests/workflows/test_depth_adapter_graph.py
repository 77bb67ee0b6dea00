"""The graph of Depth Adapter, run in a real ComfyUI on what ships with the pack."""

import json

import pytest

WITH, BASE = 16, 17  # the nodes that save


def read(root, api=False):
    (path,) = (root / "workflows" / ("api" if api else "")).glob("*depth_adapter.json")
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(server, runner, root, tmp_path_factory):
    """The images (4, 128, 128, 3) in [0, 1] of both runs, with other values of the graph."""
    np, image = pytest.importorskip("numpy"), pytest.importorskip("PIL.Image")

    def start(*changes):
        graph = runner.change_inputs(read(root, api=True), list(changes))
        folder = tmp_path_factory.mktemp("images")
        paths = sorted(server[0].collect(server[0].wait(server[0].queue(graph), 300), folder))
        shown = {number: [] for number in (WITH, BASE)}
        for path in paths:
            number = int(path.name.split("_")[0])
            if number in shown:
                shown[number].append(np.asarray(image.open(path).convert("RGB"), dtype=np.float32) / 255)
        return {number: np.stack(images) for number, images in shown.items()}

    return start


def test_the_note_says_how_to_use_ones_own_depth_and_model(root):
    text = read(root)["nodes"][0]["widgets_values"][0]
    assert "Your own depth" in text and "models/model_patches" in text and "end_percent" in text


@pytest.mark.comfyui
def test_four_views_become_four_images_that_follow_their_depth(run, root):
    """Judged by a network that was trained on neither: depth of the results against that of the views."""
    torch = pytest.importorskip("torch")
    import spatialweave.models.vggt.examples as examples
    from spatialweave.models.world.judges.predictor import Predictor
    from spatialweave.models.world.judges.scene_maps import compare_maps

    images = run()
    assert images[WITH].shape == images[BASE].shape == (4, 128, 128, 3)
    views = examples.load_example("cones").movedim(-1, 1)
    views = torch.nn.functional.interpolate(views, (128, 128), mode="bilinear", antialias=True).movedim(1, -1)
    judge = Predictor.from_pretrained()
    wanted = judge.read(views)
    figures = {
        number: {
            name: float(values.nanmean())
            for name, values in compare_maps(judge.read(torch.from_numpy(made)), wanted).items()
        }
        for number, made in images.items()
    }
    assert figures[WITH]["depth_absrel"] < 0.8 * figures[BASE]["depth_absrel"], figures
    assert figures[WITH]["segmentation_miou"] > 1.2 * figures[BASE]["segmentation_miou"], figures


@pytest.mark.comfyui
def test_strength_zero_is_the_base_to_the_last_bit(run):
    images = run("11.strength=0")
    assert (images[WITH] == images[BASE]).all()
