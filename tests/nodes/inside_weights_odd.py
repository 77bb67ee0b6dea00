"""Called by worker.py inside ComfyUI: files as other programs leave them, through the nodes' own loaders;
what each says.
"""

import sys

import folder_paths
import torch

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py


def small():
    """The small models of core's own classes."""
    return sys.modules["__main__"].load_file("inside_intrinsic.py")


def said(call):
    """The sentence of a refusal; anything else that is raised is a fault of ours."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return None


def projection():
    """The first projection of the small SD2.1: its path, as diffusers has it, and its widths."""
    base = ours("nodes.host.intrinsic_ldm.layers").Base(small().model())
    path, found = next(iter(base.projections(small().model().model.diffusion_model).items()))
    return [path, found.inputs, found.outputs]


def lora_scales(path, name):
    """The scales of a LoRA's changes."""
    patcher = small().model()
    base = ours("nodes.host.intrinsic_ldm.layers").Base(patcher)
    return [
        change.delta.scale
        for change in ours("nodes.host.intrinsic_ldm.model").lora_changes(patcher, base, path, name)
    ]


def lora_refused(folder, name):
    """What Intrinsic Co-Generation itself says to a file of the loras folder."""
    folder_paths.add_model_folder_path("loras", folder)
    folder_paths.filename_list_cache.clear()
    node = core.NODE_CLASS_MAPPINGS["SpatialWeave_IntrinsicCoGeneration"]
    options = {
        "schedule": {"schedule": "constant", "weight": 1.0}, "cut_below": 0.0, "keep_maps": True,
        "share_image_loras": True,
    }
    return said(lambda: node.execute(model=small().model(), lora_name=name, **options))


def network_refused(path):
    return said(lambda: ours("nodes.host.modality_forcing.loading").load_joint_model(path))


def network_weights(path):
    """The dtype of the hosted network's first matrix, and the sum of all its numbers."""
    network = ours("nodes.host.modality_forcing.loading").load_joint_model(path).model.diffusion_model
    total = sum(float(value.double().abs().sum()) for value in network.state_dict().values())
    return {"dtype": str(network.img_in.weight.dtype), "sum": total}


def part_refused(what, path):
    """What the loader of a network's text encoder or VAE says to the file that it finds."""
    parts = ours("nodes.host.modality_forcing.klein_parts")
    before, parts.find_installed = parts.find_installed, lambda file: path
    try:
        return said(
            lambda: parts.load_clip(object(), 96) if what == "clip" else parts.load_flux2_vae(object())
        )
    finally:
        parts.find_installed = before


def latent_refused(path):
    """What Load Joint Latent says to a file, and what it gives of one that is right."""
    files = ours("nodes.host.modality_forcing.latent_files")
    before = folder_paths.get_annotated_filepath
    folder_paths.get_annotated_filepath = lambda name: name
    try:
        refusal = said(lambda: files.load_joint_latent(path))
        if refusal:
            return {"said": refusal}
        latent = files.load_joint_latent(path)
        image, depth = latent["samples"].unbind()
        return {
            "said": None, "missing": int(torch.isnan(depth).sum()),
            "size": list(latent.get("spatialweave_size", [])),
        }
    finally:
        folder_paths.get_annotated_filepath = before
