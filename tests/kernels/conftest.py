"""Each test meets an op that has prepared no call yet: many change what the machine can do."""

import pytest

from spatialweave.kernels.segment_attention.prepared import forget_calls


@pytest.fixture(autouse=True)
def nothing_prepared():
    forget_calls()
    yield
    forget_calls()
