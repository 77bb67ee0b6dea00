"""What the converter needs for the largest matrix of the 9B network: memory above what importing torch takes,
and processor time.

    python tests/benchmarks/worker_conversion.py fp8      (or int8, nvfp4)

The file is written in blocks, so that making it leaves no mark on the peak.
Unix only: the peak is the system's own count.
"""

import json
import resource
import struct
import sys
import tempfile
import time
from pathlib import Path

import torch

from spatialweave.models.core.weights.conversion import convert_file

NAME, SHAPE, BLOCK = "double_blocks.0.img_mlp.0.weight", (36864, 4096), 2**20
MIB = 2**20


def peak() -> float:
    """Largest memory of this process so far, in MiB."""
    return (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / MIB
    )


def write_matrix(path: Path) -> None:
    """A safetensors file of one bfloat16 matrix of normal noise."""
    values = SHAPE[0] * SHAPE[1]
    header = json.dumps({NAME: {"dtype": "BF16", "shape": SHAPE, "data_offsets": [0, 2 * values]}}).encode()
    generator = torch.Generator().manual_seed(0)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for _ in range(values // BLOCK):
            file.write(
                torch.randn(BLOCK, generator=generator).to(torch.bfloat16).view(torch.uint8).numpy().tobytes()
            )


def measure(form: str, folder: Path) -> str:
    write_matrix(folder / "in.safetensors")
    before, began = peak(), time.process_time()
    written = convert_file(folder / "in.safetensors", folder / "out.safetensors", {NAME: form}, {})
    seconds, rise = time.process_time() - began, peak() - before
    size = written.stat().st_size / MIB
    return (
        f"{form}: {rise:.0f} MiB above {before:.0f} MiB, "
        f"{seconds:.1f} processor seconds, 288 MiB became {size:.0f}\n"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        sys.stdout.write(measure(sys.argv[1], Path(place)))
