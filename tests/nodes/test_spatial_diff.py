"""Geometry tokens in a real ComfyUI, in small random editors of core's own classes."""

import functools

import pytest

pytestmark = pytest.mark.comfyui
FILE = "inside_spatial_diff.py"


@pytest.fixture(scope="module")
def diff(inside):
    """Call a function inside ComfyUI, each only once."""
    return functools.cache(lambda function, **values: inside(FILE, function, **values))


@pytest.mark.parametrize("family", ["flux", "flux2"])
def test_tokens_join_the_sequence_as_if_appended_by_hand(diff, family):
    seen = diff("equality", family=family)
    assert seen["hand"] == 0 and seen["change"] > 0.5 and seen["again"], seen
    assert seen["negative"] > 0.5  # a negative prompt without a reference runs, too


@pytest.mark.parametrize("family", ["flux", "flux2"])
def test_without_tokens_the_editor_is_bit_equal_to_the_base(diff, family):
    seen = diff("equality", family=family)
    assert seen["zero"] and seen["masked"] and seen["untouched"]


@pytest.mark.parametrize("family", ["flux", "flux2"])
def test_strength_goes_from_nothing_to_the_full_effect(diff, family):
    seen = diff("strengths", family=family)
    assert seen["1e-06"][0] < 1e-4 and seen["0.999"][1] < 0.01 and seen["1.001"][1] < 0.01, seen
    assert 0.05 * seen["full"] < seen["0.1"][0] < seen["0.5"][0] < 1.2 * seen["full"], seen
    assert seen["white mask"]
    assert seen["override"] == 0 == seen["override at 1"]  # another node's attention function


def test_strength_is_a_factor_on_the_tokens_attention_weights(diff):
    seen = diff("weighted_attention")
    assert seen["calls"] == 4 and seen["gap"] < 1e-5, seen


def test_a_mask_leaves_tokens_out_and_weakens_them(diff):
    seen = diff("masks")
    assert seen["rows"] == 48 + 12
    assert seen["ids"] == [[2, row, column] for row in range(4) for column in range(3)]
    assert seen["change"] > 0.1 and seen["gray"] == 0
    assert max(seen["first"], seen["second"]) < 1e-4 < seen["differ"], seen  # each image its own mask


def test_ids_cover_the_target_at_any_size(diff):
    for name, found in diff("sizes").items():
        scale = int(name[-1])
        # the center of each cell in the target's own rows and columns, from 0
        assert found["rows"] == [scale * (row + 0.5) - 0.5 for row in range(4)], name
        assert found["columns"] == [scale * (column + 0.5) - 0.5 for column in range(6)], name
        assert found["first"] == [2] and found["rest"] == 0, name


def test_prompts_for_areas_see_the_tokens_of_the_whole_image(diff):
    """Each area's rows and columns begin at 0; the image's begin where it lies to the area's left and top."""
    seen = diff("areas")
    rows, columns = [0, 1, 2, 3], [0, 1, 2, 3, 4, 5]
    assert seen["ids"] == sorted(
        [[rows, columns], [[-2, -1, 0, 1], columns], [rows, [-3, -2, -1, 0, 1, 2]]]
    )
    assert seen["full"] < 1e-4 < seen["change"] and seen["finite"], seen


def test_a_batch_has_one_set_of_tokens_or_each_image_its_own(diff):
    seen = diff("batches")
    assert seen["shape"] == [3, 16, 8, 12] and seen["same noise"] < 1e-4
    assert seen["each"] < 1e-4 < seen["differ"], seen


def test_several_references_by_each_of_cores_methods(diff):
    seen = diff("references")
    colliding = seen["index 2"]
    worked = [found for name, found in seen.items() if name != "index 2"]
    assert len(worked) == 6 and all(change > 0.1 and finite for change, finite in worked), seen
    assert "first id 2" in colliding and "method offset" in colliding


def test_tokens_act_between_start_and_end(diff):
    seen = diff("ranges")
    assert seen["0.0 1.0"] == [True] * 4 and seen["never"]
    assert seen["0.0 0.5"] == [True, True, True, False]
    assert seen["0.5 1.0"] == [False, False, False, True]
    assert seen["0.25 0.75"] == [False, True, True, False]


def test_flux_kv_cache_keeps_references_and_tokens_in_either_order(diff):
    seen = diff("cache")
    for strength in ("1.0", "0.4"):
        found = seen[strength]
        # text 512, target 24, references 24, tokens 24: the first step has all, the others what is not kept
        assert found["lengths"][0] == found["lengths"][1] == [[536, 584, 584], [584, 584, 584]]
        assert found["same"] == 0 and found["change"] > 0.1, found
        assert found["cost"] < 2 * seen["base cost"], seen
    assert seen["first step"] == 0


def test_reduxs_bias_is_widened_neutrally(diff):
    seen = diff("redux")
    assert seen["full"] < 1e-4 and seen["half"] < 1e-4 and seen["closed"] > 0.05, seen


def test_controlnet_adds_to_the_target_alone(diff):
    seen = diff("control")
    assert seen["target"][0] > 0.5 and seen["rest"] == 0 and seen["change"] > 0.5, seen


def test_a_lora_before_or_after_the_node_is_the_same(diff):
    seen = diff("lora")
    assert seen["same"] and seen["change"] > 0.5 and seen["restored"], seen


def test_torch_compile_gives_each_steps_own_result(diff):
    seen = diff("compiled")
    assert min(seen["graphs"]) > 0, "nothing was compiled"
    assert seen["all"] < 1e-5 and seen["half"] < 1e-5 and seen["weighed"] < 1e-5, seen


def test_two_connectors_weigh_their_own_tokens(diff):
    seen = diff("two_connectors")
    assert seen["both"] > 0.5 and seen["second closed"] < 1e-3 and seen["first closed"] < 1e-3, seen


def test_cancel_leaves_the_next_run_as_it_was(diff):
    seen = diff("aborted")
    assert seen == {"stopped": True, "base": True, "tokens": True, "calls": 2}


def test_a_connector_file_gives_the_networks_tokens(diff, tmp_path):
    seen = diff("loading", folder=str(tmp_path))
    assert seen["gap"] < 1e-4 and 0 < seen["half"] < 0.1 and seen["config"] and seen["managed"], seen


def test_from_pictures_to_the_editor(diff, tmp_path):
    seen = diff("from_pictures", folder=str(tmp_path))
    assert seen["finite"] and seen["change"] > 0.5 and seen["by the image"] > 0.1, seen


def test_bad_input_is_a_sentence_with_the_remedy(diff, tmp_path):
    said = diff("refusals", folder=str(tmp_path))
    expected = {
        "other base": ("Flux-Kontext of width 64", "FLUX.2 of width 64", "trained with this model"),
        "other width": ("width 64", "width 96", "trained with this model"),
        "other picture": ("96 x 64 pixels", "480 x 640", "VAE Encode"),
        "2 for 3": ("3 images of the batch", "got 2"),
        "2 masks for 3": ("mask", "3 images of the batch", "got 2"),
        "2 masks, 3 token sets": ("mask", "3 images", "got 2"),
        "no reference": ("reference latent", "got none", "Reference Latent"),
        "two connectors": ("first id 2", "another connector"),
        "reference on the axis": ("first id 2", "reference method index"),
        "start after end": ("start_percent below end_percent", "0.6 and 0.4"),
        "start at end": ("start_percent below end_percent", "0.5 and 0.5"),
        "Qwen": ("Flux-Kontext or FLUX.2", "QwenImage", "time step 0"),
        "SD": ("Flux-Kontext or FLUX.2", "SD15", "no image stream"),
        "LongCat": ("Flux-Kontext or FLUX.2", "LongCatImage"),
        "attention without masks": ("applies masks", "override", "strength 1"),
        "cache and range": ("Flux KV Cache", "0 and 0.5"),
        "VGGT of another width": ("20 channels", "got 21", "Load VGGT"),
        "NaN tokens": ("finite geometry tokens", "bfloat16"),
        "NaN mask": ("mask", "NaN"),
        "not a connector": ("geometry connector", "Load Geometry Connector"),
        "not tokens": ("geometry tokens", "(1, 2, 3) float32", "VGGT Geometry Tokens"),
        "no such file": ("none.safetensors", "models/model_patches"),
        "Flux's file": ("SpatialDiff geometry connector", "FLUX.1 network", "flux.safetensors"),
        "half a file": ("torn.safetensors", "34 tensors missing"),
    }
    assert set(said) == set(expected)
    for name, words in expected.items():
        assert said[name] and said[name].startswith("Expected"), f"{name}: {said[name]}"
        assert all(word in said[name] for word in words), f"{name}: {said[name]}"
        assert "Traceback" not in said[name] and said[name].endswith("."), said[name]


def test_instructions_are_in_the_trained_words(diff):
    seen = diff("instructions")
    assert seen["direction"] == "move the red ball one metre to the left"
    assert seen["relation"] == "move the red ball behind the blue box"
    assert seen["between"] == "move the ball between the box and the green cone"
    # 20 pixels a metre; rows are foreshortened by a camera that looks down by 25 degrees
    assert seen["right"] == "move the ball one metre to the right"
    assert seen["left"] == "move the ball half a metre to the left"
    assert seen["away"] == "move the ball one metre away from the camera"
    assert seen["near"] == "move the ball one and a half metres towards the camera"
    for name, words in {
        "no name": ("name of an object", "got none"),
        "long name": ("at most 80 characters", "got 99"),
        "too near": ("at least 0.25 m", "0.05 m"),
        "outside": ("200 x 100", "300, 60"),
        "empty mask": ("white where the object is",),
        "two masks": ("one mask", "(2, 100, 200)"),
        "two boxes": ("one box", "got 2"),
        "flat box": ("at least one pixel", "20 x 0"),
        "between itself": ("three objects", "the ball, the ball, the green cone"),
        "itself": ("another object", "the ball"),
    }.items():
        assert seen[name].startswith("Expected") and all(word in seen[name] for word in words), seen[name]
