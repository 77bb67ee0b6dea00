"""Called by worker.py inside ComfyUI: the image's calls of the network beside its maps against the base
model's, operator by operator.
"""

import contextlib
import sys

ours = ours  # noqa: F821, PLW0127 - set by worker.py
load = sys.modules["__main__"].load_file
small, runs, operators = load("inside_intrinsic.py"), load("inside_intrinsic_runs.py"), load("operators.py")


def record(patcher, latent, **named):
    with operators.asked_of(patcher.model.diffusion_model) as calls:
        small.sample(patcher, latent, **named)
    return calls


def image_operators(kind="sd21", batch=2, cfg=3.0, steps=3, precision="float32", stopped=False):
    """With weight off every step has a call for the image and one for its maps;
    with maps `stopped` the last step has the image's alone.

    How many calls and operators were compared, where they differ, whether the same tensors came;
    and the maps' calls, which must differ.
    """
    around = (
        runs.in_bfloat16(kind)
        if precision == "bfloat16"
        else contextlib.nullcontext((small.model(kind), small.lora(kind)))
    )
    with around as (plain, file):
        given = {"cfg": cfg, "steps": steps}
        base = record(plain, small.empty(batch, kind), **given)
        patched = small.coupled(plain, "gaussian" if stopped else "off", file=file, keep=not stopped)
        calls = record(patched, small.joined(patched, small.empty(batch, kind)), **given)
    image, maps = (calls[-1:], calls[:1]) if stopped else (calls[::2], calls[1::2])
    pairs = list(zip(base[-1:] if stopped else base, image, strict=True))
    return {
        "calls": len(pairs), "operators": min(len(call["operators"]) for call in image),
        "differences": [difference for pair in pairs if (difference := operators.first_difference(*pair))],
        # after coupled steps the image is another
        "arguments": all(operators.same_arguments(*pair) for pair in pairs),
        "maps differ": all(operators.first_difference(*pair) is not None for pair in zip(base, maps)),
    }  # fmt: skip
