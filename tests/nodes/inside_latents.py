"""Called by worker.py inside ComfyUI: joint latents taken apart, joined, saved and loaded."""

import sys
from pathlib import Path

import folder_paths
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py
# holds the models; its `start` was called before
sampling = sys.modules["spatialweave_tests_inside_sampling"]


def node(name):
    return core.NODE_CLASS_MAPPINGS[f"SpatialWeave_{name}"]


def run(name, *values):
    return node(name).execute(*values).result


def masked(batch=1):
    """A joint latent of an odd size with masks, and with missing depth."""
    View = ours("models.core.geometry.view").View
    depth = 1 + torch.rand(batch, 50, 40, generator=torch.Generator().manual_seed(2))
    depth[:, :9, :9] = 0
    latent, *_ = run("DepthToImageLatent", sampling.rig().model, View.from_depth(depth, units="metric"))
    return latent


def same(a, b):
    """Every bit of both latents, and all that belongs to them."""
    parts = [
        (x, y)
        for key in ("samples", "noise_mask")
        for x, y in zip(a[key].unbind(), b[key].unbind(), strict=True)
    ]
    bits = all(torch.equal(x.view(torch.int32), y.view(torch.int32)) for x, y in parts)
    others = [
        {
            key: list(v) if isinstance(v, tuple) else v
            for key, v in c.items()
            if key not in ("samples", "noise_mask")
        }
        for c in (a, b)
    ]
    return bool(bits and others[0] == others[1])


def taken_apart():
    """Apart and together again; and how core sees the image's part."""
    latent = masked(2)
    image, depth = run("SplitJointLatent", latent)
    (again,) = run("JoinJointLatent", image, depth)
    pixels = core.VAEDecode().decode(sampling.rig().vae, image)[0]
    flipped = core.LatentFlip().flip(image, "x-axis: vertically")[0]["samples"]
    return {"same": same(latent, again), "pixels": list(pixels.shape), "flipped": list(flipped.shape)}


def join(case):
    """A joint latent of parts that were made or changed by core."""
    image, depth = run("SplitJointLatent", masked())
    if case == "batch of one":
        image = image | {"samples": torch.cat([image["samples"]] * 3)}
    if case == "scaled":
        image, depth = (
            core.LatentUpscaleBy().upscale(part, "nearest-exact", 2.0)[0] for part in (image, depth)
        )
    if case == "stretched":
        image, depth = (
            part | {"samples": part["samples"].repeat_interleave(2, dim=-1)} for part in (image, depth)
        )
    if case == "encoded":
        image = core.VAEEncode().encode(sampling.rig().vae, torch.rand(1, 64, 48, 3))[0]
    return run("JoinJointLatent", image, depth)[0]


def decoded_size(case):
    """What Decode Joint Latent makes of it: the picture's shape and the depth's."""
    picture, view = run("DecodeJointLatent", join(case), sampling.rig().vae)
    return [list(picture.shape), list(view.depth.shape)]


def joined(case):
    """Shapes, size and masks after joining."""
    latent = join(case)
    return {
        "shapes": [list(part.shape) for part in latent["samples"].unbind()],
        "size": list(latent.get("spatialweave_size", ())),
        "masks": [float(part.mean()) for part in latent["noise_mask"].unbind()],
    }


def saver():
    """The node as the executor prepares it, with a graph to store."""
    save = node("SaveJointLatent").PREPARE_CLASS_CLONE(None)
    save.hidden = type(
        "Hidden", (), {"prompt": {"1": {"class_type": "Any"}}, "extra_pnginfo": {"workflow": {"nodes": []}}}
    )
    return save


def saved_and_loaded(folder):
    """Save, list, load; the file's own statement; a second save gets the next number."""
    folder_paths.set_output_directory(folder)
    save = saver()
    latent = masked()
    said = [save.execute(latent, "latents/joint").ui for _ in range(2)]
    listed = ours("nodes.host.modality_forcing.latent_files").list_joint_latents()
    (again,) = run("LoadJointLatent", listed[-1])
    with safe_open(Path(folder) / "latents" / said[0]["latents"][0]["filename"], "pt") as file:
        metadata = file.metadata()
    prints = [node("LoadJointLatent").fingerprint_inputs(name) for name in listed]
    out = sampling.ksample(sampling.rig().model, again)["samples"].unbind()
    return {
        "same": same(latent, again),
        "files": [entry["latents"][0]["filename"] for entry in said],
        "listed": listed,
        "metadata": metadata,
        "prints": [len(value) for value in prints],
        "samples": all(bool(part.nan_to_num().isfinite().all()) for part in out),
    }


def saved_deep(folder):
    """Saved under prefixes with and without folders; what is listed, and whether each comes back."""
    folder_paths.set_output_directory(f"{folder}/output")
    folder_paths.set_input_directory(f"{folder}/input")
    save, latent = saver(), masked()
    for prefix in ("top", "a/b/joint"):
        save.execute(latent, prefix)
    Path(folder, "input").mkdir()
    for name in ("given.joint.safetensors", "given.safetensors"):
        Path(folder, "input", name).write_bytes(b"")
    listed = ours("nodes.host.modality_forcing.latent_files").list_joint_latents()
    return {
        "listed": listed,
        "same": [
            same(latent, run("LoadJointLatent", name)[0]) for name in listed if name.endswith("[output]")
        ],
    }


def steps_of_the_size():
    """Of the widgets of Empty Joint Latent."""
    inputs = node("EmptyJointLatent").INPUT_TYPES()["required"]
    return {name: inputs[name][1]["step"] for name in ("width", "height")}


def refused(case, folder):
    """The sentence with which a wrong input is refused."""
    folder_paths.set_output_directory(folder)
    save_file({"lora_up.weight": torch.zeros(2)}, Path(folder) / "other.joint.safetensors")
    latent = masked()
    image, depth = run("SplitJointLatent", latent)
    pair, three = (
        {"samples": torch.cat([part["samples"]] * count)} for part, count in ((image, 2), (depth, 3))
    )
    cases = {
        "plain latent split": lambda: run("SplitJointLatent", image),
        "joint latent joined": lambda: run("JoinJointLatent", latent, depth),
        "sizes that do not fit": lambda: run(
            "JoinJointLatent", image, depth | {"samples": depth["samples"][..., :32]}
        ),
        "batches that do not fit": lambda: run("JoinJointLatent", image | pair, depth | three),
        "plain latent saved": lambda: saver().execute(image, "latents/joint"),
        "another file": lambda: run("LoadJointLatent", "other.joint.safetensors [output]"),
        "a file that is gone": lambda: run("LoadJointLatent", "gone.joint.safetensors [output]"),
    }
    try:
        cases[case]()
    except ValueError as error:
        return str(error)
    return None
