"""Load Depth in a real ComfyUI: names of files that come through a link, and files of other programs."""

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.comfyui
FILE = "inside_depth_files.py"


def test_the_background_of_blenders_z_pass_is_sky_once_it_is_stated(inside, tmp_path):
    """Its 1e10 is a distance to nobody but its renderer: as one it pushes everything else to depth 0
    of a joint latent.
    """
    result = inside(FILE, "z_pass", folder=str(tmp_path))
    assert result["as it is"].startswith("depth 1 x 32 x 48, 2 to 1e+10 metres")
    assert (
        result["stated"]
        == "depth 1 x 32 x 48, 2 to 6 metres, larger = farther, 768 of 1536 pixels invalid (50.0%)"
    )
    assert result["sky"] == 768


@pytest.mark.parametrize("name", ["LoadDepth", "LoadJointLatent"])
def test_the_name_of_a_file_may_come_through_a_link(inside, name):
    """Before the run core passes None for it: that is no fault, and no file to compare
    with the last run's.
    """
    assert inside(FILE, "linked_file", name=name) == {"check": None, "anew": True}


def test_a_linked_name_of_no_file_is_refused_in_the_same_sentence(inside, tmp_path):
    assert inside(FILE, "missing_file", folder=str(tmp_path)) == (
        "Expected a depth file at file, got 'gone.exr', which is not in ComfyUI's input folder. "
        "Put it there, or choose another."
    )


def test_a_changed_json_beside_a_png_is_read_anew(inside, tmp_path):
    """Scale .001, then .0002, then a JSON of the same size and date: no run may take an older one's depth
    for its own.
    """
    found = inside(FILE, "changing_sidecar", folder=str(tmp_path))
    assert (
        found["depths"] == [pytest.approx(metres) for metres in (5, 1, 2)] and len(set(found["prints"])) == 3
    )


def test_depth_anything_3s_own_export_goes_through_every_node(inside, tmp_path):
    """Image of 8 bits, camera in double precision: colors of the cloud and of the stereo pair are those
    of the image.
    """
    found = inside(FILE, "foreign_export", folder=str(tmp_path))
    assert found["image"] == pytest.approx([0, 51 / 255, 204 / 255]) and found["camera"] == "torch.float32"
    assert found["colors"] <= 204 / 255 + 1e-6 and found["exr"] <= 1
    assert "not read: world_points (float64 (1, 12, 16, 3))" in found["text"]


OVER_RANGE = "16-bit over a range"
KITTI, TUM, MILLIMETRES = "KITTI (1/256)", "TUM (1/5000)", "millimetres (0.001)"


@pytest.mark.parametrize("value, said, metres", [
    (5120, {"png_scale": 0.00390625}, 20),
    (5120, {"png_scale_preset": KITTI}, 20),
    (5120, {"png_scale_preset": KITTI, "png_scale": 0.003906250001}, 20),
    (10000, {"png_scale": 0.0002}, 2),
    (10000, {"png_scale": 0.0002, "png_scale_preset": "image"}, 2),
    (10000, {"png_scale_preset": TUM}, 2),
    (1234, {"png_scale_preset": MILLIMETRES}, 1.234),
    (65535, {"png_scale_preset": OVER_RANGE, "png_scale": 10.0}, 10),
    (32768, {"png_scale": 0.000152590219}, 10 / 65535 * 32768),
    (5120, {"png_scale": 0.5, "png_scale_preset": "as typed, or as the file says"}, 2560),
])  # fmt: skip
def test_a_scale_is_typed_or_chosen_by_name(inside, tmp_path, value, said, metres):
    found = inside(FILE, "load_scaled", folder=str(tmp_path), value=value, said=said)
    assert found["refused"] is None and found["depths"] == [pytest.approx(metres, rel=1e-6)]


@pytest.mark.parametrize("said, words", [
    ({}, "Expected grey.png to say its scale, got none. Set png_scale_preset or png_scale."),
    (
        {"units": "as the file says"},
        "its scale and units, got neither. Set png_scale_preset or png_scale, and units.",
    ),
    (
        {"file": "z.exr", "units": "as the file says"},
        "Expected z.exr to say its units, got none. Set units to metric",
    ),
    (
        {"png_scale": 0.5, "png_scale_preset": KITTI},
        "png_scale 0 beside png_scale_preset 'KITTI (1/256)', got 0.5. Set",
    ),
    (
        {"png_scale_preset": OVER_RANGE},
        "Expected in png_scale the depth of the last step, 65535, for '16-bit over a range', got 0.",
    ),
    (
        {"file": "z.exr", "png_scale_preset": KITTI},
        "Expected a PNG for png_scale_preset 'KITTI (1/256)', got z.exr.",
    ),
    (
        {"png_scale_preset": "NYU"},
        "Expected a png_scale_preset of ['as typed, or as the file says', 'millimetres (0.001)', 'KITTI",
    ),
    ({"png_scale": -1.0}, "Expected a png_scale of 0 or more, got -1.0."),
    (
        {"file": "z.exr", "exr_channel": "D"},
        "named 'D', got ['Z']. Name the one with the depth: exr_channel in Load",
    ),
])  # fmt: skip
def test_what_cannot_be_scaled_is_refused_by_the_names_of_the_widgets(inside, tmp_path, said, words):
    found = inside(FILE, "load_scaled", folder=str(tmp_path), value=5120, said=said)
    assert found["depths"] == [] and words in found["refused"] and "\n" not in found["refused"]


@pytest.mark.parametrize("said, scale, told", [
    ({"png_scale": 0.001}, 0.001, "one step is 0.001"),
    ({"png_scale": 0.00390625}, 1 / 256, "one step is 0.00390625"),
    ({"png_scale_preset": KITTI}, 1 / 256, "one step is 0.00390625"),
    ({"png_scale_preset": TUM}, 1 / 5000, "one step is 0.0002"),
    ({"png_scale_preset": MILLIMETRES}, 0.001, "one step is 0.001"),
    ({"png_scale_preset": OVER_RANGE, "png_scale": 10.0}, 10 / 65535, "one step is 0.0001525902"),
])  # fmt: skip
def test_other_programs_read_the_scale_that_was_chosen(inside, tmp_path, said, scale, told):
    found = inside(FILE, "save_scaled", folder=str(tmp_path), said=said)
    assert found["refused"] is None and told in found["text"][0]
    with Image.open(found["files"][0]) as picture:
        steps = np.asarray(picture).astype(np.float64)
    np.testing.assert_array_equal(steps, np.rint(np.array(found["depth"]) / scale))


@pytest.mark.parametrize("said", [{}, {"png_scale_preset": OVER_RANGE}], ids=["as before", "by name"])
def test_a_range_that_fills_the_steps_is_told(inside, tmp_path, said):
    found = inside(FILE, "save_scaled", folder=str(tmp_path), said=said)
    assert "the steps fill the depth's own range, as the file says" in found["text"][0]
    with Image.open(found["files"][0]) as picture:
        steps = np.asarray(picture)
    assert (steps.min(), steps.max()) == (1, 65535)


@pytest.mark.parametrize("name, inputs", [
    ("LoadDepth", {"png_scale": 0.00390625}),
    ("LoadDepth", {"png_scale": 0.0002, "background_at": 1e10}),
    ("SaveDepth", {}),
    ("LoadDepth", {"png_scale_preset": KITTI}),
    ("LoadDepth", {"png_scale_preset": "image"}),  # the upload button's value, moved on by a place
    ("SaveDepth", {"png_scale_preset": OVER_RANGE, "png_scale": 10.0}),
], ids=str)  # fmt: skip
def test_graphs_of_the_api_are_taken_with_the_preset_and_without(inside, name, inputs):
    assert inside(FILE, "accepted", name=name, inputs=inputs) is None


def test_a_preset_that_nobody_knows_is_refused_before_the_run(inside):
    assert (
        "got 'NYU'. Choose one."
        in inside(FILE, "accepted", name="LoadDepth", inputs={"png_scale_preset": "NYU"})
    )
    assert "NYU" in inside(FILE, "accepted", name="SaveDepth", inputs={"png_scale_preset": "NYU"})


def test_the_list_is_of_depth_files_and_has_what_save_depth_wrote(inside, tmp_path):
    """Of PNGs only those of 16-bit gray, in the input folder and anywhere below the output folder."""
    found = inside(FILE, "listed", folder=str(tmp_path))
    saved = [f"depth/new/d_{name} [output]" for name in ("00001_.png", "00002_.exr", "00003_.npz")]
    in_image = [f"Image/{name} [output]" for name in ("a.NPZ", "a.exr", "deep.png")]
    assert found["names"] == ["a.NPZ", "a.exr", "deep.png", *in_image, *saved]
    assert len(found["loaded"]) == 3 and max(found["loaded"]) < 1e-4
