"""Golden safetensors files of a folder, by system and kind, as parameters of tests, and tolerances.

What a file is and what it holds is read from its own metadata entry `golden`, a JSON description.
"""

import json
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

DEFAULT = Path(__file__).resolve().parents[3] / "shared" / "golden"
FOLDER = Path(os.environ.get("SPATIALWEAVE_GOLDEN") or DEFAULT)


def read_description(path):
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get("golden")
    return json.loads(text) if text else None


class GoldenFiles:
    """One system's files: {kind: [(path, description), ...]} over the whole folder."""

    def __init__(self, name: str, is_of_the_family: Callable[[dict], bool], find_kind: Callable[[dict], str]):
        self.name, found = name, defaultdict(list)
        for path in sorted(FOLDER.glob("**/*.safetensors")):
            description = read_description(path)
            if description and is_of_the_family(description):
                found[find_kind(description)].append((path, description))
        self.files = dict(found)

    @property
    def needed(self):
        """Marks a test that needs a file. A folder that was named and holds none is a fault; only the
        default may be absent.
        """
        absent = not self.files and "SPATIALWEAVE_GOLDEN" not in os.environ
        return pytest.mark.skipif(
            absent, reason=f"no golden files: {FOLDER} holds none; set SPATIALWEAVE_GOLDEN"
        )

    def by_file(self, kind):
        """One test for every file of that kind, with its path and description."""
        files = self.files.get(kind, [])
        return pytest.mark.parametrize(
            ("path", "description"), files, ids=[path.stem for path, _ in files]
        )

    def by_case(self, kind):
        """One test for every case of every file of that kind."""
        files = self.files.get(kind, [])
        cases = [(path, d, case) for path, d in files for case in d.get("cases") or [d["case"]]]
        ids = [f"{path.stem}-{case['name']}" for path, _, case in cases]
        return pytest.mark.parametrize(("path", "description", "case"), cases, ids=ids)

    def find_weights(self, path, description):
        """The weights that belong to a file: the one it names, else the one of the same configuration."""
        config = description["config"]
        candidates = [other for other, d in self.files.get("weights", []) if d["config"] == config]
        named = [
            other
            for other in candidates
            if other.name == description.get("weights_file") and other.parent == path.parent
        ]
        assert candidates, f"no weights file in {FOLDER} has the configuration of {path.name}"
        return (named or candidates)[0]

    def check_kinds(self):
        """There are files, and each is of a known kind."""
        assert self.files, f"{FOLDER} holds no golden file of {self.name}"
        unknown = [kind for kind in self.files if kind.startswith("unknown")]
        assert not [str(path) for kind in unknown for path, _ in self.files[kind]]


def assert_within(actual, expected, max_abs, mean_abs=None, what=""):
    assert actual.shape == expected.shape, what
    error = (actual.double() - expected.double()).abs()
    assert error.max() <= max_abs, f"{what}: max abs {error.max():.3g} > {max_abs}"
    assert mean_abs is None or error.mean() <= mean_abs, f"{what}: mean abs {error.mean():.3g} > {mean_abs}"


def assert_relative(actual, expected, tolerance, what="", floor=1e-12):
    assert actual.shape == expected.shape, what
    error = (actual.double() - expected.double()).abs() / expected.double().abs().clamp(min=floor)
    assert (error <= tolerance).all(), f"{what}: relative {error.max():.3g}"
