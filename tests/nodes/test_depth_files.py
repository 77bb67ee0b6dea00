"""Load Depth in a real ComfyUI: names of files that come through a link, and files of other programs."""

import pytest

pytestmark = pytest.mark.comfyui
FILE = "inside_depth_files.py"


def test_the_background_of_blenders_z_pass_is_sky_once_it_is_stated(inside, tmp_path):
    """Its 1e10 is a distance to nobody but its renderer: as one it pushes everything else to depth 0 of a joint latent."""
    result = inside(FILE, "z_pass", folder=str(tmp_path))
    assert result["as it is"].startswith("depth 1 x 32 x 48, 2 to 1e+10 metres")
    assert result["stated"] == "depth 1 x 32 x 48, 2 to 6 metres, larger = farther, 768 of 1536 pixels invalid (50.0%)"
    assert result["sky"] == 768


@pytest.mark.parametrize("name", ["LoadDepth", "LoadJointLatent"])
def test_the_name_of_a_file_may_come_through_a_link(inside, name):
    """Before the run core passes None for it: that is no fault, and no file to compare with the last run's."""
    assert inside(FILE, "linked_file", name=name) == {"check": None, "anew": True}


def test_a_linked_name_of_no_file_is_refused_in_the_same_sentence(inside, tmp_path):
    assert inside(FILE, "missing_file", folder=str(tmp_path)) == (
        "There is no file 'gone.exr' in the input folder; put it there, or choose another."
    )
