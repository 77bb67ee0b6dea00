"""Every node of the pack, every socket, whatever may be wired to it: it runs, or says in a sentence why it does not."""

import pytest

pytestmark = pytest.mark.comfyui
FILE = "inside_net.py"


@pytest.fixture(scope="module")
def net(inside, tiny_weights):
    inside("inside_sampling.py", "start", weights=tiny_weights)
    return lambda function, **kwargs: inside(FILE, function, **kwargs)


NODES = """EmptyJointLatent ImageToDepthLatent DepthToImageLatent MaskedJointLatent RefineDepthLatent ModalityOrder GuidancePerStream
    DecodeJointLatent SplitJointLatent JoinJointLatent SaveJointLatent IntrinsicCoGeneration JoinIntrinsicLatent SplitIntrinsicLatent
    EncodeIntrinsics DecodeIntrinsics ViewFromImage ViewToMask ViewFromMoge ViewToMoge ViewFromDa3 ViewToDa3 PointCloud DepthMesh
    ViewCamera SaveDepth AlignDepth NormalsFromDepth StereoPair CompareViews PreviewDepth AskAboutViews VggtReconstruct
    VggtGeometryTokens""".split()


def test_the_sound_inputs_are_taken(net):
    assert net("sound_calls") == {}


@pytest.mark.parametrize("node", NODES)
def test_a_malformed_input_runs_or_is_refused_in_a_sentence(net, node):
    said = [(put, how, words) for put, found in net("malformed", name=node).items() for how, words in found.items()]
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
