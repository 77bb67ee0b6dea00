"""What a joint model composes with, one case for each row of docs/composability.md; the table is read here,
so that it cannot drift.
"""

import re

import pytest

pytestmark = pytest.mark.comfyui
FILE = "inside_compose.py"
WORKS = {
    "guidance": "guidance",
    "guidance per stream": "guidance_per_stream",
    "guidance interval": "guidance_interval",
    "other guidance": "other_guiders",
    "prompts": "prompts",
    "batch": "batch",
    "inpainting": "inpainting",
    "LoRA": "loras",
    "shift": "sampling_patches",
    "skipped steps": "skipped_steps",
    "attention": "attentions",
    "tiled VAE": "tiled_vae",
    "latent nodes": "plain_latent_nodes",
}
REFUSED = {
    "ControlNet": ["without a ControlNet", "Depth to Image Latent"],
    "reference images": ["without reference images", "Disconnect them"],
    "areas": ["without an area", "whole image"],
    "masked prompts": ["without a mask", "whole image"],
    "inpainting conditioning": ["conditioning of an inpainting model", "Masked Joint Latent"],
    "IP-Adapter": ["patches at 'input 4'", "Remove that node"],
    "FreeU": ["patches at 'output_block_patch'", "Remove that node"],
    "PAG": ["patches at 'middle 0'", "Remove that node"],
    "NAG": ["patches at 'attn1_output_patch'", "Remove that node"],
    "skipped layers": ["patches at 'double_block 0'", "Remove that node"],
    "FreSca": ["without FreSca, got one with it: it works on the rows and columns", "Remove that node"],
    "latent operations": [
        "without LatentApplyOperationCFG, got one with it: it works on the rows and columns",
        "Remove that node",
    ],
    "guidance of videos": [
        "without VideoLinearCFGGuidance, got one with it: it counts the frames",
        "Remove that node",
    ],
    "context windows": ["Context Windows, which cuts a video", "Remove that node"],
    "EasyCache on a given image": ["EasyCache, which measures how much the image changes", "Use LazyCache"],
    "guidance value": ["without a guidance value", "use the cfg of the KSampler"],
    "CLIP Vision": ["without CLIP Vision embeddings", "Remove that node"],
}


@pytest.fixture(scope="module")
def compose(inside, tiny_weights):
    inside("inside_sampling.py", "start", weights=tiny_weights)
    inside("inside_matrix.py", "offered")  # what inside_compose.py takes from the two
    inside("inside_modes.py", "batches")
    return lambda function, **kwargs: inside(FILE, function, **kwargs)


@pytest.mark.parametrize("case", WORKS)
def test_works(compose, case, tmp_path):
    more = {"folder": str(tmp_path)} if case == "LoRA" else {}
    claims = compose(WORKS[case], **more)
    assert claims and all(claims.values()), claims


@pytest.mark.parametrize("case", REFUSED)
def test_is_refused(compose, case):
    sentence = compose("refused", case=case)
    assert sentence.startswith("Expected ") and sentence.count(". ") == 1
    assert not [part for part in REFUSED[case] if part not in sentence], sentence


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_torch_compile(compose, backend):
    claims = compose("compiled", backend=backend)
    assert claims and all(claims.values()), claims


@pytest.mark.parametrize("name", ["sage", "flash", "xformers"])
def test_attention_of_other_packages(compose, name):
    if name not in compose("registered"):
        pytest.skip(f"{name} attention is not installed here, or ComfyUI was not started with it")
    assert compose("attention_on_a_gpu", name=name) == {name: True}


def table(root, heading="What it composes with"):
    """The page's rows: (what with, yes or no, the tests named)."""
    text = (
        (root / "docs/composability.md")
        .read_text(encoding="utf-8")
        .split(f"\n## {heading}\n")[1]
        .split("\n## ")[0]
    )
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    return [(what, answer, re.findall(r"`([^`]+)`", tests)) for what, answer, tests in cells[2:]]


HEADINGS = ["What it composes with", "What co-generation composes with", "What Geometry Tokens compose with"]


@pytest.mark.parametrize("heading", HEADINGS)
def test_the_table_names_tests_that_are_there(root, heading):
    """`file::function` and `file::function[case]`, below tests/."""
    rows = table(root, heading)
    assert len(rows) > 10 and all(
        answer.split(":")[0].split(",")[0] in ("yes", "refused", "untested") for _, answer, _ in rows
    )
    for what, _, tests in rows:
        assert tests, f"{what}: no test is named"
        for test in tests:
            file, function, case = re.fullmatch(r"([\w/]+\.py)::(\w+)(?:\[(.+)\])?", test).groups()
            source = (root / "tests" / file).read_text(encoding="utf-8")
            assert f"def {function}(" in source and (case is None or f'"{case}"' in source), (
                f"{what}: there is no {test}"
            )


def test_every_case_has_its_cell_and_the_cell_says_what_it_shows(root):
    rows = {test: answer for _, answer, tests in table(root) for test in tests}
    here = "nodes/test_compose.py::"
    wanted = {f"{here}test_works[{case}]": "yes" for case in WORKS} | {
        f"{here}test_is_refused[{case}]": "refused" for case in REFUSED
    }
    assert {test: rows[test].split(":")[0].split(",")[0] for test in wanted if test in rows} == wanted, (
        "the table and the cases differ"
    )
    assert all(
        answer.split(":")[0].split(",")[0] in ("yes", "refused", "untested") for answer in rows.values()
    )
