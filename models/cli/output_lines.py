"""Lines on standard output, whatever its encoding."""

from __future__ import annotations

import sys


def write_line(line: str) -> None:
    """A line on standard output; characters that its encoding lacks are written as \\uNNNN."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
