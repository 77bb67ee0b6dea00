"""Every node of the pack, every socket, whatever may be wired to it: it runs,
or says in a sentence why it does not.
"""

import pytest

pytestmark = pytest.mark.comfyui
FILE = "inside_net.py"


@pytest.fixture(scope="module")
def net(inside, tiny_weights):
    inside("inside_sampling.py", "start", weights=tiny_weights)
    return lambda function, **kwargs: inside(FILE, function, **kwargs)


NODES = """
    EmptyJointLatent ImageToDepthLatent DepthToImageLatent MaskedJointLatent RefineDepthLatent ModalityOrder
    GuidancePerStream DecodeJointLatent SplitJointLatent JoinJointLatent SaveJointLatent
    IntrinsicCoGeneration JoinIntrinsicLatent SplitIntrinsicLatent EncodeIntrinsics DecodeIntrinsics
    ViewFromImage ViewToMask ViewFromMoge ViewToMoge ViewFromDa3 ViewToDa3 PointCloud DepthMesh ViewCamera
    SaveDepth AlignDepth NormalsFromDepth StereoPair CompareViews PreviewDepth AskAboutViews JoyFit
    JoyMoveObject JoyRestore VggtReconstruct VggtGeometryTokens ScaleViews FuseViews SaveColmap CheckEdit
    UpscaleDepth MoveObjectInstruction SpatialDepth
""".split()


def test_the_sound_inputs_are_taken(net):
    assert net("sound_calls") == {}


@pytest.mark.parametrize("node", NODES)
def test_a_malformed_input_runs_or_is_refused_in_a_sentence(net, node):
    said = [
        (put, how, words)
        for put, found in net("malformed", name=node).items()
        for how, words in found.items()
    ]
    assert said or node == "EmptyJointLatent"
    traces = [entry for entry in said if entry[2] and not entry[2].startswith("refused: ")]
    assert not traces, traces
    short = [entry for entry in said if entry[2] and len(entry[2].split()) < 8]
    assert not short, short


def test_an_interruption_and_a_full_memory_pass_the_net(net):
    found = net("passes")
    assert found["InterruptProcessingException"][0] == "InterruptProcessingException"
    assert found["OutOfMemoryError"][0] == "OutOfMemoryError"
    assert found["ValueError"] == ["ValueError", "Expected this, got that. Do so."]
    kind, words = found["KeyError"]
    assert kind == "ValueError" and "view: depth 1 x 32 x 48" in words and "KeyError: 'samples'" in words


def test_what_a_node_says_in_cores_own_call(net):
    kind, words = net("executed", name="ViewToMask", inputs={"view": 3})
    assert (kind, words) == (
        "ValueError",
        "View to Masks: Expected SPATIALWEAVE_VIEW at view, got 3. Connect a node that outputs one.",
    )


def test_a_check_before_the_run_that_fails_is_a_sentence_of_the_refusal(net):
    file = {"file": "there.exr", "units": "metric"}
    fine, said = net("validated", name="LoadDepth", inputs=file, broken=("nodes.export", "is_input_file"))
    assert not fine
    assert any(
        "Load Depth" in line and "KeyError: 'entry'" in line and "file: 'there.exr'" in line for line in said
    ), said
    fine, said = net(
        "validated",
        name="LoadModalityForcing",
        inputs={"model_name": "a"},
        broken=("nodes.modality_forcing", "find_fault"),
    )
    assert not fine and any("Load Modality Forcing" in line and "model_name: 'a'" in line for line in said), (
        said
    )


def test_a_fingerprint_that_fails_is_a_sentence(net):
    kind, words = net(
        "fingerprinted", name="LoadDepth", broken=("nodes.export", "fingerprint_depth"),
        inputs={"file": "there.exr"},
    )
    assert kind == "ValueError" and "file: 'there.exr'" in words and "KeyError: 'entry'" in words


def test_core_still_hands_over_the_inputs_that_a_check_names(net):
    wanted = {
        "LoadModalityForcing": ["model_name"],
        "LoadVggt": ["model_name"],
        "LoadDepth": ["file", "png_scale_preset"],
        "LoadIntrinsicVae": ["vae_name"],
        "IntrinsicCoGeneration": ["lora_name", "schedule"],
        "LoadDepthAdapter": ["adapter_name"],
        "LoadSpatialTransformer": ["transformer_name"],
        "LoadTinyLanguageModel": ["language_name"],
        "LoadGeometryConnector": ["connector_name"],
    }
    assert net("validated_names") == {name: ["cls", *inputs] for name, inputs in wanted.items()}


@pytest.mark.parametrize(
    ("io_type", "value", "said"),
    [
        (
            "IMAGE",
            "a row",
            "Node: Expected IMAGE (b, h, w, 3) of floats at given, got (4,) float32. "
            "Connect a node that outputs one.",
        ),
        ("IMAGE", "whole numbers", "Expected IMAGE (b, h, w, 3) of floats at given, got (1, 2, 2, 3) int64."),
        ("IMAGE", "empty", "got (0, 2, 2, 3) float32."),
        ("MASK", "an image", "Expected MASK (b, h, w) of floats at given, got (1, 2, 2, 3) float32."),
        (
            "LATENT",
            "no samples",
            "a dict with samples (b, c, h, w) of floats at given, got {samples: nothing}.",
        ),
        ("LATENT", "samples of two axes", "got {samples: (2, 2) float32}."),
        ("LATENT", "nested", "got {samples: nested (1, 4, 2, 2) float32 and (3,) float32}."),
        ("IMAGE", "an image", "Got given: (1, 2, 2, 3) float32. Check"),
        ("IMAGE,MASK", "a mask", "Got given: (1, 2, 2) float32. Check"),
    ],
)  # fmt: skip
def test_an_odd_form_is_named_with_its_socket(net, io_type, value, said):
    assert said in net("unforeseen", io_type=io_type, value=value)
