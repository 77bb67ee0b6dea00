"""Called by worker.py inside ComfyUI: the tiny latent diffusion model with random weights,
as core objects and beside diffusers.
"""

import tempfile
from pathlib import Path

import comfy.ldm.models.autoencoder
import comfy.ldm.modules.diffusionmodules.openaimodel as unets
import comfy.ops
import comfy.utils
import torch

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py
KEEP = {}
SCALE = 0.7


def random_like(state, seed):
    """Outputs of about unit size, the same every time."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, value in state.items():
        noise = torch.randn(value.shape, generator=generator)
        fan = max(1, value.numel() // max(1, len(value)))
        found[name] = (
            noise / fan**0.5
            if value.dim() > 1
            else noise * 0.1 + (value.dim() == 1 and name.endswith("weight"))
        )
    return found


def base():
    """(the file's content, the folder that the nodes now take for the pack's own)."""
    if "base" in KEEP:
        return KEEP["base"]
    tiny, text, hosted = (
        ours("models.intrinsic_ldm.tiny"), ours("models.tiny.text"),
        ours("nodes.host.intrinsic_ldm.tiny_diffusion"),
    )
    arguments = tiny.unet_for_core() | {"operations": comfy.ops.manual_cast}
    names = {
        theirs: diffusers for diffusers, theirs in comfy.utils.unet_to_diffusers(tiny.unet_for_core()).items()
    }
    unet = random_like(unets.UNetModel(**arguments).state_dict(), 1)
    vae = random_like(comfy.ldm.models.autoencoder.AutoencoderKL(**tiny.VAE.for_core(3)).state_dict(), 2)
    words = random_like(text.TinyTextEncoder(tiny.TEXT_WIDTH, tiny.TEXT_LAYERS).state_dict(), 3)
    to_diffusers = ours("models.intrinsic_ldm.weights").to_diffusers_names
    made = tiny.TinyBase(
        {names[name]: value for name, value in unet.items()}, to_diffusers(vae), words, SCALE
    )
    path = Path(tempfile.mkdtemp()) / "tiny_base.safetensors"
    tiny.save_base(path, made)
    hosted.BASE_FILE = path
    KEEP["base"] = tiny.load_base(path)
    return KEEP["base"]


def run(node, **values):
    return core.NODE_CLASS_MAPPINGS[f"SpatialWeave_{node}"].execute(**values).result


def loaded():
    base()
    if "loaded" not in KEEP:
        KEEP["loaded"] = run("LoadTinyDiffusion")
    return KEEP["loaded"]


def gap(a, b):
    return float((a.float() - b.float()).abs().max())


def as_core_objects():
    model, clip, vae = loaded()
    network = model.model.diffusion_model
    return {
        "classes": [type(network).__name__, type(vae.first_stage_model).__name__, type(model.model).__name__],
        "type": model.model.model_type.name,
        "dtypes": sorted({str(value.dtype) for value in network.state_dict().values()}),
        "scale": model.model.latent_format.scale_factor,
        "sizes": [model.model.latent_format.latent_channels, vae.latent_channels, vae.downscale_ratio],
        "again": gap(
            model.cached_patcher_init[0](*model.cached_patcher_init[1]).model.diffusion_model.out[2].weight,
            network.out[2].weight
        ),
        "preview": [len(row) for row in model.model.latent_format.latent_rgb_factors],
    }


def against_diffusers():
    """UNet and autoencoder with the same weights, core's against diffusers'."""
    try:
        import diffusers
    except ImportError:
        return None
    tiny, (model, _, vae), made = ours("models.intrinsic_ldm.tiny"), loaded(), base()
    unet = diffusers.UNet2DConditionModel(**tiny.unet_for_diffusers())
    missing = unet.load_state_dict(made.unet)
    autoencoder = diffusers.AutoencoderKL(**tiny.VAE.for_diffusers(3))
    autoencoder.load_state_dict(made.vae)
    generator = torch.Generator().manual_seed(4)
    x, context = (
        torch.randn(2, 8, 16, 16, generator=generator),
        torch.randn(2, 24, tiny.TEXT_WIDTH, generator=generator),
    )
    t = torch.tensor([7, 930])
    picture = torch.rand(1, 64, 64, 3, generator=generator)
    with torch.no_grad():
        theirs = unet(x, t, context).sample
        here = model.model.diffusion_model(x, t, context)
        latent = autoencoder.encode(picture.movedim(-1, 1) * 2 - 1).latent_dist.mode()
        decoded = (autoencoder.decode(latent).sample.movedim(1, -1) / 2 + 0.5).clamp(0, 1)
    found = vae.encode(picture)
    return {
        "keys": str(missing), "unet": gap(here, theirs), "size": float(theirs.std()),
        "latent": gap(found, latent), "decoded": gap(vae.decode(latent), decoded),
    }  # fmt: skip


def prompts():
    """The text encoder through core's CLIP, against itself as it trains."""
    _, clip, _ = loaded()
    text = ours("models.tiny.text")
    made = base().text
    encoder = text.TinyTextEncoder(*text.read_layout(made))
    encoder.load_state_dict(dict(made))
    said = "a red ball to the left of a blue box"
    with torch.no_grad():
        wanted = encoder.encode([said])
    (given,) = core.NODE_CLASS_MAPPINGS["CLIPTextEncode"]().encode(clip, said)
    return {"gap": gap(given[0][0], wanted), "size": float(wanted.std()), "shape": list(given[0][0].shape)}


def sampled():
    """A KSampler on an empty latent of core's own node, decoded."""
    model, clip, vae = loaded()
    encode = core.NODE_CLASS_MAPPINGS["CLIPTextEncode"]()
    positive, negative = (encode.encode(clip, text)[0] for text in ("a red ball", ""))
    (empty,) = core.NODE_CLASS_MAPPINGS["EmptyLatentImage"]().generate(128, 128, 2)
    sampler = core.NODE_CLASS_MAPPINGS["KSampler"]()
    (out,) = sampler.sample(model, 1, 3, 7.5, "euler", "normal", positive, negative, empty)
    return {
        "shape": list(out["samples"].shape),
        "finite": bool(out["samples"].isfinite().all()),
        "picture": list(vae.decode(out["samples"]).shape),
    }


def wrong_file():
    hosted, kept = (
        ours("nodes.host.intrinsic_ldm.tiny_diffusion"),
        base() and ours("nodes.host.intrinsic_ldm.tiny_diffusion").BASE_FILE,
    )
    try:
        hosted.BASE_FILE = ours("models.tiny.weights").CODEC_FILE
        run("LoadTinyDiffusion")
    except ValueError as error:
        return str(error)
    finally:
        hosted.BASE_FILE = kept
