"""Names the checkout `spatialweave`, keeps its root off sys.path, reads its import graph,
and says which tests could not run.
"""

import ast
import gc
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

# what is imported and collected stays (`freeze` below): nothing to look for in it meanwhile
gc.disable()

# for tensors this small, threads on a busy machine only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

# temporary files of tests and of the processes they start are gone when the run ends, however those end;
# what pytest keeps of failed tests lies where it always does
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
TEMPORARY = tempfile.tempdir = os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="spatialweave-tests-")

# inductor keeps what it compiled from run to run and tells our operators by name alone:
# tests compile what is here, not what once was
os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(TEMPORARY, "compiled"))
# it asks which vector instructions the compiler knows by importing torch in several processes, four seconds
# each, and starts two more to compile in; what it makes of our graphs shows without vectors, too
os.environ |= {"TORCHINDUCTOR_VEC_ISA_OK": "0", "TORCHINDUCTOR_COMPILE_THREADS": "1"}

NAME, ROOT = "spatialweave", Path(__file__).resolve().parents[1]

# `nodes`, `models` and `kernels` are also names of other people's packages:
# our root must never be importable from.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
if NAME not in sys.modules and importlib.util.find_spec(NAME) is None:
    _spec = importlib.util.spec_from_file_location(NAME, ROOT / "__init__.py")
    sys.modules[NAME] = _module = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_module)


def find_comfyui():
    """(the ComfyUI folder the marked tests run in or None, why there is none)."""
    place = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")
    if not (place / "main.py").is_file():
        return (
            None,
            (
                f"no ComfyUI was found at {place}; set COMFYUI_PATH "
                "to a checkout whose requirements are installed here"
            ),
        )
    missing = missing_requirements(place / "requirements.txt")
    if missing:
        return (
            None,
            (
                f"{place} needs {', '.join(missing)}, not installed "
                f"here; pip install -r {place / 'requirements.txt'}"
            ),
        )
    return place.resolve(), ""


def missing_requirements(file):
    """Names of what ComfyUI cannot start without and this Python does not have."""
    essential = file.read_text(encoding="utf-8").split("#non essential")[0]
    names = [
        re.split(r"[^\w.-]", line.strip())[0]
        for line in essential.splitlines()
        if line.strip() and not line.startswith("#")
    ]
    present = {
        re.sub(r"[-_.]+", "-", str(found.metadata["Name"])).lower()
        for found in importlib.metadata.distributions()
    }
    return [name for name in names if re.sub(r"[-_.]+", "-", name).lower() not in present]


COMFYUI, NO_COMFYUI = find_comfyui()
NO_BROWSER = "set NODE_PATH to a node_modules folder with playwright-core, and CHROMIUM to a Chromium"


def pytest_ignore_collect(collection_path, config):
    """Where one marker is asked for, a file that does not name it need not be imported."""
    asked = config.option.markexpr
    if asked in ("comfyui", "slow") and collection_path.match("test_*.py"):
        return asked not in collection_path.read_text(encoding="utf-8") or None
    return None


def pytest_collection_modifyitems(items):
    if COMFYUI is not None:
        return
    for item in items:
        if item.get_closest_marker("comfyui"):
            item.add_marker(pytest.mark.skip(reason=NO_COMFYUI))


def freeze():
    """What was imported and collected stays: no garbage collection needs to look through it again."""
    gc.collect()
    gc.freeze()
    return len(sys.modules)


def pytest_collection_finish(session):
    session.config.frozen_modules = freeze()
    gc.enable()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item, nextitem):
    """The same after each file whose tests imported more: diffusers and transformers come late."""
    yield
    if nextitem is None or nextitem.path != item.path:
        if len(sys.modules) > item.config.frozen_modules + 100:
            item.config.frozen_modules = freeze()


def pytest_unconfigure():
    shutil.rmtree(TEMPORARY, ignore_errors=True)


def pytest_terminal_summary(terminalreporter):
    causes = [
        ("marked comfyui", NO_COMFYUI), ("of comfy-cli", "comfy-cli is not installed here"),
        ("in the browser", NO_BROWSER),
    ]
    causes += [("against golden files", "no golden files: "), ("against golden files", "holds no rows of ")]
    for which, reason in causes:
        skipped = [
            report
            for report in terminalreporter.stats.get("skipped", ())
            if reason and reason in str(report.longrepr)
        ]
        if skipped:
            terminalreporter.write_sep("!", f"{len(skipped)} tests {which} did not run: {reason}", red=True)


class Pack:
    """The pack as text: its files, and which module imports which. Paths are relative to the root,
    with forward slashes. Each file is read and parsed once.
    """

    def __init__(self, root):
        self.root = root
        self._texts, self._trees, self._imports = {}, {}, {}
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=root,
            capture_output=True, check=True, text=True
        )
        names = [name for name in listed.stdout.split("\0") if name and (root / name).is_file()]
        # made inside the clone
        environments = tuple(
            name.removesuffix("pyvenv.cfg") for name in names if name.endswith("/pyvenv.cfg")
        )
        self.files = sorted(name for name in names if not name.startswith(environments))
        self.code = [name for name in self.files if name.endswith(".py") and not name.startswith("tests/")]

    def text(self, name):
        if name not in self._texts:
            self._texts[name] = (self.root / name).read_text(encoding="utf-8")
        return self._texts[name]

    def tree(self, name):
        if name not in self._trees:
            self._trees[name] = ast.parse(self.text(name), filename=name)
        return self._trees[name]

    def imports(self, name, *, late=True):
        """(node, module) of every import in a file: ours as a path ("models/core/view.py"),
        others' as a dotted name.

        `late=False` leaves out what does not run when the file is imported.
        """
        if (name, late) not in self._imports:
            self._imports[name, late] = list(self._find_imports(name, late))
        return self._imports[name, late]

    def _find_imports(self, name, late):
        tree = self.tree(name)
        for node in ast.walk(tree) if late else tree.body:
            if isinstance(node, ast.Import):
                yield from ((node, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield node, node.module
            elif isinstance(node, ast.ImportFrom):
                yield from ((node, found) for found in self._relative(name, node))

    def _relative(self, name, node):
        folder = (self.root / name).parent
        for _ in range(node.level - 1):
            folder = folder.parent
        base = folder.joinpath(*node.module.split(".")) if node.module else folder
        for alias in node.names:
            for path in (
                base / f"{alias.name}.py", base / alias.name / "__init__.py", base.with_suffix(".py"),
                base / "__init__.py",
            ):
                if path.is_file():
                    yield path.relative_to(self.root).as_posix()
                    break
            else:
                raise AssertionError(
                    f"{name}:{node.lineno} imports {alias.name} from {base}, which is not there"
                )

    def archive(self):
        """The registry's archive: tracked files (here also those about to be) that .comfyignore
        does not name.
        """
        ask = ["git", "ls-files", "-z", "--cached", "--others", "--ignored", "--exclude-from=.comfyignore"]
        ignored = set(
            subprocess.run(ask, cwd=self.root, capture_output=True, check=True, text=True).stdout.split("\0")
        )
        return [name for name in self.files if name not in ignored]

    def closure(self, start, *, late=True):
        """Every file of ours that `start` can reach (`late=False`: that importing it runs), package files
        on the way included.
        """
        seen, todo = set(), [start]
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            todo += [module for _, module in self.imports(name, late=late) if module.endswith(".py")]
            todo += [
                init
                for folder in Path(name).parents
                if (self.root / (init := (folder / "__init__.py").as_posix())).is_file()
            ]
        return seen


@pytest.fixture(scope="session", autouse=True)
def remove_temporary_folders(request, tmp_path_factory):
    """When all tests have passed, and not before: a ComfyUI that tests share has folders of earlier ones as
    its own. pytest's retention policy "failed" removes each with its test; a retention count of 0 removes
    those of other runs, which have no lock then.
    """
    yield
    if not request.session.testsfailed and not request.config.option.basetemp:
        shutil.rmtree(tmp_path_factory.getbasetemp(), ignore_errors=True)


@pytest.fixture(scope="session")
def pack():
    return Pack(ROOT)


@pytest.fixture(scope="session")
def root():
    """The pack's folder."""
    return ROOT


@pytest.fixture(scope="session")
def browser():
    """The environment in which Node.js finds playwright-core and Chromium, or a skip with what is missing."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    node = shutil.which("node")
    if node is None or chromium is None:
        pytest.skip(f"no {'Node.js' if node is None else 'Chromium'} for the browser's tests; {NO_BROWSER}")
    if subprocess.run([node, "-e", "require('playwright-core')"], capture_output=True).returncode:
        pytest.skip(f"no playwright-core for the browser's tests; {NO_BROWSER}")
    return os.environ | {"CHROMIUM": chromium}


@pytest.fixture(scope="session")
def comfyui():
    """A real ComfyUI's folder."""
    if COMFYUI is None:
        pytest.skip(NO_COMFYUI)
    return COMFYUI


class Worker:
    """tests/nodes/worker.py, spoken to in JSON lines: a ComfyUI process."""

    def __init__(self, comfyui, root, log, **environment):
        self.log = log
        call = [sys.executable, str(ROOT / "tests/nodes/worker.py"), str(comfyui), str(root)]
        pipes = {
            "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log.open("wb"),
            "encoding": "utf-8",
        }
        pipes["env"] = os.environ | environment
        self.process = subprocess.Popen(call, **pipes)
        self.started = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        assert line, f"ComfyUI's process ended:\n{self.log.read_text(errors='replace')[-3000:]}"
        return json.loads(line)

    def call(self, file, function, **kwargs):
        """The function's value; its traceback as an AssertionError. A bare name is of tests/nodes."""
        call = {"file": str(file), "function": function, "kwargs": kwargs}
        self.process.stdin.write(json.dumps(call) + "\n")
        self.process.stdin.flush()
        reply = self.answer()
        assert "error" not in reply, reply["error"]
        return reply["value"]

    def text(self):
        return self.log.read_text(encoding="utf-8", errors="replace")

    def close(self):
        self.process.kill()  # nothing to save, and leaving politely takes ComfyUI ten seconds
        self.process.wait()


@pytest.fixture(scope="session")
def worker(comfyui, root, tmp_path_factory):
    """One ComfyUI process for all tests that call functions in one: starting it takes seconds."""
    worker = Worker(comfyui, root, tmp_path_factory.mktemp("comfyui") / "log.txt")
    yield worker
    worker.close()


@pytest.fixture(scope="session")
def inside(worker):
    """Call a function of a file inside_*.py in a real ComfyUI."""
    return worker.call
