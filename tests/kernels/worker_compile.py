"""Compiles the Triton kernels for machines that are not here and reads what came out;
one JSON line a variant, for every name given.

A process of its own: it must not run in the interpreter's. Names are kernel-target-width-dtype,
then -odd for lengths that no tile divides, and -whole-QUERIES-KEYS-WARPS-STAGES for another tile with the
head width as one padded part.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from spatialweave.kernels.segment_attention import kernel, kernel_backward, launch

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SHARED = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 120: 99 << 10}  # bytes a block may have
COUNTS = {*kernel.UNSPECIALISED, "key_rows", "n_keys"}
KIND = {"fp16": "*fp16", "bf16": "*bf16"}


def source(name, target, width, dtype, even, tile=None):
    """(ASTSource, Config): the arguments as a launch on 16-byte aligned tensors specialises them.
    even: all sources hold whole tiles. tile: a Config instead of the usual one.
    """
    function = getattr(kernel if name == "forward" else kernel_backward, f"{name}_kernel")
    capability = divmod(target, 10) if isinstance(target, int) else None
    config = tile or launch.config(name, capability, width)
    d1, d2 = launch.split_width(width, config.whole)
    constants = {
        "T": 2, "S": 1, "D": width, "D1": d1, "D2": d2, "BM": config.queries, "BN": config.keys, "EVEN": even,
    }
    constants |= {"LSE": True, "DW": True}
    signature, aligned = {}, {}
    for index, argument in enumerate(function.arg_names):
        if argument in constants:
            signature[argument] = "constexpr"
            continue
        signature[argument] = kind(argument, dtype)
        if signature[argument].startswith("*") or (argument.startswith("s_") and argument not in COUNTS):
            aligned[(index,)] = [["tt.divisibility", 16]]
    used = {
        (index,): constants[argument]
        for index, argument in enumerate(function.arg_names)
        if argument in constants
    }
    return ASTSource(function, signature, used, aligned), config


def kind(argument, dtype):
    if argument in ("lse", "dlse", "weight", "delta", "dw"):
        return "*fp32"
    if argument in ("tiles", "sources", "segments"):
        return "*i32"
    if argument == "scale":
        return "fp32"
    return "i32" if argument.startswith("s_") or argument in COUNTS else KIND[dtype]


def compiled(name, target, width, dtype, even, tile=None):
    made, config = source(name, target, width, dtype, even, tile)
    where = (
        GPUTarget("cuda", target, 32)
        if isinstance(target, int)
        else GPUTarget("hip", target, 64 if target == "gfx942" else 32)
    )
    began = sum(os.times()[:4])
    binary = triton.compile(
        made,
        target=where,
        options={"num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": True},
    )
    found = {"seconds": round(sum(os.times()[:4]) - began, 2), "shared": binary.metadata.shared}
    found["scores"] = config.queries * config.keys // (32 * config.warps)  # of a thread in one tile
    return found | (
        read_cubin(binary.asm["cubin"], target)
        if isinstance(target, int)
        else read_amdgcn(binary.asm["amdgcn"])
    )


def read_cubin(cubin, target):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        usage, code = (
            subprocess.run([TOOLS / tool, option, file], capture_output=True, check=True, text=True).stdout
            for tool, option in (("cuobjdump", "--dump-resource-usage"), ("nvdisasm", "-c"))
        )
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    loop = innermost_loop(code.splitlines())
    count = lambda pattern, lines: sum(bool(re.search(pattern, line)) for line in lines)  # noqa: E731
    return {
        "registers": numbers["REG"], "stack": numbers["STACK"] + numbers["LOCAL"], "limit": SHARED[target],
        "tensor": count(r"\b(HGMMA|HMMA)\b", code.splitlines()),
        "warpgroup": count(r"\bHGMMA\b", code.splitlines()),
        "loop_spills": count(r"\b(STL|LDL)\b", loop), "loop": count(r";", loop),
        "waits": count(r"WARPGROUP\.DEPBAR", code.splitlines()),
    }  # fmt: skip


def innermost_loop(lines):
    """The longest stretch from a label to a branch back to it with tensor-core work and no such
    stretch inside.
    """
    labels = {
        match[1]: number for number, line in enumerate(lines) if (match := re.match(r"\s*(\.L_\S+):", line))
    }
    jumps = [
        (labels[match[1]], number)
        for number, line in enumerate(lines)
        if (match := re.search(r"\bBRA.*`\((\.L_\S+)\)", line))
        and match[1] in labels
        and labels[match[1]] < number
    ]  # fmt: skip
    busy = [jump for jump in jumps if any("MMA" in line for line in lines[jump[0] : jump[1]])]
    inner = [
        jump
        for jump in busy
        if not any(other != jump and jump[0] <= other[0] and other[1] <= jump[1] for other in busy)
    ]
    start, stop = max(inner, key=lambda jump: jump[1] - jump[0], default=(0, 0))
    return lines[start : stop + 1]


def read_amdgcn(text):
    numbers = {
        key: int(value)
        for key, value in re.findall(r"\.(vgpr_spill_count|private_segment_fixed_size):\s*(\d+)", text)
    }
    return {
        "stack": numbers["private_segment_fixed_size"], "spills": numbers["vgpr_spill_count"],
        "limit": 64 << 10,
        "tensor": len(re.findall(r"v_mfma|v_wmma", text)),
    }  # fmt: skip


if __name__ == "__main__":
    for variant in sys.argv[1:]:
        kernel_name, machine, head, precision, *others = variant.split("-")
        odd, tile = "odd" in others, None
        if "whole" in others:
            tile = launch.Config(*map(int, others[others.index("whole") + 1 :]), whole=True)
        result = compiled(
            kernel_name, int(machine) if machine.isdigit() else machine, int(head), precision, not odd, tile
        )
        sys.stdout.write(json.dumps([variant, result]) + "\n")
        sys.stdout.flush()
