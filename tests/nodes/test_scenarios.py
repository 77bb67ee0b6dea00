"""The fifteen things a user does in the first hour, each a test named after it, in a real ComfyUI.

What a scenario asks beyond what the pack has today is named in the docstring of its test: it is not covered.
"""

import json
import re

import numpy as np
import plyfile
import pytest
import trimesh
from scipy.spatial.transform import Rotation

pytestmark = pytest.mark.comfyui


@pytest.fixture(scope="module")
def geometry(inside):
    return lambda function, **kwargs: inside("inside_geometry.py", function, **kwargs)


@pytest.fixture(scope="module")
def loaded(inside, tiny_weights):
    """The tiny model, and the files whose helpers the scenarios share, loaded in ComfyUI."""
    inside("inside_sampling.py", "start", weights=tiny_weights)
    inside("inside_modes.py", "batches")
    inside("inside_geometry.py", "batches")
    inside("inside_matrix.py", "offered")
    inside("inside_compose.py", "registered")
    return inside


@pytest.fixture(scope="module")
def hour(loaded):
    return lambda function, **kwargs: loaded("inside_scenarios.py", function, **kwargs)


@pytest.fixture(scope="module")
def maps_hour(loaded, maps):
    return lambda function, **kwargs: loaded("inside_scenarios_maps.py", function, **kwargs)


@pytest.fixture(scope="module")
def maps(loaded):
    """The nodes of intrinsic maps, on small random autoencoders."""
    loaded("inside_intrinsic.py", "lora")  # the small bases
    return lambda function, **kwargs: loaded("inside_intrinsic_maps.py", function, **kwargs)


def test_scenario_01_rgba_and_one_channel_are_accepted_as_depth(geometry):
    result = geometry("rgba")
    assert result["picture"] == [1, 3, 5, 3] and result["single"] and result["sky"] == 0
    assert result["valid"][0] == [0, 1, 1, 1, 1] and result["valid"][1:] == [[1] * 5] * 2
    assert "1 of 15 depth pixels (6.7%) are invalid and left out: 1 masked out." in result["text"]


def test_scenario_01_rgba_and_one_channel_are_accepted_as_given_picture(hour):
    """RGB is used, the alpha goes on as a MASK of core's kind, and one notice says so."""
    result = hour("given_pictures")
    assert max(result["rgba"], result["grey"]) < 1e-5
    assert result["core"][0] == [1, 64, 48, 3] and result["core"][1] < 1 / 255
    assert result["as core's mask"] < 1 / 255 and result["masks"] == [[1, 64, 48], False, True]
    notes = result["notes"]
    assert notes["rgb"] == notes["grey as rgb"] == ""
    alpha = (
        "The image has an alpha channel: its colors were used as they are, and the alpha is output as a mask."
    )
    assert notes["rgba"] == notes["masked rgba"] == alpha
    assert notes["grey"] == "The image is gray: its one channel was used for red, green and blue."


def test_scenarios_01_02_04_each_notice_is_given_once_in_the_log_and_as_text(hour):
    result = hour("notes")
    pad = (
        "37 x 103 (height x width) is not a multiple of 16: it was sampled at 48 x 112, with "
        "the edges of the inputs replicated, and the result cropped back."
    )
    colours = [
        "1 image values are NaN or infinite and were set to 0.",
        "2 image values are outside [0, 1] and were clamped.",
        "The image has an alpha channel: its colors were used as they are, and the alpha is "
        "output as a mask.",
    ]
    holes = "70 of 3811 depth pixels (1.8%) are invalid and left out."
    stretched = "The image_mask of 20 x 30 was stretched to 37 x 103 (height x width)."
    wanted = {"image": [*colours, pad], "depth": [holes, pad], "both": [*colours, holes, pad, stretched]}
    assert {name: text.splitlines() for name, text in result["said"].items()} == wanted
    assert result["heard"] == {name: ["INFO: " + "\n".join(lines)] for name, lines in wanted.items()}


def test_scenario_01_intrinsic_maps_take_rgba_and_one_channel(maps):
    """Encode Intrinsics' pictures and the one beside Decode Intrinsics.

    One channel is no normal map, which a sentence says.
    """
    result, alpha = (
        maps("channels"),
        "the image has an alpha channel: its colors were used as they are, and the alpha is output",
    )
    assert result["latents"] < 1e-5 and result["alphas"] < 1e-6
    assert [
        len(result["notes"].get(name, ()))
        for name in ("rgba normals", "rgba both", "rgb", "mask", "one channel")
    ] == [1, 2, 0, 0, 0]
    assert all(alpha in note for notes in result["notes"].values() for note in notes)
    beside = maps("picture_beside", channels=4)
    assert (
        beside["picture"] < 1e-6
        and beside["alpha"] < 1e-6
        and len(beside["said"]) == 1
        and alpha[11:] in beside["said"][0]
    )
    assert maps("picture_beside", channels=1)["picture"] < 1e-6
    said = maps("refused", case="grey normals")
    assert "at normals, got (1, 8, 8, 1)" in said and "Normals from Depth" in said


def test_scenarios_01_02_04_only_the_page_that_runs_gets_the_text_and_its_next_run_clears_it(hour):
    """Nothing is sent where there is nothing to say or to clear, nor to every page for a run of none."""
    assert hour("shown_under_the_node") == [["One.\nTwo.", "7", "first"], ["", "7", "first"]]


@pytest.mark.parametrize("size", [(517, 1023), (3, 300), (2, 2)])
def test_scenario_02_odd_wide_and_tiny_depths_keep_their_size(geometry, size):
    assert geometry("odd_size", height=size[0], width=size[1]) == [list(size)]


@pytest.mark.parametrize("size", [(37, 103), (16, 240), (3, 5)])
def test_scenario_02_a_joint_run_gives_the_size_that_was_asked_for(hour, size):
    """Padded inside to whole patches of 16, which is said, and cropped by Decode Joint Latent, so no un-crop
    is needed.
    """
    *got, heard = hour("asked_size", height=size[0], width=size[1])
    padded = [-(-side // 16) * 16 for side in size]
    assert got == [list(size)] * 2
    notes = [line for line in heard if f"sampled at {padded[0]} x {padded[1]}" in line]
    large = [line for line in heard if "trained at 128 x 128" in line]  # of more than 1.5 times that
    assert len(notes) == (padded != list(size)) and len(large) == (max(size) > 192)
    assert len(heard) == len(notes) + len(large)


@pytest.mark.parametrize("mode", ["image_to_depth", "depth_to_image"])
def test_scenario_02_a_given_picture_or_depth_of_odd_size_comes_back_in_it(loaded, mode):
    result = loaded("inside_modes.py", "agreement", mode=mode, size=[37, 103])
    assert result["shapes"] == [[1, 37, 103, 3], [1, 37, 103]] and result["kept"] == [True, True]


@pytest.mark.parametrize("size", [(75, 53), (64, 48), (24, 200)])
def test_scenario_02_intrinsic_maps_of_odd_size_are_padded_and_come_back_in_it(maps_hour, size):
    """The image's latent must have the padded size: one of core's VAE Encode, which crops, is refused in one
    sentence.
    """
    result, padded = (
        maps_hour("sizes", height=size[0], width=size[1]),
        tuple(-(-side // 8) * 8 for side in size),
    )
    assert result["sizes"] == [list(size)] * 5 and result["finite"] and result["off"] == 0
    odd = padded != size
    assert len(result["said"]) == odd and all(
        "padded to {} x {}".format(*padded) in line for line in result["said"]
    )
    assert bool(result["refusal"]) == odd
    assert not odd or ("one height and width" in result["refusal"] and "\n" not in result["refusal"])


WRONG_FILES = {
    "double_stream_modulation_img.lin.weight": "is a FLUX.2 text-to-image network without a depth stream",
    "encoder.backbone.blocks.0.attn.qkv.weight, points_head.output.weight": "is a MoGe geometry estimator",
    (
        "model.diffusion_model.input_blocks.0.0.weight, first_stage_model.decoder.conv_in.weight"
    ): "is a Stable Diffusion checkpoint",
}


@pytest.mark.parametrize("keys", WRONG_FILES)
def test_scenario_03_a_wrong_checkpoint_is_called_by_name_and_never_run(loaded, tmp_path, keys):
    import torch
    from safetensors.torch import save_file

    name = f"{tmp_path.name}.safetensors"  # a name of its own: ComfyUI opens the first it finds
    save_file({key: torch.zeros(2, 2) for key in keys.split(", ")}, tmp_path / name)
    said = loaded("inside_nodes.py", "refused_file", path=str(tmp_path), name=name)
    assert (
        said and name in said and WRONG_FILES[keys] in said and "Expected a Modality Forcing network" in said
    ), said
    assert "https://" in said, "it says where to get the right one"


def test_scenario_03_a_network_of_another_kind_is_called_what_comfyui_calls_it(loaded, hour, tmp_path):
    hour("small_wan", path=str(tmp_path / "wan.safetensors"))
    said = loaded("inside_nodes.py", "refused_file", path=str(tmp_path), name="wan.safetensors")
    assert "wan.safetensors, which is a network that ComfyUI knows as WAN21_T2V. Load" in said, said


def test_scenario_03_the_networks_of_today_are_known(hour):
    """Built by core's own classes at their published sizes, on the meta device."""
    known = {
        "Wan": "WAN21_T2V",
        "Qwen-Image": "QwenImage",
        "Z-Image": "ZImage",
        "SD3": "SD3",
        "LTX": "LTXV",
        "SDXL": "SDXL",
    }
    wanted = {name: f"a network that ComfyUI knows as {kind}" for name, kind in known.items()}
    assert hour("kinds_of_files") == wanted | {"Hunyuan": "a HunyuanVideo network"}


@pytest.mark.parametrize("naming", ["own names", "kohya", "diffusers", "LoKr"])
def test_scenario_03_a_lora_of_another_width_is_refused_by_name(hour, tmp_path, naming):
    """As a klein 4B LoRA on the 9B model, of which core logs the shapes and leaves those layers out."""
    result = hour("lora_of_another_width", naming=naming, folder=str(tmp_path))
    half, whole = result["widths"]
    said = result["said"]
    assert (
        said
        and f"Expected a LoRA for a network of width {whole}, got one for a network of width {half}" in said
    ), said
    assert "Remove that LoRA" in said and "\n" not in said and result["same"]


@pytest.mark.parametrize(
    "case", ["wrong VAE", "prompt of another model", "order of another model", "plain latent into the model"]
)
def test_scenario_03_a_wrong_part_is_called_by_name(loaded, case):
    said = loaded("inside_nodes.py", "refused", case=case)
    assert (
        said
        and "\n" not in said
        and any(node in said for node in ("Load Modality Forcing", "Empty Joint Latent", "flux2-vae"))
    ), said


BASES = {
    "another base": "load one of these", "LoRA of another width": "Load the base that it was trained on",
    "SDXL's LoRA on SD2.1": "choose an intrinsic LoRA that was trained on this base",
    "plain model": "Intrinsic Co-Generation",
    "plain latent": "Join Intrinsic Latent", "unknown layer": "stage", "channels": "(1, 16, 8, 8)",
}  # fmt: skip
MAPS = {
    "file of a picture's VAE": "an image autoencoder (VAE)", "file of a LoRA": "a LoRA",
    "picture's VAE to encode": "Load Intrinsic VAE",
    "core's VAE Decode": "Decode Intrinsics", "latent of another base": "Split Intrinsic Latent",
}  # fmt: skip


@pytest.mark.parametrize("case", [*BASES, *MAPS])
def test_scenario_03_a_wrong_base_lora_or_vae_of_maps_is_called_by_name(maps_hour, maps, case):
    """Refused before anything is sampled."""
    result = (
        {"said": maps("refused", case=case), "calls": 0} if case in MAPS else maps_hour("refused", case=case)
    )
    said = result["said"]
    assert (
        result["calls"] == 0 and said and "\n" not in said and (BASES | MAPS)[case].lower() in said.lower()
    ), said


def test_scenario_04_bad_depth_is_masked_counted_and_refused_only_when_nothing_is_left(geometry):
    assert "Expected a valid pixel" in geometry("bad_depth", kind="all zero")["refusal"]
    assert "1 NaN, 1 infinite, 1 zero or negative" in geometry("bad_depth", kind="holes")["text"]
    assert "1 to 1 relative units" in geometry("bad_depth", kind="constant")["text"]


def test_scenario_04_bad_depth_given_to_a_model_is_masked_and_refused_only_when_nothing_is_left(hour):
    assert "Expected a valid pixel" in hour("bad_depth_given", kind="all zero")["refusal"]
    holes = hour("bad_depth_given", kind="holes")
    assert holes["finite"] and holes["invalid"] == 2 + 7 * 48 and holes["spread"] > 0
    constant = hour("bad_depth_given", kind="constant")
    assert constant["finite"] and constant["invalid"] == 0 and constant["spread"] > 0


def test_scenario_04_bad_maps_are_masked_counted_and_refused_only_when_nothing_is_left(maps_hour, maps):
    """Every map, not depth alone: what is no number is missing, which the intrinsic VAE knows."""
    assert "Expected a valid pixel" in maps_hour("depth", kind="all zero")["refusal"]
    assert "Expected known pixels in image 1 of line, got 64, which all are NaN or infinite" in maps(
        "refused", case="line without a number"
    )
    holes, constant = (maps_hour("depth", kind=kind) for kind in ("holes", "constant"))
    # a NaN and seven rows below 0; the infinite pixel is sky, which has a code
    assert holes["finite"] and holes["said"] == [
        "337 of 3072 pixels of depth (11.0%) are invalid and are encoded as missing."
    ]
    assert constant["finite"] and constant["valid"] and constant["said"] == []
    for name in ("normals", "segmentation", "line"):
        result = maps("broken", name=name)
        assert (
            result["finite"]
            and result["gap"] < 1e-5
            and f"3 of 4096 pixels of {name} (0.1%)" in result["text"]
        )


def test_scenario_05_the_empty_prompt_works_in_all_modes(hour):
    """Prompts about space are another system's, which the pack does not have yet. Not covered."""
    assert hour("empty_prompt") == {"joint": True, "image to depth": True, "depth to image": True}


def test_scenario_06_batches_of_different_size_are_refused_and_one_serves_all(geometry):
    result = geometry("batches")
    assert (
        result["refusal"]
        == "Expected batches of one size, got 4 of depth and 3 of image. Give equally many, or one for all."
    )
    assert result["broadcast"] == [4, 3, 5, 3]


def test_scenario_06_batches_of_streams_are_refused_with_both_counts_and_one_serves_all(loaded):
    assert loaded("inside_modes.py", "batches") == [
        [[3, 32, 4, 3], [3, 1, 64, 48]],
        [[2, 32, 4, 3], [2, 1, 64, 48]],
    ]
    said = loaded("inside_modes.py", "refused", case="two batches")
    assert "2 (images) and 3 (depth maps)" in said and "one for all" in said
    assert "4 images and 3 depth maps" in loaded(
        "inside_nodes.py", "refused", case="batches of different size"
    )


def test_scenario_06_batches_of_maps_are_refused_with_both_counts_and_one_serves_all(maps_hour, maps):
    result = maps_hour("batches")
    assert result["maps"] < 1e-5 and result["joint"] == 0 and result["counts"] == [3] * 6
    said = maps("refused", case="batches")
    assert "2 of depth" in said and "3 of line" in said and "one for all" in said
    said = maps_hour("refused", case="two batches")["said"]
    assert "or one of either, got 2 and 3" in said


def test_scenario_07_without_triton_the_pack_loads_and_runs(other_worker, tiny_weights):
    """On a CPU, with a Triton that cannot be imported.

    Macs and AMD cards are not covered: no machine here has one.
    """
    assert other_worker.started["value"]["loaded"]
    other_worker.call("inside_sampling.py", "start", weights=tiny_weights)
    for file in ("inside_modes.py", "inside_geometry.py"):
        other_worker.call(file, "batches")
    result = other_worker.call("inside_scenarios.py", "on_this_machine")
    assert result == {"finite": True, "valid": True, "cloud": "ply", "triton": False, "device": "cpu"}


def test_scenario_08_missing_weights_are_listed_and_no_network_is_asked(hour):
    """The loader node. The command that lists, verifies and downloads is tested with the command line."""
    result = hour("missing_weights", name="flux_rgbd_9b_v2.safetensors")
    for said in (result["before"], result["during"]):
        for part in (
            "flux_rgbd_9b_v2.safetensors",
            "24 GB",
            "CC BY-NC",
            "models/diffusion_models",
            "https://huggingface.co/",
        ):
            assert part in said, part
    assert result["asked"] == []


def test_scenario_09_cancel_at_any_step_leaves_nothing_behind(loaded):
    """Stopped in every call of the network and between; the next run gives the same bits.

    tests/nodes/test_cancel.py has the rest; that two hundred runs leave memory flat,
    tests/workflows/test_endurance.py.
    """
    loaded("inside_compose.py", "registered")
    seen = loaded("inside_cancel.py", "step_by_step", kind="LoRA, order and guidance")
    assert all(seen["cancelled"]) and all(seen["same"]) and seen["grown"] <= 0
    assert seen["state"] == [] and seen["plain"]


@pytest.mark.parametrize(("kind", "schedule"), [("sd21", "gaussian"), ("pixart", "off")])
def test_scenario_09_cancel_in_a_run_with_maps_leaves_nothing_behind(maps_hour, kind, schedule):
    """In every call of the network; through ComfyUI's queue in tests/workflows/test_workflows.py."""
    seen = maps_hour("cancelled", kind=kind, schedule=schedule)
    assert seen["calls"] >= 3 and all(seen["cancelled"]) and not any(seen["left"])
    assert seen["same"] == [0, 0], "the next run, of either model, differs"


def test_scenario_07_the_loader_says_what_it_needs_before_it_reads_the_weights(hour):
    enough, short = hour("need", free=8e9), hour("need", free=1e6)
    (line,) = enough["heard"]
    assert (
        re.fullmatch(r"INFO: tiny.safetensors: 0\.\d\d GB of weights; 8\.00 GB free on cpu\.", line)
        and enough["first"] == "said"
    )
    assert len(short["heard"]) == 2 and short["heard"][1].startswith(
        "WARNING: tiny.safetensors is larger than the free memory"
    )
    assert "fp8 or nvfp4" in short["heard"][1]


def test_scenario_10_core_is_told_what_a_step_needs(hour):
    """Core moves weights out of the way by this figure. Measured tiers of cards are not covered."""
    small, middle, large = hour("memory_asked")
    assert 0 < small < middle < large


@pytest.mark.parametrize("kind", ["card", "processor"])
def test_scenario_10_a_full_memory_names_the_three_settings_to_change(hour, kind):
    """Core still knows the fault, by which it unloads its models; the next run gives the same bits."""
    result = hour("full_memory", kind=kind)
    said = result["said"]
    assert "3 x 48 x 64 (batch x height x width)" in said and "GB of weights" in said and "\n" not in said
    assert all(
        part in said for part in ("make the image smaller", "set the batch size to 1", "fp8 or nvfp4")
    ), said
    assert result["known"] and result["same"]


@pytest.mark.parametrize("fault", ["card", "processor"])
def test_scenario_10_a_full_memory_names_the_three_settings_of_a_run_with_maps(maps_hour, fault):
    """Sampling here; the intrinsic VAE's own sentence is tested in tests/nodes/test_intrinsic_maps.py."""
    result = maps_hour("full_memory", fault=fault)
    said = result["said"]
    assert (
        said
        and "3 x 64 x 64 (batch x height x width)" in said
        and "GB of weights" in said
        and "\n" not in said
    )
    assert all(part in said for part in ("make the image smaller", "set the batch size to 1", "--lowvram")), (
        said
    )
    assert result["known"] and result["same"]


def test_scenario_10_another_fault_is_left_as_it_is(hour):
    assert hour("another_fault") == "something else"


def test_scenario_11_the_preview_says_unit_direction_and_range(loaded):
    """The ControlNet picture is Preview Depth's own output; the VFX file is Save Depth: one node each."""
    result = loaded("inside_nodes.py", "preview", style="control")
    assert (
        result["text"]
        == "depth 1 x 30 x 40, 1 to 5 metres, larger = farther, 1 of 1200 pixels invalid (0.1%)"
    )
    assert result["near"] == [1, 1, 1] and result["far"] == [0, 0, 0]


@pytest.mark.parametrize("frame", ["camera", "world"])
def test_scenario_12_cloud_mesh_and_camera_open_upright_and_to_scale(geometry, tmp_path, frame):
    """Core writes them; plyfile and trimesh read them; projected by the camera packet, each point falls on
    its own pixel.
    """
    result = geometry("into_space", folder=str(tmp_path), frame=frame)
    assert result["shown_camera"] and result["fov"][0] == pytest.approx(60, abs=1e-3)
    depth, image = np.array(result["depth"]), np.array(result["image"])

    vertex = plyfile.PlyData.read(next(tmp_path.glob("cloud_00001*.ply")))["vertex"]
    points = np.stack([vertex[name] for name in "xyz"], axis=1)
    colours = np.stack([vertex[name] for name in ("red", "green", "blue")], axis=1)
    assert len(points) + result["holes"] == result["pixels"] and len(points) > 500
    column, row, z = seen_by(result["camera"], points, *depth.shape)
    np.testing.assert_allclose([column % 1, row % 1], 0.5, atol=1e-3)
    pixel = row.astype(int), column.astype(int)
    np.testing.assert_allclose(z, depth[pixel], rtol=1e-5)
    np.testing.assert_allclose(colours / 255, image[pixel], atol=0.51 / 255)

    (surface,) = trimesh.load(next(tmp_path.glob("mesh_00001*.glb"))).geometry.values()
    column, row, z = seen_by(result["camera"], np.asarray(surface.vertices), *depth.shape)
    np.testing.assert_allclose(z, depth[row.astype(int), column.astype(int)], rtol=1e-5)
    # trimesh turns v round: its origin is the lower left corner
    np.testing.assert_allclose(
        surface.visual.uv, np.stack([column / depth.shape[1], 1 - row / depth.shape[0]], axis=1), atol=1e-4
    )
    assert surface.visual.material.baseColorTexture.size == (37, 23)
    eye = np.array([result["camera"]["position"][axis] for axis in "xyz"])
    assert (np.einsum("ij,ij->i", surface.face_normals, eye - surface.triangles_center) > 0).all()


def seen_by(camera, points, height, width):
    """Pixel column, row and depth of points, as three.js would draw them: the camera looks down -z, fov is
    vertical.
    """
    turn = Rotation.from_quat([camera["quaternion"][axis] for axis in "xyzw"])
    x, y, z = turn.inv().apply(points - np.array([camera["position"][axis] for axis in "xyz"])).T
    top = np.tan(np.radians(camera["fov"]) / 2)
    return (1 + x / -z / (top * camera["aspect"])) * width / 2, (1 - y / -z / top) * height / 2, -z


@pytest.mark.parametrize(
    ("kind", "scale", "step"), [("png", 0.0, 3e-5), ("png", 0.001, 0.00051), ("exr", 0.0, 0), ("npz", 0.0, 0)]
)
def test_scenario_12_a_saved_depth_is_the_depth_loaded(geometry, tmp_path, kind, scale, step):
    result = geometry("save_and_load", folder=str(tmp_path), kind=kind, scale=scale)
    assert result["names"] == [[f"d 37_00001_.{kind}"], [f"d 37_00002_.{kind}"]]
    assert result["listed"] and result["valid"] is True and result["units"] == ["metric", "relative"]
    assert result["error"] <= step and result["mask"] and result["camera"]
    assert result["said"].startswith(result["text"].split(",")[0]) and result["names"][0][0] in result["said"]


def test_scenario_13_patches_stack_and_what_cannot_is_refused_by_name(hour):
    """Each row of docs/composability.md has its own test; this stacks them.

    Sage attention and real adapters are not installed here.
    """
    result = hour("stacked")
    assert result["finite"] and result["attention"] > 0
    assert min(result["each"].values()) > 1e-4, "a patch was dropped without a word"
    assert result["refusal"] and "\n" not in result["refusal"]


def test_scenario_13_patches_stack_under_co_generation(maps_hour):
    """With the weight off the image is that of the base with the same stack, bit for bit; no part is dropped,
    on or off.
    """
    result = maps_hour("stacked")
    assert result["base"] == 0 and result["finite"] and min(result["attention"]) > 0
    assert len(result["each"]) == 8 and min(result["each"].values()) > 1e-4, (
        f"a patch was dropped without a word: {result['each']}"
    )
    assert result["maps"] > 1e-4


def graphs(root):
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((root / "workflows" / "api").glob("*.json"))
    }


EXTRAS = [
    "custom_sampler",
    "mask",
    "save_3d",
    "load_3d",
    "preview_any",
    "edit_model",
    "flux",
    "canny",
    "images",
    "moge",
    "sam3",
    "pixart",
    "cfg",
    "joyimage",
    "sd3",
    "toolkit",
]
NOT_THERE = {
    "value_not_in_list",
    "custom_validation_failed",
}  # a file of weights or pictures that this machine does not have


def test_scenario_14_every_template_needs_core_and_this_pack_alone(hour, root):
    """ComfyUI's own check finds nothing but files to fetch. tests/workflows runs each one and compares what
    comes out.
    """
    for path in (root / "workflows").glob("*.json"):
        nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
        assert {node["properties"].get("cnr_id") for node in nodes if node["type"] != "MarkdownNote"} <= {
            "comfy-core",
            "spatialweave",
        }
    for name, fault in hour("validated", graphs=graphs(root), extras=EXTRAS).items():
        _, errors = json.loads(fault) if fault else (None, {})
        kinds = {error["type"] for node in errors.values() for error in node["errors"]}
        assert kinds <= NOT_THERE and (not fault or errors), f"{name}: {fault}"


def test_scenario_15_a_saved_workflow_keeps_its_nodes(loaded, root):
    """Ids, inputs and types of every published node.

    That an old ComfyUI gets a notice is in tests/test_packaging.py.
    """
    declared = loaded("inside_nodes.py", "declarations")
    for name, published in json.loads((root / "tests/nodes/schema.json").read_text(encoding="utf-8")).items():
        now = {key: put["type"] for key, put in declared[name]["inputs"].items()}
        assert published["inputs"].items() <= now.items(), name
        assert [put["type"] for put in declared[name]["outputs"]][: len(published["outputs"])] == published[
            "outputs"
        ], name
    for name, graph in graphs(root).items():
        ours = [node for node in graph.values() if node["class_type"].startswith("SpatialWeave_")]
        assert ours, name
        for node in ours:
            used = {
                key.partition(".")[0] for key in node["inputs"]
            }  # schedule.alpha belongs to the choice made in schedule
            assert used <= set(declared[node["class_type"]]["inputs"]), f"{name}: {node['class_type']}"
