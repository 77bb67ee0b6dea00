"""The pack as users get it: imported under ComfyUI's path-like name, and as the registry's archive."""

import json
import re
import subprocess
import sys
from pathlib import PurePosixPath

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

LOAD_AS_COMFYUI_DOES = """
import importlib.util, json, sys, time
path = sys.argv[1]
name = path.replace(".", "_x_")
before = set(sys.modules)
began = time.process_time()
spec = importlib.util.spec_from_file_location(name, path + "/__init__.py")
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
print(json.dumps({
    "seconds": time.process_time() - began,
    "loaded": sorted(set(sys.modules) - before),
    "names": sorted(vars(module)),
    "version": module.__version__,
    "web": module.WEB_DIRECTORY,
}))
"""


@pytest.fixture(scope="module")
def door(root, tmp_path_factory):
    """What loading the pack's root did in a fresh process, without ComfyUI."""
    empty = tmp_path_factory.mktemp("elsewhere")
    call = [sys.executable, "-I", "-c", LOAD_AS_COMFYUI_DOES, str(root)]
    return json.loads(subprocess.run(call, cwd=empty, capture_output=True, check=True, text=True).stdout)


def test_importing_the_pack_costs_nothing(door):
    assert door["seconds"] < 0.05
    heavy = {"torch", "numpy", "safetensors", "PIL", "scipy", "comfy", "asyncio"}
    assert not heavy & {name.split(".")[0] for name in door["loaded"]}


def test_the_pack_has_one_form_of_registration(door):
    assert "comfy_entrypoint" in door["names"]
    assert "NODE_CLASS_MAPPINGS" not in door["names"], (
        "an attribute of that name, even empty, hides the entrypoint"
    )


def test_version_is_said_once_and_the_web_folder_is_there(door, root, pack):
    assert door["version"] == tomllib.loads(pack.text("pyproject.toml"))["project"]["version"]
    assert (root / door["web"] / "docs").is_dir()
    assert not [name for name in pack.files if name.startswith("web/") and name.endswith(".js")]


ENTER_AS_COMFYUI_DOES = """
import asyncio
try:
    asyncio.run(module.comfy_entrypoint())
except Exception as error:
    print(f"Error while calling comfy_entrypoint: {error}")
"""


def enter(root, folder, version):
    """(what ComfyUI's one line says, what is logged besides) where the nodes cannot be loaded: here nothing
    but its version is there.
    """
    if version is not None:
        (folder / "comfyui_version.py").write_text(f"__version__ = {version!r}\n")
    script = f"import sys; sys.path.insert(0, {str(folder)!r})" + LOAD_AS_COMFYUI_DOES + ENTER_AS_COMFYUI_DOES
    done = subprocess.run([sys.executable, "-I", "-c", script, str(root)], capture_output=True, text=True)
    return done.stdout.splitlines()[-1], done.stderr


@pytest.mark.parametrize("version", ["0.32.9", "0.9", "0.3.68-rc2"])
def test_an_older_comfyui_gets_a_notice_with_both_versions_and_no_trace(root, door, tmp_path, version):
    line, log = enter(root, tmp_path, version)
    said = (
        f"SpatialWeave {door['version']} needs ComfyUI 0.33.0 or newer, and this is {version}; "
        "update ComfyUI."
    )
    assert line.endswith(f": {said}") and log == ""


@pytest.mark.parametrize("version", ["0.33.0", "0.33.0-rc1", "0.100.0", "1.0", None])
def test_any_other_failure_is_logged_with_its_trace_and_not_blamed_on_the_version(root, tmp_path, version):
    line, log = enter(root, tmp_path, version)
    assert line.endswith(": No module named 'comfy_api'")
    assert (
        log.startswith("SpatialWeave could not load its nodes:") and "Traceback" in log and "newer" not in log
    )


def test_metadata_is_what_the_registry_accepts(pack):
    data = tomllib.loads(pack.text("pyproject.toml"))
    project, comfy = data["project"], data["tool"]["comfy"]
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,98}", project["name"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert project["license"] == {"file": "LICENSE"} and "Apache License" in pack.text("LICENSE")
    assert re.fullmatch(r"(>=|<=|==|>|<|~=)\d+\.\d+\.\d+", comfy["requires-comfyui"])
    assert f'\nNEEDS_COMFYUI = "{comfy["requires-comfyui"].removeprefix(">=")}"\n' in pack.text("__init__.py")
    assert comfy["PublisherId"] and comfy["DisplayName"] == "SpatialWeave"
    assert project["urls"]["Repository"].startswith("https://")


def test_installing_changes_no_environment(pack, request):
    """Bare names only, and each is something that ComfyUI's own requirements bring."""
    names = tomllib.loads(pack.text("pyproject.toml"))["project"]["dependencies"]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in names)
    assert set(names) <= {"torch", "numpy", "scipy", "einops", "safetensors", "Pillow", "kornia", "tqdm"}
    assert not {"install.py", "prestartup_script.py", "requirements.txt"} & set(pack.files)


def test_the_readmes_commands_are_the_ones_that_are_checked(pack):
    readme = pack.text("README.md")
    assert (
        "pip install -e . && spatialweave demo" in readme and 'pip install -e ".[test]" && pytest' in readme
    )
    check = pack.text(".ci/run")
    assert check.count('pip install --quiet -e ".[test]"\n') == 2
    # plain pytest in each environment, in the second in two parts; the slow tests where they can run
    call = '\n    pytest -m "$markers" ${folder:+"$folder"}\n'
    assert check.count(call) == check.count("\n    pytest") == 1
    assert re.findall(r'\bcheck (?:"[^"]*"|\w+) (\w+) "([^"]*)"', check) == [
        ("comfyui", "comfyui"),
        ("comfyui", "slow and not comfyui and not once"),  # of kernels, which each torch compiles for itself
        ("newcomer", "slow"),  # of kernels
        ("newcomer", "not slow"),
        ("comfyui", "not comfyui and not slow and not once"),
        ("newcomer", "slow"),  # all but of kernels
        ("newcomer", "slow"),  # where there is no ComfyUI
    ]
    assert '"slow" tests/kernels ||' in check and '"slow" --ignore=tests/kernels ||' in check


def test_what_the_readmes_command_leaves_out_is_run_by_the_check_and_listed(pack):
    """Plain pytest deselects the marker `slow` and nothing else; each file with such a test is in
    docs/testing.md.
    """
    options = tomllib.loads(pack.text("pyproject.toml"))["tool"]["pytest"]["ini_options"]["addopts"]
    assert re.findall(r"(?:^|\s)(-[mk]|--ignore\S*|--deselect)\s*('[^']*'|\S*)", options) == [
        ("-m", "'not slow'")
    ]
    marked = [
        name
        for name in pack.files
        if name.startswith("tests/") and re.search(r"\bmark\.slow\b", pack.text(name))
    ]
    page = pack.text("docs/testing.md")
    assert marked and not [name for name in marked if f"`{name}`" not in page]


def test_what_is_marked_once_is_slow_or_needs_the_standard_library_alone(pack):
    """Plain pytest runs under both torches, but for files that neither torch nor ComfyUI's requirements could
    change: they import the standard library and pytest, and read text.
    """
    files = [name for name in pack.files if name.startswith("tests/") and "/test_" in name]
    marker = "pytest.mark" + ".once"
    named = [name for name in files if marker in pack.text(name)]
    slow = ["tests/kernels/test_segment_compile.py", "tests/kernels/test_segment_interpreter.py"]
    texts = ["tests/test_architecture.py", "tests/workflows/test_layout.py", "tests/workflows/test_run.py"]
    assert named == [*slow, *texts]
    for name in texts:
        modules = {module.partition(".")[0] for _, module in pack.imports(name)}
        assert modules <= sys.stdlib_module_names | {"pytest", "tomli"}, name
    for name in slow:
        text = pack.text(name)
        assert "pytestmark = pytest.mark.slow" in text or text.count(marker) == text.count(
            f"@pytest.mark.slow\n@{marker}"
        )


def test_the_tests_can_be_read_and_end_on_windows(pack):
    """A module that only Unix has is imported where it is used, behind a skip; os.kill ends the process
    there, whatever the signal.
    """
    tests = [name for name in pack.files if re.search(r"(^|/)(test_\w+|conftest)\.py$", name)]
    absent = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "termios"}
    assert not [name for name in tests for _, module in pack.imports(name, late=False) if module in absent]
    assert not [name for name in tests if re.search(r"\bos\.kill(?=\()", pack.text(name))]


def test_the_check_gives_comfy_cli_an_environment_of_its_own(pack):
    """Its requirements must not decide which versions the tests run with; without it they skip, and the
    closing lines count them.
    """
    check = pack.text(".ci/run")
    assert '"$bin/python" -m pip install --quiet comfy-cli; then\n      COMFY_CLI=$bin/comfy\n' in check
    assert re.findall(r"\n *find_comfy_cli\n +check|\nfind_comfy_cli\ncheck", check) == [
        "\n  find_comfy_cli\n  check", "\nfind_comfy_cli\ncheck"
    ]  # fmt: skip
    assert "COMFY_CLI" in pack.text("tests/workflows/test_workflows.py") and "comfy-cli" not in pack.text(
        "pyproject.toml"
    )


@pytest.mark.comfyui
def test_comfyui_brings_every_dependency(pack, comfyui):
    brought = {
        re.split(r"[^\w-]", line)[0].lower()
        for line in (comfyui / "requirements.txt").read_text().splitlines()
    }
    assert {
        name.lower() for name in tomllib.loads(pack.text("pyproject.toml"))["project"]["dependencies"]
    } <= brought


@pytest.fixture(scope="module")
def archive(pack):
    return pack.archive()


def is_data_of_the_nodes(name):
    """Files that no import reaches but that run time reads: help, translations, graphs, weights beside their
    code.
    """
    patterns = (
        "pyproject.toml",
        "LICENSE",
        "README.md",
        "web/docs/*.md",
        "web/docs/*/*.md",
        "locales/*/*.json",
        "workflows/api/*.json",
    )
    patterns += (
        "workflows/*.json",
        "workflows/*.jpg",
        "subgraphs/*.json",
        "models/modality_forcing/*.safetensors",
        "models/tiny/*.safetensors",
    )
    patterns += (
        "models/modality_forcing/*.json",
        "models/tiny/*.json",
        "models/intrinsic_ldm/*.safetensors",
        "models/vggt/*.json",
        "models/tiny/*.json",
        "models/vggt/*.safetensors",
        "models/spatial_fusion/*.safetensors",
        "models/spatial_diff/*.safetensors",
        "models/vggt/example_views/*/*.jpg",
    )
    return any(
        PurePosixPath(name).match(pattern) and name.count("/") == pattern.count("/") for pattern in patterns
    )


def test_the_archive_holds_what_run_time_needs_and_nothing_else(pack, archive):
    needed = pack.closure("__init__.py") | {name for name in pack.files if is_data_of_the_nodes(name)}
    assert set(archive) - needed == set(), (
        "in the archive but not reachable from a node: add it to .comfyignore"
    )
    assert needed - set(archive) == set(), "needed by a node but hidden by .comfyignore"


def test_what_the_archive_tells_to_type_is_said_to_need_a_clone(pack, archive):
    """The program `spatialweave` is left out: a scanner flags what fetches files, and most commands are
    nothing for a graph.
    """
    commands = "|".join(re.findall(r"import add_(\w+)", pack.text("models/cli/console.py")))
    assert "weights" in commands and "models/cli/console.py" not in archive
    texts = {name: pack.text(name) for name in archive if name.endswith((".py", ".md", ".json"))}
    telling = {
        name
        for name, text in texts.items()
        if re.search(rf"`spatialweave ({commands})\b|workflows/run\.py", text)
    }
    assert "README.md" in telling and not [
        name for name in telling if not re.search(r"pip install -e \.|installed clone", texts[name])
    ]


# Each of these flags a version in the registry's scanner, at its lowest level too.
FLAGGED = {
    "code evaluators": r"(?<![\w.])(compile|__import__)\(|(?<!\w)(eval|exec)\(",
    "dynamic imports": r"importlib|\.import_module",
    "processes": r"\bsubprocess\b|os\.(system|popen|exec)|shutil\.which",
    "network": r"\b(import|from) (requests|urllib|http|httpx|aiohttp|socket|ftplib|websocket)\b|\.connect\(",
    "encoded code": r"\b(import|from) (base64|marshal|pickle)\b|\bpickle\.|b64decode|codecs\.decode",
    "installers": r"\bpip\b|setup\.py|ensurepip",
}


@pytest.mark.parametrize("what", FLAGGED)
def test_the_archive_has_nothing_a_scanner_flags(pack, archive, what):
    pattern = re.compile(FLAGGED[what])
    hits = []
    for name in archive:
        if name.endswith((".py", ".js")):
            lines = enumerate(pack.text(name).splitlines(), 1)
            hits += [f"{name}:{number} {line.strip()}" for number, line in lines if pattern.search(line)]
    assert not hits, "\n".join(hits)


def test_the_archive_is_small_and_of_known_kinds(root, archive):
    kinds = {PurePosixPath(name).suffix for name in archive}
    assert kinds <= {".py", ".toml", ".md", ".json", ".jpg", ".safetensors", ""}
    assert [name for name in archive if not PurePosixPath(name).suffix] == ["LICENSE"]
    assert sum((root / name).stat().st_size for name in archive) < 50e6, (
        "tiny systems of 16, 12, 8 and 8 MB, and the code"
    )
