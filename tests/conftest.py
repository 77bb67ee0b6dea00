"""Names the checkout `spatialweave`, keeps its root off sys.path, and says which tests could not run and why."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

NAME, ROOT = "spatialweave", Path(__file__).resolve().parents[1]

# `nodes`, `models` and `kernels` are also names of other people's packages: our root must never be importable from.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
if NAME not in sys.modules and importlib.util.find_spec(NAME) is None:
    _spec = importlib.util.spec_from_file_location(NAME, ROOT / "__init__.py")
    sys.modules[NAME] = _module = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_module)

NO_COMFYUI = "no ComfyUI was found (set COMFYUI_PATH to a checkout whose requirements are installed here)"


def find_comfyui():
    """The ComfyUI folder the marked tests run in, or None."""
    for place in (os.environ.get("COMFYUI_PATH"), Path.home() / "comfy" / "ComfyUI"):
        if place and (Path(place) / "main.py").is_file():
            return Path(place).resolve()
    return None


def pytest_collection_modifyitems(items):
    if find_comfyui() is not None:
        return
    for item in items:
        if item.get_closest_marker("comfyui"):
            item.add_marker(pytest.mark.skip(reason=NO_COMFYUI))


def pytest_terminal_summary(terminalreporter):
    skipped = [report for report in terminalreporter.stats.get("skipped", ()) if NO_COMFYUI in str(report.longrepr)]
    if skipped:
        terminalreporter.write_sep("!", f"{len(skipped)} tests marked comfyui did not run: {NO_COMFYUI}", red=True)


@pytest.fixture(scope="session")
def root():
    """The pack's folder."""
    return ROOT


@pytest.fixture(scope="session")
def comfyui():
    """A real ComfyUI's folder."""
    place = find_comfyui()
    if place is None:
        pytest.skip(NO_COMFYUI)
    return place
