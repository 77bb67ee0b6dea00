"""Files of joint latents, spoilt as tests/fuzz spoils all others: read rightly, or refused in a sentence
that names the file.
"""

import pytest

pytestmark = pytest.mark.comfyui
INPUTS = 60


def test_spoilt_latents_are_read_rightly_or_refused_by_name(inside):
    found = inside("inside_fuzz.py", "latents", count=INPUTS)
    assert found["read"] + found["refused"] == INPUTS and found["read"] > 2 and found["refused"] > 20
    assert not found["faults"], "\n".join(found["faults"])
