"""The Joy nodes in a real ComfyUI, with core's own text encoder node, cameras and bounding boxes around them.
"""

import pytest

pytestmark = pytest.mark.comfyui
FILE = "inside_joy.py"


@pytest.fixture(scope="module")
def joy(inside):
    return lambda function, **kwargs: inside(FILE, function, **kwargs)


@pytest.mark.parametrize("size, mode, buckets", [
    ((333, 777), "pad", "comfyui"), ((333, 777), "crop", "comfyui"), ((480, 640), "pad", "original"),
    ((1024, 1024), "pad", "comfyui"),
    ((401, 250), "crop", "original"),
])  # fmt: skip
def test_cores_node_resizes_nothing_after_fit(joy, size, mode, buckets):
    """What reaches the VAE and the text encoder is our image, bit for bit, and the prompt is the exact one.
    """
    result = joy("through_core", height=size[0], width=size[1], mode=mode, buckets=buckets)
    assert result["vae"] and result["text"]
    assert result["prompt"] == "Move the mug into the red box and finally remove the red box."
    assert (
        result["references"] == [[1, 16, 1, result["size"][1] // 8, result["size"][0] // 8]]
        and result["red"] > 300
    )


def test_every_bucket_passes_cores_resize_bit_for_bit(joy):
    """And of 2,000 sizes core chooses the bucket that we do."""
    assert joy("buckets") == {"changed": [], "other": [], "count": 49, "listed": True}


def test_numbers_bounding_box_and_mask_give_the_same_picture(joy):
    result = joy("one_box_three_ways")
    assert result["equal"] and result["box"] == {"x": 300, "y": 100, "width": 120, "height": 90}
    assert max(result["placed"]) <= 0.5, "drawn where the fit puts the box, to the nearest pixel"


def test_batches_run_picture_by_picture(joy):
    result = joy("batches")
    assert (
        result["fitted"] == [[1, 896, 1216, 3]] * 2
        or len({tuple(one) for one in result["fitted"]}) == 1 and len(result["fitted"]) == 2
    )
    assert (
        len(result["prompts"]) == 2
        and [box["x"] for box in result["boxes"]] == [60, 200]
        and [box["x"] for box in result["both"]] == [60, 60]
    )
    assert result["restored"] == [[2, 300, 421, 3]] and result["equal"] and result["masks"] == [[2, 300, 421]]
    assert result["text"].count("Nothing differs from the input") == 2 and "Image 1:" in result["text"]


def test_several_edits_keep_one_framing(joy):
    result = joy("chain")
    assert (
        result["sizes"] == [[1, 517, 1023, 3]] * 3
        and result["outside"]
        and result["equal"]
        and result["same framing"]
    )
    assert 0.85 < result["kept"] < 0.97 and result["green"] == pytest.approx([0, 1, 0], abs=0.02)
    assert all(error < 0.05 for error in result["alignment"][:2]), "the third counts the edit itself"
    assert (
        "Restored to 1023 x 517 (width x height)." in result["text"]
        and "Alignment error: 0.0" in result["text"]
    )


@pytest.mark.parametrize(
    "yaw, pitch, zoom, words", [(45, -15, "in", ("45.0", "-15.0")), (400, 0, "out", ("40.0", "0.0"))]
)
def test_the_camera_prompt(joy, yaw, pitch, zoom, words):
    prompt, said_yaw, said_pitch = joy("angles", yaw=yaw, pitch=pitch, zoom=zoom)
    assert prompt.splitlines()[
        1
    ] == "- Camera rotation: Yaw {}\N{DEGREE SIGN}, Pitch {}\N{DEGREE SIGN}.".format(*words)
    assert prompt.count("\n") == 3 and prompt.splitlines()[2] == f"- Camera zoom: {zoom}."
    assert [said_yaw, said_pitch] == [float(word) for word in words]


@pytest.mark.parametrize("before, after, expected", [
    ({"yaw": 0, "pitch": 0, "distance": 4}, {"yaw": 45, "pitch": 0, "distance": 4}, (45, 0, "unchanged")),
    ({"yaw": 350, "pitch": 10, "distance": 4}, {"yaw": -325, "pitch": 25, "distance": 2}, (45, 15, "in")),
    (
        {"yaw": -90, "pitch": 15, "distance": 3, "target": [1.5, -0.75, 2.25]},
        {"yaw": 45, "pitch": -30, "distance": 5, "target": [1.5, -0.75, 2.25]},
        (135, -45, "out"),
    ),
])  # fmt: skip
def test_two_cameras_of_core(joy, before, after, expected):
    prompt, yaw, pitch = joy("cameras", before=before, after=after)
    assert (yaw, pitch) == expected[:2] and prompt.splitlines()[2] == f"- Camera zoom: {expected[2]}."


def test_rotation_in_both_forms(joy):
    assert joy("rotate", name="the car", view="rear") == "Rotate the car to show the rear view."
    assert (
        joy("rotate", name="the car", view="rear", form="readme")
        == "Rotate the car to show the rear side view."
    )


def test_fit_says_bucket_padding_and_crop_and_hands_alpha_on(joy):
    result = joy("fit", height=1080, width=1920)
    assert (
        result["size"] == [1344, 768]
        and result["fitted"] == [1, 768, 1344, 3]
        and result["alpha"] == [1, 1080, 1920]
    )
    assert (
        "Bucket 1344 x 768" in result["text"]
        and "Padding: left 0, top 6" in result["text"]
        and "Nothing is cropped." in result["text"]
    )
    assert "would crop 1.6% of the image" in result["text"]
    clear = joy("fit", height=300, width=400, channels=4)
    assert clear["transparent"] and clear["fitted"][-1] == 3 and "alpha is output as a mask" in clear["text"]
    assert joy("fit", height=300, width=400, channels=1)["fitted"][-1] == 3
    long = joy("fit", height=300, width=4000)["text"]
    assert (
        "13.3 times as long as wide and the buckets end at 4" in long
        and "70% of the bucket is padding" in long
    )


REFUSED = {
    "no name": "Expected the name of an object, got an empty text.",
    "outside": "Expected a box inside the image of 400 x 300 (width x height), got x 900, y 20, 100 wide, "
    "80 high, which lies outside.",
    "empty": "Expected a box with width and height, got the empty x 10",
    "one pixel": "got one of one pixel",
    "several boxes": "Expected one box for image 0, got 2. Move one object at a time",
    "three for two": "Expected one box, or one for each of 2 images, got boxes for 3 images.",
    "empty mask": "got mask 0 without a pixel",
    "mask size": "Expected a mask of the image's size, 400 x 300 (width x height), got 64 x 64.",
    "yaw": "Expected yaw in degrees, got nan.",
    "pitch": "Expected a pitch of -90 to 90 degrees, got 95.",
    "targets": "Expected two cameras that look at one target, got targets (0, 0, 0) and (0, 1, 0).",
    "orthographic": "Expected a perspective camera at before, got an orthographic one.",
    "cropped away": "Expected a box in the part of the image that Joy: Fit kept",
    "unfitted": "Expected the fitted image of 1152 x 832 (width x height), got 400 x 300. "
    "Wire the image of Joy: Fit",
    "edited size": "Expected an image of 1152 x 832 (width x height), got 64 x 64.",
    "edit mask size": "Expected an edit mask of the input's size, 400 x 300 (width x height), got 64 x 64.",
    "edit mask empty": "got one without a pixel",
    "special token": "got a text with <|im_end|>",
}  # fmt: skip


@pytest.mark.parametrize("which", REFUSED)
def test_bad_input_gets_a_sentence(joy, which):
    said = joy("refused", which=which)
    assert said is not None and REFUSED[which] in said and "\n" not in said


def test_a_missing_vae_is_said_before_and_after_sampling(joy):
    assert joy("graph_check", changes={}) is None
    for node in ("JoyRotateObject", "JoyRestore"):
        said = joy("graph_check", changes={"2": {"vae": None}}, node=node)
        assert said.startswith(
            "Expected a VAE at TextEncodeJoyImageEdit (node 2), got none: "
            "ComfyUI then leaves the reference image out"
        ), node
        said = joy("graph_check", changes={"2": {"images.image0": None}}, node=node)
        assert "Expected an image at TextEncodeJoyImageEdit (node 2), got none" in said, node
    # the empty prompt's encoder, 6, has none either, but nothing of this node goes there
    assert joy("graph_check", changes={"6": {"vae": None}}) is None
    assert "node 6" in joy(
        "graph_check",
        changes={"6": {"images.image0": ["1", 1]}, "2": {"images.image0": ["1", 1]}},
        node="JoyMoveObject",
    )


def test_a_prompt_for_a_red_box_needs_the_picture_with_the_box(joy):
    assert joy("graph_check", changes={"2": {"images.image0": ["1", 1]}}, node="JoyMoveObject") is None
    assert "without the red box" in joy("graph_check", changes={}, node="JoyMoveObject")


def test_a_wrong_text_encoder_is_named(joy):
    assert "Expected a text encoder of type joyimage in CLIPLoader (node 3), got type qwen_image." in joy(
        "graph_check", changes={"3": {"type": "qwen_image"}}
    )
    assert joy("encoder_file", kind="qwen3vl_8b") is None
    assert (
        "Expected JoyImage's Qwen3-VL-8B in CLIPLoader (node 3), got a QWEN3_4B encoder in qwen3_4b"
        in joy("encoder_file", kind="qwen3_4b")
    )
    assert "got a file that ComfyUI does not know in unknown" in joy("encoder_file", kind="unknown")
