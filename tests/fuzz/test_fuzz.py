"""Spoilt files through every reader: each is read rightly, or refused in a sentence that names it. `python -m
pytest tests/fuzz -s` prints the figures; the same 500 inputs every time.
"""

import contextlib
import importlib.util
import os
import shutil
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

INPUTS = int(os.environ.get("SPATIALWEAVE_FUZZ", "500"))  # over all kinds
MEMORY = 2**30  # bytes that one input may take
SECONDS = 1.0  # of the processor
HERE = Path(__file__).parent


def load(name):
    """A file beside this one."""
    key = f"spatialweave_fuzz_{Path(name).stem}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, HERE / name)
        sys.modules[key] = module = importlib.util.module_from_spec(spec)
        module.load = load
        spec.loader.exec_module(module)
    return sys.modules[key]


# the latter says "large", no more
NUMPYS, PILLOWS = (RuntimeWarning, np.exceptions.ComplexWarning), (Image.DecompressionBombWarning,)
KINDS = load("kinds.py").KINDS
TALLY = Counter()


@contextlib.contextmanager
def memory_limit():
    """At most MEMORY more than this process has now, where the system can hold it to that."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def read(kind, path):
    """("read" or "refused", what is wrong with that or None)."""
    with warnings.catch_warnings(record=True) as warned, memory_limit():
        warnings.simplefilter("always")
        began = time.process_time()
        try:
            result = kind.read(path)
        except (ValueError, OSError) as error:
            outcome, wrong = "refused", sentence_fault(error, kind.said or (path.name,))
        except Exception as error:  # noqa: BLE001 - what the test is for
            outcome, wrong = "refused", f"no sentence: {type(error).__name__}: {error}"
        else:
            outcome, wrong = "read", kind.fault(result, path)
        seconds = time.process_time() - began
    if seconds > SECONDS:
        wrong = wrong or f"{seconds:.1f} s"
    numbers = [
        entry.message
        for entry in warned
        if issubclass(entry.category, NUMPYS) and not issubclass(entry.category, PILLOWS)
    ]
    if numbers:  # Pillow's words on damaged side data are none of these
        wrong = wrong or f"a warning: {numbers[0]}"
    return outcome, wrong


def sentence_fault(error, names):
    """A refusal is one line of words that names the file, and no error of Python's own codecs."""
    said = str(error)
    if isinstance(error, UnicodeError):
        return f"no sentence: {type(error).__name__}: {said}"
    if not any(name in said for name in names):
        return f"no sentence: without the file's name: {type(error).__name__}: {said[:300]}"
    if len(said.split()) < 4 or "\n" in said.strip():
        return f"no sentence: {said[:300]!r}"
    return None


def fuzz(kind, folder, count, number):
    """`count` spoilt files of a kind; (outcomes, faults)."""
    sound, outcomes, faults = kind.files(), Counter(), []

    @seed(number)  # else all kinds would get the same random numbers
    @settings(
        max_examples=count, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.randoms(use_true_random=False))
    def one(random):
        shutil.rmtree(folder, ignore_errors=True)
        for name, data in sound.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        path = folder / kind.spoilt
        path.write_bytes(kind.mutate(random, sound[kind.spoilt]))
        outcome, wrong = read(kind, path)
        outcomes[outcome] += 1
        if wrong:
            faults.append(wrong)
            kept = folder.parent / "faults" / str(len(faults))
            shutil.copytree(folder, kept, dirs_exist_ok=True)

    one()
    return outcomes, faults


def share(name):
    """How many of all inputs a kind gets."""
    each, rest = divmod(INPUTS, len(KINDS))
    return each + (list(KINDS).index(name) < rest)


@pytest.mark.parametrize("name", KINDS)
def test_spoilt_files_are_read_rightly_or_refused_by_name(name, tmp_path):
    kind = KINDS[name]
    outcomes, faults = fuzz(kind, tmp_path / "folder", share(name), list(KINDS).index(name))
    TALLY.update(outcomes)
    TALLY["without a sentence"] += sum(fault.startswith("no sentence") for fault in faults)
    TALLY["silent"] += sum(not fault.startswith("no sentence") for fault in faults)
    assert outcomes.total() == share(name)
    assert not faults, f"{len(faults)} of {share(name)}, kept in {tmp_path / 'faults'}:\n" + "\n".join(
        dict.fromkeys(faults)
    )


@pytest.mark.parametrize("name", KINDS)
def test_the_sound_file_is_read(name, tmp_path):
    kind = KINDS[name]
    for file, data in kind.files().items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(data)
    assert read(kind, tmp_path / kind.spoilt) == ("read", None)


def test_the_figures():
    inputs = TALLY["read"] + TALLY["refused"]
    sys.stdout.write(
        f"\n{inputs} inputs: {TALLY['read']} read, {TALLY['refused']} refused, "
        f"{TALLY['without a sentence']} without a sentence, "
        f"{TALLY['silent']} silent wrong shapes or values\n"
    )
    assert TALLY["without a sentence"] == TALLY["silent"] == 0
