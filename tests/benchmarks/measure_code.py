"""The size and shape of the pack's code, as one table: `python tests/benchmarks/measure_code.py [FOLDER]`.

Counted are the Python files that git tracks outside tests/: files and lines; lines of a function (from the
line after its docstring to its end); tokens on a line that has any; lines above 110 characters; import edges
between our own modules (late imports, inside functions, count), and how many modules lie on a circle of them.
"""

import ast
import io
import statistics
import subprocess
import sys
import tokenize
from pathlib import Path

LIMIT = 110
LAYOUT = {
    tokenize.ENCODING, tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
    tokenize.COMMENT,
}


def list_code(root):
    listed = subprocess.run(
        ["git", "ls-files", "-z", "*.py"], cwd=root, capture_output=True, check=True, text=True
    ).stdout
    return [name for name in listed.split("\0") if name and not name.startswith("tests/")]


def function_lengths(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            yield (node.end_lineno - body[0].lineno + 1 if body else 0), node.name


def tokens_by_line(text):
    counts = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in LAYOUT:
            counts[token.start[0]] = counts.get(token.start[0], 0) + 1
    return list(counts.values())


def imported(name, tree, names):
    """The modules of ours that a file imports, late imports too."""
    known, folder = set(names), name.split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = folder[: len(folder) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                for parts in ([*base, alias.name], base):
                    found = [
                        path
                        for path in ("/".join(parts) + ".py", "/".join([*parts, "__init__.py"]))
                        if path in known
                    ]
                    if found:
                        yield found[0]
                        break


def circles(edges):
    """Modules that can reach themselves."""

    def reaches(start):
        seen, todo = set(), list(edges[start])
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += edges[name]
        return seen

    return sorted(name for name in edges if name in reaches(name))


def measure(root):
    names = list_code(root)
    texts = {name: (root / name).read_text(encoding="utf-8") for name in names}
    trees = {name: ast.parse(text) for name, text in texts.items()}
    lengths = sorted(length for tree in trees.values() for length, _ in function_lengths(tree))
    longest = max(
        (length, f"{name}: {function}")
        for name, tree in trees.items()
        for length, function in function_lengths(tree)
    )
    tokens = [count for text in texts.values() for count in tokens_by_line(text)]
    edges = {name: set(imported(name, tree, names)) - {name} for name, tree in trees.items()}
    lines = {name: text.count("\n") for name, text in texts.items()}
    return {
        "files": len(names), "lines": sum(lines.values()),
        "longest file": f"{max(lines.values())} ({max(lines, key=lines.get)})",
        "functions": len(lengths), "median lines of a function": statistics.median(lengths),
        "90th percentile": lengths[int(0.9 * (len(lengths) - 1))],
        "longest function": f"{longest[0]} ({longest[1]})",
        "mean tokens on a line": round(statistics.mean(tokens), 2),
        f"lines above {LIMIT} characters": sum(
            len(line) > LIMIT for text in texts.values() for line in text.split("\n")
        ),
        "import edges": sum(len(found) for found in edges.values()),
        "modules on a circle": ", ".join(circles(edges)) or "none",
    }  # fmt: skip


if __name__ == "__main__":
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[2]
    sys.stdout.writelines(f"{what:32s} {value}\n" for what, value in measure(root).items())
