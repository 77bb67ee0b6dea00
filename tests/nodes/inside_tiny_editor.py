"""Called by worker.py inside ComfyUI: the tiny editor with random weights, as core objects and as a graph."""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import comfy.ldm.flux.model
import comfy.model_base
import torch
from comfy_extras.nodes_edit_model import ReferenceLatent

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py
editors = sys.modules["__main__"].load_file("inside_spatial_diff.py")  # worker.py's
KEEP = {}
TINY = "tiny (shipped with the pack)"
SENTENCE = "move the red ball one metre to the left"
STEPS, SEED, CFG = 4, 5, 2.0


def folder():
    """A folder with every file of the tiny system, of random weights, which the nodes take for the pack's."""
    if "folder" in KEEP:
        return KEEP["folder"]
    files, flux, lora = (ours(f"models.spatial_diff.{name}") for name in ("editor_files", "flux", "lora"))
    weights, network = (ours(f"models.spatial_diff.{name}") for name in ("weights", "network"))
    path = Path(tempfile.mkdtemp())
    torch.manual_seed(0)
    tiny = flux.PRESETS["tiny"]
    editor = flux.Flux(tiny)
    files.save_editor(path / "tiny_editor.safetensors", editor.state_dict(), tiny, dtype=torch.float16)
    text = files.new_text_encoder(tiny.context_in_dim)
    files.save_text(path / "tiny_text.safetensors", text.state_dict(), dtype=torch.float16)
    layers = lora.LowRankLayers(editor, 4, 8.0, torch.Generator().manual_seed(1))
    for layer in layers.layers.values():
        torch.nn.init.normal_(layer.up, std=0.2)
    lora.save_lora(
        path / "tiny_lora.safetensors", layers.state_dict(), rank=4, alpha=8.0, dtype=torch.float16
    )
    config = ours("models.spatial_diff.config").find_preset("tiny")
    connector, head = network.GeometryConnector(config), network.LatentDepthHead(config)
    weights.save_connector(path / "tiny_connector.safetensors", connector, head, dtype=torch.float16)
    use(path)
    KEEP["folder"] = path
    return path


def use(path):
    """Let the nodes take the files of a folder for the shipped ones."""
    hosted = ours("nodes.host.spatial_diff.tiny_editor")
    for name in ("EDITOR_FILE", "TEXT_FILE", "LORA_FILE"):
        setattr(hosted, name, path / getattr(hosted, name).name)
    ours("nodes.host.spatial_diff.connector").TINY_CONNECTOR = path / "tiny_connector.safetensors"


def run(node, **values):
    return core.NODE_CLASS_MAPPINGS[f"SpatialWeave_{node}"].EXECUTE_NORMALIZED(**values).result


def stock(node, **values):
    """A node of core, of either form."""
    kind = core.NODE_CLASS_MAPPINGS[node]
    if hasattr(kind, "EXECUTE_NORMALIZED"):
        return kind.EXECUTE_NORMALIZED(**values).result
    return getattr(kind(), kind.FUNCTION)(**values)


def loaded(strength=1.0):
    folder()
    if strength not in KEEP:
        KEEP[strength] = run("LoadTinyEditor", lora_strength=strength)
    return KEEP[strength]


def gap(a, b):
    return float((a.float() - b.float()).abs().max())


def make_image(height=128, width=128, batch=1):
    return torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(3))


def edit(image, text=SENTENCE, *, strength=1.0, tokens=1.0, steps=STEPS, cfg=CFG):
    """The graph of the template: an image and an instruction to the sampled latent and the edited image."""
    model, clip, vae = loaded(strength)
    (latent,) = stock("VAEEncode", pixels=image, vae=vae)
    conditions = []
    for words in (text, ""):
        (encoded,) = stock("CLIPTextEncode", clip=clip, text=words)
        conditions += ReferenceLatent.execute(encoded, latent).result
    if tokens:
        (vggt,) = run("LoadVggt", model_name=TINY)
        seen, _ = run(
            "VggtGeometryTokens", vggt=vggt, image=image, fit="pad", longer_side=0, global_queries=0
        )
        (connector,) = run("LoadGeometryConnector", connector_name=TINY)
        (model,) = run(
            "GeometryTokens", model=model, tokens=seen, connector=connector, strength=tokens,
            start_percent=0.0, end_percent=1.0, mask=None,
        )  # fmt: skip
    (out,) = stock(
        "KSampler", model=model, seed=SEED, steps=steps, cfg=cfg, sampler_name="euler", scheduler="simple",
        positive=conditions[0], negative=conditions[1], latent_image=latent, denoise=1.0,
    )  # fmt: skip
    return out["samples"], stock("VAEDecode", vae=vae, samples=out)[0]


def as_core_objects():
    """Which classes hold the tiny editor, and what core knows of it."""
    model, _, vae = loaded(0.0)
    network, latent = model.model.diffusion_model, model.model.latent_format
    again = model.cached_patcher_init[0](*model.cached_patcher_init[1]).model.diffusion_model
    return {
        "classes": [
            type(model.model) is comfy.model_base.Flux, type(network) is comfy.ldm.flux.model.Flux,
            type(vae.first_stage_model).__name__,
        ],
        "type": model.model.model_type.name,
        "dtypes": sorted({str(value.dtype) for value in network.state_dict().values()}),
        "sizes": [latent.latent_channels, latent.spacial_downscale_ratio, vae.downscale_ratio],
        "shift": model.model.model_sampling.shift,
        "preview": [len(row) for row in latent.latent_rgb_factors],
        "again": gap(again.img_in.weight, network.img_in.weight),
    }  # fmt: skip


def against_pipeline():
    """Stock KSampler on the node's MODEL against the pipeline in plain torch, with and without each part."""
    pipeline = ours("models.spatial_diff.pipeline")
    parts, image, seen = pipeline.Parts.of_folder(folder()), make_image(), {}
    cases = {
        "editor": (pipeline.Parts(parts.editor, parts.text), 0.0, 0.0),
        "editor and LoRA": (pipeline.Parts(parts.editor, parts.text, parts.lora), 1.0, 0.0),
        "all": (parts, 1.0, 1.0),
    }
    for name, (files, strength, tokens) in cases.items():
        plain = pipeline.SpatialDiffPipeline.from_parts(files)
        expected = plain(SENTENCE, image=image, steps=STEPS, guidance=CFG, seed=SEED)
        latent, found = edit(image, strength=strength, tokens=tokens)
        seen[name] = {
            "latent": gap(latent, expected.latent), "image": gap(found, expected.image),
            "size": float(expected.latent.std()), "shape": list(found.shape),
        }  # fmt: skip
        KEEP[name] = latent
    seen["LoRA changes"] = gap(KEEP["editor"], KEEP["editor and LoRA"])
    seen["tokens change"] = gap(KEEP["editor and LoRA"], KEEP["all"])
    other, _ = edit(image, "put the blue box behind the cone")
    seen["instruction changes"] = gap(KEEP["all"], other)
    seen["reference changes"] = gap(KEEP["all"], edit(1 - image)[0])
    return seen


def by_cores_lora_loader():
    """The LoRA at half strength by the node, and by core's own loader from its loras folder."""
    import folder_paths

    folder_paths.add_model_folder_path("loras", str(folder()))
    image = make_image()
    (patched,) = stock(
        "LoraLoaderModelOnly", model=loaded(0.0)[0], lora_name="tiny_lora.safetensors", strength_model=0.5
    )
    by_node, _ = edit(image, strength=0.5, tokens=0.0)
    KEEP["core's"] = (patched, *loaded(0.0)[1:])
    by_core, _ = edit(image, strength="core's", tokens=0.0)
    return {"gap": gap(by_node, by_core), "change": gap(by_node, edit(image, strength=0.0, tokens=0.0)[0])}


def batches_and_sizes():
    """Two images of an odd size: the VAE crops them, as core's do; each as it is alone."""
    images = make_image(100, 140, 2)
    both, decoded = edit(images)
    return {"latent": list(both.shape), "image": list(decoded.shape), "finite": bool(both.isfinite().all())}


def previews():
    """The preview of a latent while sampling: about the image's colors."""
    model, _, vae = loaded(0.0)
    coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(6))
    image = torch.nn.functional.interpolate(coarse, (128, 128), mode="bilinear").movedim(1, -1)
    latent, format_ = vae.encode(image), model.model.latent_format
    factors = torch.tensor(format_.latent_rgb_factors)
    shown = latent.movedim(1, -1) @ factors + torch.tensor(format_.latent_rgb_factors_bias)
    mean = torch.nn.functional.avg_pool2d(image.movedim(-1, 1), 16).movedim(1, -1) * 2 - 1
    return {"gap": float((shown - mean).abs().mean()), "spread": float(mean.std())}


def said(work):
    try:
        work()
    except Exception as error:  # noqa: BLE001 - what a user reads
        return str(error)
    return None


def refusals():
    """What each bad input says."""
    _, clip, _ = loaded()
    encode = lambda text: lambda: stock("CLIPTextEncode", clip=clip, text=text)  # noqa: E731
    image = make_image()
    (connector,) = run("LoadGeometryConnector", connector_name=TINY)
    found = {
        "unknown word": said(encode("move the red dog to the left")),
        "near word": said(encode("move the redd ball to the left")),
        "too long": said(encode(SENTENCE + " and the blue box to the right of the green cone")),
        "no object": said(encode("to the left")),
        "empty": said(encode("")),
        "layer": said(lambda: stock(
            "CLIPTextEncode", clip=stock("CLIPSetLastLayer", clip=clip, stop_at_clip_layer=-2)[0],
            text=SENTENCE,
        )),
        "no reference": said(lambda: sample_without_reference(image, connector)),
        "Kontext's connector": said(lambda: with_tokens(editors.connector(width=96))),
        "tiny connector on another editor": said(
            lambda: editors.with_tokens(editors.make("flux"), using=connector)
        ),
        "tokens of another image": said(lambda: with_tokens(connector, make_image(64, 128), sampled=True)),
        "start after end": said(lambda: with_tokens(connector, start=0.6, end=0.4)),
        "2 for 3": said(lambda: with_tokens(connector, make_image(batch=2), sampled=True, count=3)),
    }  # fmt: skip
    kept = folder()
    try:
        use(Path(tempfile.mkdtemp()))
        found["no editor file"] = said(lambda: run("LoadTinyEditor", lora_strength=1.0))
        found["no connector file"] = said(lambda: run("LoadGeometryConnector", connector_name=TINY))
    finally:
        use(kept)
    return found


def with_tokens(connector, image=None, *, start=0.0, end=1.0, sampled=False, count=1):
    """The tiny editor with the tokens of `image`, or a step of it that edits `count` images of 128 x 128."""
    model, clip, vae = loaded()
    image = make_image() if image is None else image
    # each image alone: several would be views of one scene
    parts = [geometry_of(each[None]) for each in image]
    tokens = replace(
        parts[0], tokens=torch.cat([part.tokens for part in parts]),
        frames=tuple(part.frames[0] for part in parts),
    )  # fmt: skip
    (model,) = run(
        "GeometryTokens", model=model, tokens=tokens, connector=connector, strength=1.0, start_percent=start,
        end_percent=end, mask=None,
    )  # fmt: skip
    if sampled:
        (latent,) = stock("VAEEncode", pixels=make_image(batch=count), vae=vae)
        (encoded,) = stock("CLIPTextEncode", clip=clip, text=SENTENCE)
        (encoded,) = ReferenceLatent.execute(encoded, latent).result
        stock(
            "KSampler", model=model, seed=1, steps=1, cfg=1.0, sampler_name="euler", scheduler="simple",
            positive=encoded, negative=encoded, latent_image=latent, denoise=1.0,
        )  # fmt: skip


def geometry_of(image):
    (vggt,) = run("LoadVggt", model_name=TINY)
    options = {"fit": "pad", "longer_side": 0, "global_queries": 0}
    return run("VggtGeometryTokens", vggt=vggt, image=image, **options)[0]


def sample_without_reference(image, connector):
    model, clip, vae = loaded()
    (vggt,) = run("LoadVggt", model_name=TINY)
    seen, _ = run("VggtGeometryTokens", vggt=vggt, image=image, fit="pad", longer_side=0, global_queries=0)
    (model,) = run(
        "GeometryTokens", model=model, tokens=seen, connector=connector, strength=1.0, start_percent=0.0,
        end_percent=1.0, mask=None,
    )  # fmt: skip
    (latent,) = stock("VAEEncode", pixels=image, vae=vae)
    (encoded,) = stock("CLIPTextEncode", clip=clip, text=SENTENCE)
    stock(
        "KSampler", model=model, seed=1, steps=1, cfg=1.0, sampler_name="euler", scheduler="simple",
        positive=encoded, negative=encoded, latent_image=latent, denoise=1.0,
    )  # fmt: skip
