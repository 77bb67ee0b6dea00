"""Called by worker.py inside ComfyUI: the nodes' declarations, the tiny CLIP and VAE, decoding,
and what is refused.
"""

import inspect

import torch
from comfy.nested_tensor import NestedTensor

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py


def our_nodes():
    return {name: node for name, node in core.NODE_CLASS_MAPPINGS.items() if name.startswith("SpatialWeave_")}


def declarations():
    """What the schemas say and what `execute` takes, as plain data."""
    out = {}
    for name, node in our_nodes().items():
        schema = node.GET_SCHEMA()
        out[name] = {
            "display_name": schema.display_name,
            "category": schema.category,
            "description": schema.description,
            "aliases": schema.search_aliases,
            "inputs": {put.id: {"type": put.get_io_type(), "tooltip": put.tooltip} for put in schema.inputs},
            # inputs of a dynamic combo's choices, by the frontend's name: a dot that its translations have
            # as an underscore
            "chosen": {
                f"{put.id}_{sub.id}": sub.tooltip
                for put in schema.inputs
                for option in getattr(put, "options", None) or ()
                for sub in getattr(option, "inputs", ())
            },
            "outputs": [
                {"id": put.id, "name": put.display_name, "type": put.io_type, "tooltip": put.tooltip}
                for put in schema.outputs
            ],
            "execute": [parameter for parameter in inspect.signature(node.execute).parameters],
        }
    return out


def core_objects():
    """MODEL, CLIP and VAE are core's own types, and the VAE lacks nothing that core's constructor sets."""
    import comfy.model_base
    import comfy.model_patcher

    model, clip, vae = _load()
    return {
        "model": isinstance(model, comfy.model_patcher.ModelPatcher)
        and isinstance(model.model, comfy.model_base.BaseModel),
        "clip": isinstance(clip, comfy.sd.CLIP),
        "vae": isinstance(vae, comfy.sd.VAE),
        "vae_lacks": sorted(set(vars(comfy.sd.VAE(sd={}))) - set(vars(vae))),
        "rebuilt": _rebuild(model),
    }


def _rebuild(model):
    """Core's multi-GPU, hooks and compile paths build the patcher again from this recipe."""
    factory, arguments = model.cached_patcher_init
    again = factory(*arguments, disable_dynamic=True)
    return all(
        torch.equal(a, b)
        for a, b in zip(model.model.state_dict().values(), again.model.state_dict().values())
    )


def text_and_image():
    """Stock CLIPTextEncode, VAEEncode, VAEDecode and the tiled decode on the tiny objects."""
    _, clip, vae = _load()
    encoder = ours("models.tiny.weights").load_text_encoder(
        ours("nodes.host.modality_forcing.loading").TEXT_FILE
    )
    prompt = "a red ball to the left of a blue box"
    context = core.CLIPTextEncode().encode(clip, prompt)[0][0][0]
    pixels = torch.rand(2, 64, 48, 3, generator=torch.Generator().manual_seed(0))
    (latent,) = core.VAEEncode().encode(vae, pixels)
    (decoded,) = core.VAEDecode().decode(vae, latent)
    (tiled,) = core.VAEDecodeTiled().decode(vae, latent, 512, 64)
    codec = vae.first_stage_model
    want = codec.encode(pixels.movedim(-1, 1) * 2 - 1)
    return {
        "text": float((context - encoder.encode([prompt])).abs().max()),
        "encode": float((latent["samples"] - want).abs().max()),
        "decode": float((decoded - (codec.decode(want).movedim(1, -1) / 2 + 0.5).clamp(0, 1)).abs().max()),
        "tiled": list(tiled.shape),
    }


def unknown_words(text):
    _, clip, _ = _load()
    return list(core.CLIPTextEncode().encode(clip, text)[0][0][0].shape)


def decode(height, width, batch=1):
    """Empty latent of a size, with depth values of every kind, decoded."""
    model, _, vae = _load()
    (latent,) = _run("EmptyJointLatent", model, width, height, batch)
    image, depth = latent["samples"].unbind()
    ramp = torch.linspace(-0.2, 2.2, depth[0].numel()).reshape(depth.shape[1:]).expand(depth.shape)
    pictures, view = _run("DecodeJointLatent", latent | {"samples": NestedTensor((image, ramp))}, vae)
    sky = model.model.model_config.network.infinite_sky
    want = ours("models.modality_forcing.depth_code").net_to_depth(ramp, infinite_sky=sky)[
        :, 0, :height, :width
    ]
    want = torch.where(want.isfinite(), want, torch.zeros(()))
    return {
        "picture": list(pictures.shape),
        "depth": list(view.depth.shape),
        "range": [float(pictures.min()), float(pictures.max())],
        "units": view.units,
        "exact": bool(torch.equal(view.depth, want)),
        "invalid": sum(view.invalid_counts),
        "latent": [list(part.shape) for part in (image, depth)],
    }


def preview(style):
    """The Preview Depth node on a ramp with a hole."""
    view = ours("models.core.geometry.view").View.from_depth(_ramp(), units="metric")
    out = our_nodes()["SpatialWeave_PreviewDepth"].EXECUTE_NORMALIZED(
        view=view, style=style, near_percentile=0.0, far_percentile=100.0
    )
    picture, text, control = out.result
    places = {"near": (5, 0), "far": (5, -1), "hole": (0, 0)}
    seen = {name: picture[0, y, x].tolist() for name, (y, x) in places.items()}
    return {
        "text": text, "shown": out.ui.as_dict()["images"],
        "control": [control[0, 5, x].tolist() for x in (0, -1)], **seen,
    }


def _ramp():
    depth = torch.linspace(1, 5, 40).expand(1, 30, 40).clone()
    depth[0, 0, 0] = float("nan")
    return depth


def refused(case):
    """The sentence with which a wrong input is refused."""
    model, clip, vae = _load()
    cases = {
        "plain latent into the model": lambda: _sample(model, clip, {"samples": torch.zeros(1, 4, 8, 8)}),
        "three streams": lambda: _sample(
            model, clip, {"samples": NestedTensor([torch.zeros(1, 4, 8, 8)] * 3)}
        ),
        "wrong channels": lambda: _sample(model, clip, _nested((1, 16, 4, 4), (1, 1, 64, 64))),
        "wrong depth size": lambda: _sample(model, clip, _nested((1, 32, 4, 4), (1, 1, 64, 48))),
        "plain latent into decode": lambda: _run(
            "DecodeJointLatent", {"samples": torch.zeros(1, 4, 8, 8)}, vae
        ),
        "foreign nested into decode": lambda: _run(
            "DecodeJointLatent", _nested((1, 8, 4, 4), (1, 8, 16)), vae
        ),
        "batches of different size": lambda: _run(
            "DecodeJointLatent", _nested((4, 32, 4, 4), (3, 1, 64, 64)), vae
        ),
        "depth of another picture": lambda: _run(
            "DecodeJointLatent", _nested((1, 32, 4, 4), (1, 1, 64, 48)), vae
        ),
        "wrong VAE": lambda: _run("DecodeJointLatent", _nested((1, 128, 4, 4), (1, 1, 64, 64)), vae),
        "prompt of another model": lambda: _sample_with(
            model, [[torch.zeros(1, 77, 768), {}]], _nested((1, 32, 4, 4), (1, 1, 64, 64))
        ),
        "order of another model": lambda: _run("ModalityOrder", _other_model(), 2.0),
        "empty latent of another model": lambda: _run("EmptyJointLatent", _other_model(), 64, 64, 1),
        "clip layers": lambda: core.CLIPTextEncode().encode(
            core.CLIPSetLastLayer().set_last_layer(clip, -2)[0], "a red ball"
        ),
    }
    try:
        cases[case]()
    except ValueError as error:
        return str(error)
    return None


def refused_file(path, name="given.safetensors"):
    """Loading a wrong file through the node, from a diffusion_models folder."""
    import folder_paths

    folder_paths.add_model_folder_path("diffusion_models", path)
    try:
        _run("LoadModalityForcing", name)
    except ValueError as error:
        return str(error)
    return None


def loaded_file(path, name="copy.safetensors"):
    """A good file: its MODEL, and what its CLIP and VAE sockets say."""
    import folder_paths

    folder_paths.add_model_folder_path("diffusion_models", path)
    model, clip, vae = _run("LoadModalityForcing", name)
    return {"model": type(model.model).__name__, "clip": clip.message, "vae": vae.message}


def _load():
    return ours("nodes.host.modality_forcing.loading").load_modality_forcing(
        ours("nodes.host.modality_forcing.loading").TINY
    )


def _run(node, *values):
    schema = our_nodes()[f"SpatialWeave_{node}"]
    return schema.execute(*values).result


def _nested(*shapes):
    return {"samples": NestedTensor([torch.zeros(shape) for shape in shapes])}


def _sample(model, clip, latent):
    return _sample_with(model, core.CLIPTextEncode().encode(clip, "a red ball")[0], latent)


def _sample_with(model, prompt, latent):
    return core.KSampler().sample(model, 0, 1, 1.0, "euler", "simple", prompt, prompt, latent)


def _other_model():
    class Other:
        model = type("SDXL", (), {})()

    return Other()


def said_under_the_encoder(texts):
    """What the page is sent while CLIPTextEncode runs as node 6, for one text after another."""
    import execution
    import server

    class Page:
        client_id = "page"

        def send_progress_text(self, text, node_id, sid=None):
            sent[-1].append([text, node_id, sid])

    sent, before = [], getattr(server.PromptServer, "instance", None)
    clip, server.PromptServer.instance = ours("nodes.host.modality_forcing.loading").load_tiny_clip_and_vae()[
        0
    ], Page()
    try:
        for text in texts:
            sent.append([])
            with execution.CurrentNodeContext("prompt", "6"):
                core.CLIPTextEncode().encode(clip, text)
    finally:
        if before is None:
            del server.PromptServer.instance
        else:
            server.PromptServer.instance = before
    return sent
