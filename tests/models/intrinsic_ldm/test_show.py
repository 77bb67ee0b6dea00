"""`spatialweave intrinsics sample`: which files it writes and what is on its page, with random weights."""

import numpy as np
import pytest
import torch
from PIL import Image

from spatialweave.models.cli.console import main
from spatialweave.models.intrinsic_ldm.maps.codec import channels_to_maps
from spatialweave.models.intrinsic_ldm.sheet import GAP, HEAD, LABELS, MARGIN, PANEL, intrinsic_sheet, row_of

PARTS = ("base", "image", "depth", "normals", "segmentation", "line")


@pytest.fixture(scope="module")
def files(write_tiny, tmp_path_factory):
    folder = write_tiny(tmp_path_factory.mktemp("tiny"), 5)
    return [
        word
        for part in ("base", "vae", "lora")
        for word in (f"--{part}", str(folder / f"{part}.safetensors"))
    ]


def read(path):
    return np.array(Image.open(path))


def test_it_writes_every_map_and_a_page(files, tmp_path, capsys):
    call = [
        "intrinsics", "sample", "a red ball", "a blue box", "--steps", "2", "--guidance", "1", "--output",
        str(tmp_path), *files,
    ]
    assert main([*call, "--schedule", "off"]) == 0
    names = {f"{index}_{part}.png" for index in (0, 1) for part in PARTS} | {"sheet.png"}
    assert (
        {path.name for path in tmp_path.iterdir()} == names
        and capsys.readouterr().out.count("wrote ") == len(names)
    )
    assert (read(tmp_path / "0_base.png") == read(tmp_path / "0_image.png")).all(), (
        "off is the base's own image"
    )
    assert (read(tmp_path / "0_image.png") != read(tmp_path / "1_image.png")).any()
    assert Image.open(tmp_path / "1_line.png").text["prompt"] == "a blue box"

    first = read(tmp_path / "0_image.png")
    assert main([*call, "--schedule", "constant"]) == 0
    assert (read(tmp_path / "0_image.png") != first).any(), "at weight 1 the image sees its maps"


def test_the_page_has_each_picture_in_its_place():
    generator = torch.Generator().manual_seed(0)
    image, base = (
        torch.rand(2, PANEL, PANEL, 3, generator=generator),
        torch.rand(2, PANEL, PANEL, 3, generator=generator),
    )
    found = channels_to_maps(torch.rand(2, 8, PANEL, PANEL, generator=generator) * 2 - 1, image=image)
    page = intrinsic_sheet(["one", "two"], base, found)
    for column, picture in enumerate(row_of(0, base, found)):
        left = MARGIN + column * (PANEL + GAP)
        shown = page[MARGIN + HEAD : MARGIN + HEAD + PANEL, left : left + PANEL]
        assert (shown - picture.clamp(0, 1)).abs().max() <= 0.51 / 255, LABELS[column]


def test_a_page_wants_as_many_of_each():
    found = channels_to_maps(torch.zeros(2, 8, 16, 16), image=torch.zeros(2, 16, 16, 3))
    with pytest.raises(
        ValueError, match="Expected equally many .* got 1 prompts, 2 base images and 2 sets of maps"
    ):
        intrinsic_sheet(["one"], torch.zeros(2, 16, 16, 3), found)


def test_an_unknown_file_is_called_what_it_is(files, tmp_path, capsys):
    call = ["intrinsics", "sample", "a red ball", "--output", str(tmp_path), *files, "--base", files[3]]
    assert main(call) == 1
    error = capsys.readouterr().err
    assert "Expected a tiny latent diffusion model in " in error and "intrinsic VAE" in error
