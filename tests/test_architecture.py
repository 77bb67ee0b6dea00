"""The house rules that a machine can read: who may import whom, what is small, what nobody writes."""

import ast
import re
import sys
from pathlib import PurePosixPath

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

pytestmark = pytest.mark.once  # reads text, with the standard library alone

SYSTEMS = ("modality_forcing", "intrinsic_ldm", "spatial_diff", "spatial_fusion", "joyai_edit")
CORE = "models/core/"
# inside a folder everything may import its neighbours; this is what it may import besides
ALLOWED = {
    "kernels/": (),
    CORE + "layers/": ("kernels/",),
    CORE + "diffusion/": (),
    CORE + "geometry/": (),
    CORE + "export/": (CORE + "geometry/", CORE + "text_files.py"),
    CORE + "evaluation/": (CORE + "geometry/",),
    CORE + "visualize/": (CORE + "geometry/", CORE + "export/"),
    CORE + "training/": (CORE,),
    CORE: (),
    "models/vggt/": (CORE, "kernels/"),
    "models/tiny/": (CORE,),
    "models/world/": (CORE,),
    **{f"models/{system}/": (CORE, "kernels/", "models/vggt/", "models/tiny/") for system in SYSTEMS},
    "models/benchmarks/": (
        CORE, "models/world/", "models/tiny/", *(f"models/{system}/" for system in ("vggt", *SYSTEMS)),
    ),
    "models/trainers/": (
        CORE, "models/world/", "models/tiny/", *(f"models/{system}/" for system in ("vggt", *SYSTEMS)),
    ),
    "models/cli/": ("models/", "kernels/"),
    "models/": (),
    "nodes/host/shared/": ("models/",),
    **{f"nodes/host/{system}/": ("models/", "nodes/host/shared/") for system in ("vggt", *SYSTEMS)},
    "nodes/": ("models/",),
    "workflows/": (),
    "": ("nodes/",),
}
# files of a system, and what of ours they may see; a training/ folder may see all of its system
# but the pipeline
SYSTEM_FILES = {
    "config.py": (),
    # attention, layers and lora are I-LDM's equation and LoRA without a host:
    # core's networks in ComfyUI share them
    "network.py": ("config.py", "attention.py", "layers.py", "lora.py", CORE + "layers/", "kernels/"),
    "weights.py": ("config.py", "network.py", CORE + "weights/"),
    "sampling.py": ("config.py", CORE + "diffusion/", CORE + "protocols.py"),
    "training.py": (
        "config.py", "network.py", "sampling.py", "weights.py", "depth_code.py", "pose_code.py", CORE,
    ),
    "depth_code.py": (CORE + "geometry/",),
    "pose_code.py": (CORE + "geometry/",),
}
# a network that other systems may import, and is a system like them in all else
WITH_NETWORK = ("vggt", *SYSTEMS)
# or a folder training/
SIX = {"config.py", "network.py", "weights.py", "sampling.py", "pipeline.py", "training.py"}
# which of the six a system lacks, and why: an empty file would do no job
LACKING = {
    "vggt": {"sampling.py": "one forward pass gives the result, so there is no schedule and no loop"},
    "spatial_fusion": {"sampling.py": "the base model samples, by its own schedule and loop"},
}
NO_NETWORK = {"joyai_edit"}  # systems that bring no network of their own
# public names that several modules define, and why that misleads nobody; any other is refused
SAME_JOB = {  # the same thing for each system, network, file format or record
    "Header", "Result", "Summary", "as_lines", "build", "check_sample", "check_vae", "describe",
    "describe_machine", "draw_noise",
    "export", "find_config", "find_preset", "loss", "make_sample", "mirror", "open_folder", "read_header",
    "sample", "write_record",
    "LossSettings", "ModelSettings", "check_precisions", "config_from_shapes", "init_weights", "load_network",
    "network_shapes",
    "own_names", "released_files", "save_network",
}  # fmt: skip
FAR_APART = {  # of rooms that never import each other's, a node's class beside the value it gives included
    "Plan", "PointCloud", "Run", "Source", "examine", "verify",
}  # fmt: skip
HOST = re.compile(r"^(comfy|folder_paths|latent_preview|node_helpers|server|execution|comfy_execution)(\.|$)")
EXTRA_IMPORTS = {
    "__init__.py": {"comfyui_version"},
    "models/core/training/": {"accelerate"},
    "models/core/weights/download.py": {"huggingface_hub"},
    "models/intrinsic_ldm/backbones.py": {"diffusers"},
    "models/intrinsic_ldm/training/perceptual.py": {"torchvision"},
    "models/joyai_edit/data/encode.py": {"diffusers"},
    "models/joyai_edit/training/": {"accelerate", "diffusers"},
    "models/spatial_diff/data/encoders.py": {"diffusers"},
    "models/spatial_fusion/language.py": {"transformers"},
    "models/trainers/omnigen2_base.py": {"transformers"},
    "models/trainers/spatial_transformer.py": {"transformers"},
    "nodes/": {"comfy_api"},
    "kernels/": {"triton"},
    "kernels/dispatch.py": {"comfy_kitchen"},
}
LONG_FILES: dict[str, str] = {}  # a file that may have 500 lines, and why
STANDARD_NAMES = sys.stdlib_module_names - {"__future__"}
VAGUE_NAMES = {"utils", "helpers", "misc", "common", "types", "io"}


def test_the_tree_was_found(pack):
    assert {"__init__.py", "nodes/__init__.py", "models/modality_forcing/network.py"} <= set(pack.code)


def test_imports_point_down(pack):
    wrong = []
    for name in pack.code:
        home = next(prefix for prefix in ALLOWED if name.startswith(prefix))
        for node, module in pack.imports(name):
            package_file = (
                module.endswith("__init__.py")
                and home.startswith(module.removesuffix("__init__.py"))
            )
            if (
                module.endswith(".py")
                and not package_file
                and not module.startswith((home or "__init__", *ALLOWED[home]))
            ):
                wrong.append(f"{name}:{node.lineno} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_system_files_see_only_what_their_job_needs(pack):
    wrong = []
    for name in pack.code:
        path = PurePosixPath(name)
        if path.parent.name == "training" and path.parts[1] in SYSTEMS:
            wrong += [
                f"{name}:{node.lineno} imports {module}"
                for node, module in pack.imports(name)
                if module.endswith("/pipeline.py")
            ]
        if (
            path.parts[:-1] not in [("models", system) for system in WITH_NETWORK]
            or path.name not in SYSTEM_FILES
        ):
            continue
        home = path.parent.as_posix() + "/"
        allowed = tuple(entry if "/" in entry else home + entry for entry in SYSTEM_FILES[path.name])
        ours = [(node, module) for node, module in pack.imports(name) if module.endswith(".py")]
        wrong += [
            f"{name}:{node.lineno} imports {module}"
            for node, module in ours
            if not module.startswith(allowed or ("-",))
        ]
    assert not wrong, "\n".join(wrong)


def test_nodes_of_a_system_live_in_its_files(pack):
    """Loaders included: a file of nodes reaches one system at most, whose name it begins with."""
    wrong = []
    for name in (name for name in pack.code if re.fullmatch(r"nodes/[a-z_0-9]+\.py", name)):
        modules = [module for _, module in pack.imports(name)]
        reached = {system for system in SYSTEMS for module in modules if f"/{system}/" in module}
        home = PurePosixPath(name).name
        wrong += [f"{name} reaches {system}" for system in sorted(reached) if not home.startswith(system)]
    assert not wrong, "\n".join(wrong)


def test_every_system_with_a_network_has_its_six_files(pack):
    folders = [
        system
        for system in WITH_NETWORK
        if f"models/{system}/__init__.py" in pack.code and system not in NO_NETWORK
    ]
    assert "modality_forcing" in folders
    for system in folders:
        home = f"models/{system}/"
        found = {name.removeprefix(home) for name in pack.code if name.startswith(home)}
        found |= {"training.py"} if "training/__init__.py" in found else set()
        reasons = LACKING.get(system, {})
        lacking = SIX - found - set(reasons)
        assert not lacking, f"{home} lacks {', '.join(sorted(lacking))}"
        assert not found & set(reasons), (
            f"{home} has {', '.join(sorted(found & set(reasons)))}: take it off the list"
        )


def test_no_public_name_has_two_meanings(pack):
    defined = {}
    for name in (name for name in pack.code if name.startswith(("models/", "nodes/", "kernels/"))):
        for node in pack.tree(name).body:
            if isinstance(
                node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
            ) and not node.name.startswith("_"):
                defined.setdefault(node.name, []).append(name)
    allowed = SAME_JOB | FAR_APART | {"main"}
    several = {name: files for name, files in defined.items() if len(files) > 1 and name not in allowed}
    assert not several, "\n".join(f"{name}: {', '.join(files)}" for name, files in several.items())
    assert not SAME_JOB & FAR_APART, "a name has one reason"


def test_comfyui_is_visible_only_in_nodes(pack):
    wrong = []
    for name in pack.code:
        for node, module in pack.imports(name):
            in_nodes, in_host = name.startswith("nodes/"), name.startswith("nodes/host")
            if (HOST.match(module) and not in_host) or (module.split(".")[0] == "comfy_api" and not in_nodes):
                wrong.append(f"{name}:{node.lineno} imports {module}")
            if module.split(".")[0] in ("nodes", "comfy_extras"):
                wrong.append(f"{name}:{node.lineno} imports {module}, which is no API of ComfyUI")
    assert not wrong, "\n".join(wrong)


def test_everything_else_imported_is_declared_or_standard(pack):
    project = tomllib.loads(pack.text("pyproject.toml"))["project"]
    known = {
        name.lower().replace("pillow", "pil") for name in project["dependencies"]
    } | sys.stdlib_module_names
    wrong = []
    for name in pack.code:
        more = set().union(*(names for prefix, names in EXTRA_IMPORTS.items() if name.startswith(prefix)))
        for node, module in pack.imports(name):
            top = module.split(".")[0].lower()
            if (
                not module.endswith(".py")
                and top not in known | more
                and not (name.startswith("nodes/host") and HOST.match(module))
            ):
                wrong.append(f"{name}:{node.lineno} imports {module}")
    assert not wrong, "\n".join(wrong)


COMFYUI = {
    "comfy", "comfy_api", "comfy_extras", "execution", "folder_paths", "latent_preview", "nodes", "server",
}


def test_everything_the_tests_import_is_in_the_test_extra(pack):
    project = tomllib.loads(pack.text("pyproject.toml"))["project"]
    declared = {
        *project["dependencies"], *project["optional-dependencies"]["test"],
        *project["optional-dependencies"]["train"],
    }
    known = (
        {name.lower().replace("pillow", "pil") for name in declared}
        | sys.stdlib_module_names
        | {"spatialweave", "tomli"}
    )
    wrong = []
    for name in (name for name in pack.files if name.startswith("tests/") and name.endswith(".py")):
        in_comfyui = PurePosixPath(name).name.startswith(("inside_", "worker"))
        allowed = known | (COMFYUI if in_comfyui else set())
        # torch brings it where it exists; they skip elsewhere
        allowed |= {"triton"} if name.startswith("tests/kernels/") else set()
        foreign = [(node, module) for node, module in pack.imports(name) if not module.endswith(".py")]
        wrong += [
            f"{name}:{node.lineno} imports {module}"
            for node, module in foreign
            if module.split(".")[0].lower() not in allowed
        ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("pattern", [r"models/[^/]+/config\.py", r"workflows/run\.py"])
def test_some_files_are_free_of_torch(pack, pattern):
    names = [name for name in pack.code if re.fullmatch(pattern, name)]
    assert names
    for name in names:
        files = pack.closure(name, late=False)
        found = {
            module
            for file in files
            for _, module in pack.imports(file, late=False)
            if not module.endswith(".py")
        }
        reached = {module.split(".")[0] for module in found}
        assert reached <= sys.stdlib_module_names, (
            f"{name} reaches {sorted(reached - sys.stdlib_module_names)}"
        )


def test_the_door_imports_nothing_but_logging(pack):
    top = [node for node in pack.tree("__init__.py").body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(node) for node in top] == ["import logging"]


def test_files_are_short(pack):
    lines = {name: pack.text(name).count("\n") for name in pack.code}
    too_long = {name: count for name, count in lines.items() if count > (500 if name in LONG_FILES else 400)}
    assert not too_long
    assert not [name for name in LONG_FILES if name in lines and lines[name] <= 400], (
        "no longer long: take it off the list"
    )


def functions(tree):
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_functions_are_short(pack):
    limits = {"execute": 20}
    wrong = []
    for name in pack.code:
        for node in functions(pack.tree(name)):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = node.end_lineno - body[0].lineno + 1 if body else 0
            if length > limits.get(node.name, 60):
                wrong.append(f"{name}:{node.lineno} {node.name} has {length} lines")
    assert not wrong, "\n".join(wrong)


def test_every_module_says_what_it_is(pack):
    assert not [
        name for name in pack.code if pack.text(name).strip() and not ast.get_docstring(pack.tree(name))
    ]


def test_file_names_say_what_is_inside(pack):
    stems = {name: PurePosixPath(name).stem for name in pack.code}
    assert not [name for name, stem in stems.items() if stem in STANDARD_NAMES | VAGUE_NAMES]


def test_no_test_folder_is_a_package(pack):
    assert not [name for name in pack.files if name.startswith("tests/") and name.endswith("__init__.py")]


def test_modules_that_tests_name_as_text_are_there(pack):
    """`ours("models...")` inside ComfyUI: no import statement shows a name that a move left behind."""
    files = set(pack.code)
    for name in (name for name in pack.files if re.fullmatch(r"tests/.*inside_[a-z_]+\.py", name)):
        for module in re.findall(r"""\bours\(["']([\w.]+)["']\)""", pack.text(name)):
            path = module.replace(".", "/")
            assert files & {f"{path}.py", f"{path}/__init__.py"}, f"{name}: there is no {module}"


# A third-party lint for ComfyUI packs rejects these anywhere in a .py file;
# write `operations.Linear` and take a device.
LAYERS = (
    "Linear Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d "
    "ConvTranspose3d LayerNorm GroupNorm Embedding"
).split()
FORBIDDEN = {
    **{f"nn.{layer}": rf"\bnn\.{layer}\(" for layer in LAYERS},
    "a hidden device move": r"\.cuda\(|\.to\(\s*[\"']cuda",
    "autocast": r"torch\.autocast|amp\.autocast",
    "an evaluation-mode call that scanners flag; write train(False)": r"\.eval\(",
    "a code evaluator": r"(?<![\w.])(eval|exec)\(",
    "unpickling": r"torch\.load\(|\bimport pickle|\bpickle\.",
    "emptying the cache": r"cuda\.empty_cache",
    "unfinished work": r"\b(TODO|FIXME|XXX)\b|raise NotImplementedError",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_nobody_writes(pack, what):
    pattern = re.compile(FORBIDDEN[what])
    wrong = []
    for name in (
        name for name in pack.files if name.endswith(".py") and name != "tests/test_architecture.py"
    ):
        lines = enumerate(pack.text(name).splitlines(), 1)
        wrong += [
            f"{name}:{number} {line.strip()}"
            for number, line in lines
            if not line.lstrip().startswith("#") and pattern.search(line)
        ]
    assert not wrong, "\n".join(wrong)


def test_the_pack_changes_no_interpreter_state(pack):
    pattern = re.compile(
        r"sys\.(path|modules)\b|logging\.basicConfig|warnings\.(simple)?filter"
        r"|set_default_dtype|set_default_device"
    )
    # programs, not libraries
    code = [name for name in pack.code if name not in ("workflows/run.py", "models/cli/console.py")]
    assert not [name for name in code if pattern.search(pack.text(name))]


def test_pictures_are_opened_at_one_door(pack):
    """Orientation, bit depth, alpha and damage are seen to there; png16 reads what only a depth may be."""
    doors = {"models/core/picture_files.py", "models/core/export/png16.py"}
    assert {name for name in pack.code if re.search(r"\bImage\.open\(", pack.text(name))} == doors


def test_loggers_have_fixed_names(pack):
    """`__name__` is a file path inside ComfyUI."""
    for name in pack.code:
        calls = [
            node
            for node in ast.walk(pack.tree(name))
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("getLogger")
        ]
        for call in calls:
            (argument,) = call.args
            assert isinstance(argument, ast.Constant) and str(argument.value).startswith("spatialweave"), (
                f"{name}:{call.lineno}"
            )


def test_python_files_can_be_read_on_windows(pack):
    for name in pack.files:
        assert name.isascii()
        if name.endswith(".py"):
            pack.text(name).encode("cp1252")
