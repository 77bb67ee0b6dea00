"""What the pages say of the repository is so: links, paths, commands, rooms and definitions.
docs/log.md is history and is left out.
"""

import ast
import re
import shlex
from pathlib import PurePosixPath

import pytest

HISTORY = {"docs/log.md", "docs/soak.md", "docs/testing.md"}
COMFYUIS = {
    "models/checkpoints", "models/diffusion_models", "models/loras", "models/model_patches",
    "models/text_encoders", "models/vae",
}
OTHERS = {"encode.py", "loader.py"}  # a script that a page has in full; a file of another pack
ROOTS = ("docs", "kernels", "locales", "models", "nodes", "tests", "web", "workflows")


def pages(pack):
    names = [name for name in pack.files if name == "README.md" or re.fullmatch(r"docs/\w+\.md", name)]
    return {name: pack.text(name) for name in names if name not in HISTORY}


def anchors(text):
    """GitHub's, of the headings."""
    titles = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), flags=re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_pages_are_found(pack):
    assert (
        {"README.md", "docs/architecture.md", "docs/glossary.md", "docs/kernels.md", "docs/nodes.md"}
        <= set(pages(pack))
    )


def test_help_pages_have_lists_where_the_side_panel_would_squeeze_tables(root):
    texts = {page: page.read_text(encoding="utf-8") for page in (root / "web/docs").rglob("*.md")}
    assert len(texts) > 100 and not [page for page, text in texts.items() if re.search(r"(?m)^\|", text)]


def test_links_lead_to_files_and_headings_that_are_there(pack, root):
    wrong = []
    for name, text in pages(pack).items():
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            target, _, anchor = link.partition("#")
            if "://" in link:
                continue
            path = (root / name).parent / target if target else root / name
            if not path.exists() or (anchor and anchor not in anchors(path.read_text(encoding="utf-8"))):
                wrong.append(f"{name}: {link}")
    assert not wrong, "\n".join(wrong)


def test_every_page_is_reached_from_the_readme(pack):
    linked = set(re.findall(r"\]\((docs/\w+\.md)", pack.text("README.md")))
    assert set(pages(pack)) - {"README.md"} <= linked


def test_paths_name_files_and_folders_that_are_there(pack, root):
    bare = {PurePosixPath(name).name for name in pack.files}
    wrong = []
    for name, text in pages(pack).items():
        spans = re.findall(r"`([^`\n]+)`", text)
        paths = {
            path
            for span in spans
            for path in re.findall(rf"^(?:{'|'.join(ROOTS)})/[\w./-]*", span)
            if "<" not in span
        }
        paths |= set(re.findall(rf"(?<![\w/.-])(?:{'|'.join(ROOTS)})/[\w./-]+\.(?:py|json|cjs)\b", text))
        # below tests/: tests/nodes/test_compose.py holds those
        paths -= set(re.findall(r"`(nodes/[\w./-]+)::", text))
        paths = {
            path
            for path in paths
            if not any(path == other or path.startswith(f"{other}/") for other in COMFYUIS)
        }
        wrong += [f"{name}: {path}" for path in paths if not (root / path).exists()]
        files = {span for span in spans if re.fullmatch(r"\w+\.py", span)} - OTHERS
        wrong += [f"{name}: {file}" for file in files if file not in bare]
    assert not wrong, "\n".join(sorted(wrong))


def test_every_node_is_on_the_page_of_the_nodes_by_its_display_name(pack):
    page = pack.text("docs/nodes.md")
    rows = re.findall(r"^\| ([^|]+) \|", page.split("## Nodes")[1], flags=re.MULTILINE)
    shown = [name for row in rows for name in row.split(", ") if row != "Node"]
    code = "".join(pack.text(name) for name in pack.code if re.fullmatch(r"nodes/\w+\.py", name))
    names = re.findall(r'node_id="SpatialWeave_\w+",\s*display_name="([^"]+)"', code)
    assert len(names) > 30 and sorted(shown) == sorted(names)


def top_level_names(tree):
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.ImportFrom | ast.Import):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def test_python_examples_import_what_is_there(pack):
    wrong, seen = [], 0
    for name, text in pages(pack).items():
        blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
        found = [
            node
            for block in blocks
            for node in ast.walk(ast.parse(block))
            if isinstance(node, ast.ImportFrom)
        ]
        for node in (node for node in found if node.module.startswith("spatialweave.")):
            base = node.module.removeprefix("spatialweave.").replace(".", "/")
            (file,) = [path for path in (f"{base}.py", f"{base}/__init__.py") if path in pack.files] or [None]
            there = set() if file is None else set(top_level_names(pack.tree(file)))
            wrong += [
                f"{name}: {alias.name} of {node.module}" for alias in node.names if alias.name not in there
            ]
            seen += 1
    assert seen > 5 and not wrong, "\n".join(wrong)


def commands(text):
    """Each `spatialweave COMMAND ...` that has arguments, as its words: of a line, or in backticks."""
    text = re.sub(r"\\\n\s*", " ", text)
    before = r"(?:^|`)(?: {4})?(?:[^`\n]* --no-python |[^`\n]*&& |(?:\w+=\S+ )+)? *"
    lines = re.findall(before + r"(spatialweave [a-z]+[^`\n]*)", text, flags=re.MULTILINE)
    return [words[1:] for words in (shlex.split(line, comments=True) for line in lines) if len(words) > 2]


def test_commands_are_understood(pack):
    """By the command's own parser, so no flag that it does not have, and no value that it refuses."""
    from spatialweave.models.cli.console import build_parser

    found = [(name, words) for name, text in pages(pack).items() for words in commands(text)]
    assert len(found) > 40
    refused = []
    for name, words in found:
        try:
            build_parser().parse_args([word for word in words if word != "..."])
        except (SystemExit, ValueError, OSError) as error:
            refused.append(f"{name}: {' '.join(words)} ({error})")
    assert not refused, "\n".join(refused)


def test_every_word_of_the_glossary_has_one_row_and_is_where_it_says(pack):
    rows = [
        re.split(r" *\| *", line.strip("| "))
        for line in pack.text("docs/glossary.md").splitlines()
        if line.startswith("| ")
    ]
    rows = [row for row in rows if row[0] != "Word"]
    assert len(rows) > 25 and all(len(row) == 4 and all(row) for row in rows)
    words = [row[0] for row in rows]
    assert len(set(words)) == len(words)
    wrong = []
    for word, _, _, where in rows:
        file, *names = re.findall(r"`([^`]+)`", where)
        text = pack.text(file) if file in pack.files else ""
        defined = [
            re.search(rf"^\s*(?:class |def )?{name}\b *[=:(]", text, flags=re.MULTILINE) for name in names
        ]
        wrong += [] if text and all(defined) else [f"{word}: {where}"]
    assert not wrong, "\n".join(wrong)


def read_tree(page):
    """Folders of the page's tree, by their indentation."""
    block, stack, found = re.findall(r"^```\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)[0], [], []
    for indent, name in re.findall(r"^( *)([\w.]+)/(?= |$)", block, flags=re.MULTILINE):
        stack = [*stack[: len(indent) // 2], name]
        found.append("/".join(stack))
    return found


def test_the_tree_has_every_room_and_no_other(pack, root):
    shown = read_tree(pack.text("docs/architecture.md"))
    assert len(set(shown)) == len(shown) > 25 and not [
        folder for folder in shown if not (root / folder).is_dir()
    ]
    rooms = {
        str(PurePosixPath(name).parent)
        for name in pack.code
        if name.count("/") > 1 or name.endswith("/__init__.py")
    }
    assert not sorted(room for room in rooms if room not in shown)


@pytest.mark.parametrize("page", ["README.md", "docs/status.md"])
def test_systems_without_code_are_said_not_to_be_there(pack, page):
    absent = {"SpatialDiff": "spatial_diff", "SpatialFusion": "spatial_fusion", "JoyAI-Image": "joyai_edit"}
    for system, folder in absent.items():
        if f"models/{folder}/__init__.py" not in pack.files:
            assert re.search(
                rf"^\|[^|]*{system}[^|]*\|.*not there yet", pack.text(page), flags=re.MULTILINE
            ), system
