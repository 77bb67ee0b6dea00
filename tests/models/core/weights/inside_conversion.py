"""Run by test_conversion.py in a process of its own: how far the peak memory rises above that of a small
file's conversion.

python inside_conversion.py SMALL LARGE FORMAT FOLDER      writes the rise in bytes
"""

import resource
import sys
from pathlib import Path

from spatialweave.models.core.weights.conversion import convert_file
from spatialweave.models.core.weights.files import read_header


def convert(source, form, target):
    convert_file(source, target, dict.fromkeys(read_header(source).shapes, form), {})
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    small, large, form, folder = sys.argv[1:]
    before = convert(small, form, Path(folder) / "small_out.safetensors")
    sys.stdout.write(str(convert(large, form, Path(folder) / "large_out.safetensors") - before))
