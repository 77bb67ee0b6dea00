"""Called by worker.py inside ComfyUI: what a user does in the first hour, where no other inside_*.py does it yet."""

import asyncio
import json
import socket
import sys
from pathlib import Path

import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from comfy.nested_tensor import NestedTensor

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py
sampling, modes, geometry, matrix = (
    sys.modules.get(f"spatialweave_tests_inside_{name}") for name in ("sampling", "modes", "geometry", "matrix")
)  # loaded before, by the tests that share them
sentence = geometry and geometry.sentence


def run(node, *values, **named):
    return core.NODE_CLASS_MAPPINGS[f"SpatialWeave_{node}"].execute(*values, **named).result


def finite(streams):
    return all(bool(part.isfinite().all()) for part in streams)


def given_pictures():
    """Pictures of one, three and four channels, and what ComfyUI's own node makes of an RGBA file, as a given image."""
    import folder_paths
    from PIL import Image

    r, rgb = sampling.rig(), torch.rand(1, 64, 48, 3, generator=torch.Generator().manual_seed(0))
    alpha = torch.rand(1, 64, 48, 1, generator=torch.Generator().manual_seed(1))
    grey = rgb[..., :1]
    pictures = {"rgb": rgb, "rgba": torch.cat([rgb, alpha], -1), "grey": grey, "grey as rgb": grey.expand(1, 64, 48, 3)}
    latents = {name: run("ImageToDepthLatent", r.model, r.vae, one)[0]["samples"].unbind()[0] for name, one in pictures.items()}
    file = Path(folder_paths.get_temp_directory()) / "rgba.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = (pictures["rgba"][0] * 255).round().byte().numpy()
    Image.fromarray(pixels, "RGBA").save(file)
    image, mask = core.LoadImage().load_image("rgba.png [temp]")
    return {
        "rgba": float((latents["rgba"] - latents["rgb"]).abs().max()),
        "grey": float((latents["grey"] - latents["grey as rgb"]).abs().max()),
        "core": [list(image.shape), float((1 - mask - alpha[..., 0]).abs().max())],
    }


def asked_size(height, width):
    """A joint run of a size: the sizes that come back."""
    r = sampling.rig()
    (latent,) = run("EmptyJointLatent", r.model, width, height, 1)
    pictures, view = run("DecodeJointLatent", sampling.ksample(r.model, latent, steps=1), r.vae)
    return [list(pictures.shape[1:3]), list(view.depth.shape[1:])]


def bad_depth_given(kind):
    """Depth to image with bad numbers: the refusal, or whether the picture is finite and how many pixels are missing."""
    r, depth = sampling.rig(), torch.linspace(1, 4, 64 * 48).reshape(1, 64, 48)
    if kind == "all zero":
        depth = depth * 0
    if kind == "constant":
        depth = torch.ones_like(depth)
    if kind == "holes":
        depth = depth.clone()
        depth[0, 0, 0], depth[0, 0, 1], depth[0, 1:8] = torch.nan, torch.inf, -1.0
    view = ours("models.core.geometry.view").View.from_depth(depth, units="metric")
    refusal = sentence(lambda: run("DepthToImageLatent", r.model, view))
    if refusal:
        return {"refusal": refusal}
    pictures, _ = run("DecodeJointLatent", sampling.ksample(r.model, run("DepthToImageLatent", r.model, view)[0], steps=2), r.vae)
    return {"refusal": None, "finite": finite([pictures]), "invalid": view.invalid_counts[0], "spread": float(pictures.std())}


def empty_prompt():
    """All modes with an empty prompt on both sides, guided."""
    r = sampling.rig()
    latents = {
        "joint": r.latent(),
        "image to depth": run("ImageToDepthLatent", r.model, r.vae, modes.picture())[0],
        "depth to image": run("DepthToImageLatent", r.model, modes.view())[0],
    }
    out = {}
    for name, latent in latents.items():
        (made,) = core.KSampler().sample(r.model, 7, 2, 4.0, "euler", "simple", r.negative, r.negative, latent, 1.0)
        out[name] = finite(run("DecodeJointLatent", made, r.vae)[:1])
    return out


def on_this_machine():
    """What runs without Triton: a joint run, a cloud, a preview, and which kernel core's attention is told to use."""
    r = sampling.rig()
    image, depth = sampling.ksample(r.model, r.latent(), steps=1)["samples"].unbind()
    _, view = run("DecodeJointLatent", {"samples": NestedTensor((image, depth))}, r.vae)
    options = {"index": 0, "fov_degrees": 65.0, "edge_threshold": 0.0, "max_points": 100, "frame": "camera"}
    cloud, _ = run("PointCloud", geometry.scene(), **options)
    return {
        "finite": finite((image, depth)),
        "valid": bool(view.mask.any()),
        "cloud": cloud.format,
        "triton": importable("triton"),
        "device": str(comfy.model_management.get_torch_device()),
    }


def importable(name):
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def missing_weights(name):
    """What the loader says before and in the run, and that it asks no network, neither then nor for a file that is there."""
    node = core.NODE_CLASS_MAPPINGS["SpatialWeave_LoadModalityForcing"]
    asked, connect = [], socket.socket.connect

    def refuse(self, address):
        asked.append(str(address))
        raise OSError("no network in this test")

    socket.socket.connect = refuse
    try:
        before = node.validate_inputs(name)
        during = sentence(lambda: node.execute(name))
        node.execute(ours("nodes.host.loading").TINY)
    finally:
        socket.socket.connect = connect
    return {"before": before, "during": during, "asked": asked}


def memory_asked():
    """What core is told that a step needs, by picture size."""
    model = sampling.rig().model.model
    return [model.memory_required([1, 1, pixels]) for pixels in (10**4, 10**5, 10**6)]


def stacked():
    """LoRA, order, guidance per stream, core's shift, an attention override and a refused patch on one model."""
    from comfy_extras.nodes_model_advanced import ModelSamplingFlux

    r = sampling.rig()
    down, up = torch.randn(2, 4, 192, generator=torch.Generator().manual_seed(1)).mul(0.2)
    width, name = r.config.hidden_size, "diffusion_model.double_blocks.0.img_attn.proj"
    state = {f"{name}.lora_down.weight": down[:, :width], f"{name}.lora_up.weight": up[:, :width].T.contiguous()}
    calls = []

    def attention(function, *args, **kwargs):
        calls.append(1)
        return function(*args, **kwargs)

    def build(without=()):
        model = r.model
        if "LoRA" not in without:
            model, _ = comfy.sd.load_lora_for_models(model, None, state, 1.0, 0)
        if "order" not in without:
            (model,) = run("ModalityOrder", model, 3.0)
        if "guidance" not in without:
            (model,) = run("GuidancePerStream", model, 2.5)
        if "shift" not in without:
            (model,) = ModelSamplingFlux().patch(model, 2.0, 2.0, 64, 64)
        model = model.clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = attention
        return model

    def sample(model):
        return sampling.ksample(model, r.latent(), steps=3, cfg=3.0)["samples"].unbind()

    whole = sample(build())
    each = {part: sampling.difference(sample(build([part])), whole) for part in ("LoRA", "order", "guidance", "shift")}
    unpatched = build()
    unpatched.set_model_attn1_patch(lambda *args, **kwargs: args)
    return {"finite": finite(whole), "each": each, "attention": len(calls), "refusal": sentence(lambda: sample(unpatched))}


def validated(graphs, extras):
    """ComfyUI's own check of graphs in API form: what it has against each."""
    import execution

    matrix.load_extras(*extras)
    out = {}
    for name, graph in graphs.items():
        good, error, _, node_errors = asyncio.run(execution.validate_prompt(name, graph, None))
        out[name] = None if good else json.dumps([error, node_errors], default=str)
    return out
