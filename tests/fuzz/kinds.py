"""Every kind of file that a user hands to the pack: a sound small one made by another library, how it is
spoilt, the reader that opens it, and what must hold of what it read. `load` is set by whoever loads this
file.
"""

import importlib.util
import io
import json
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import OpenEXR
import torch
from diffusers import AutoencoderKL
from PIL import Image, PngImagePlugin
from safetensors.torch import save

from spatialweave.models.cli import demo_sampling as demo
from spatialweave.models.core.export.depth_files import read_depth
from spatialweave.models.core.geometry.view import View
from spatialweave.models.core.pictures import read_pictures
from spatialweave.models.core.training import shards
from spatialweave.models.core.training.data import FolderDataset
from spatialweave.models.core.training.recipe import Recipe, naming
from spatialweave.models.core.weights import registry
from spatialweave.models.intrinsic_ldm.backbones import find_family, find_kind
from spatialweave.models.intrinsic_ldm.config import VaeConfig
from spatialweave.models.intrinsic_ldm.data import build as dataset_build
from spatialweave.models.intrinsic_ldm.data.dataset import IntrinsicSamples
from spatialweave.models.intrinsic_ldm.lora import Projection, open_lora, read_lora
from spatialweave.models.intrinsic_ldm.weights import load_intrinsic_vae
from spatialweave.models.modality_forcing.config import ModalityForcingConfig
from spatialweave.models.modality_forcing.network import ModalityForcing
from spatialweave.models.modality_forcing.quantize import convert_network
from spatialweave.models.modality_forcing.weights import load_network
from spatialweave.models.tiny.codec import TinyCodec
from spatialweave.models.tiny.weights import load_codec
from spatialweave.models.trainers import builders as trainers

spoil = load("mutations.py")  # noqa: F821 - set by the loader
ROOT = Path(__file__).parents[2]
HEIGHT, WIDTH = 6, 5
DEPTH = np.linspace(1, 4, HEIGHT * WIDTH, dtype="<f4").reshape(HEIGHT, WIDTH)
COLORS = np.arange(HEIGHT * WIDTH * 3, dtype=np.uint8).reshape(HEIGHT, WIDTH, 3)
CAMERA = np.array([[50, 0, 2.5], [0, 50, 3], [0, 0, 1]], "<f4")
FACTS = {"depth_units": "metric", "depth_scale": 0.001, "depth_offset": 0.5, "intrinsics": CAMERA.tolist()}
LAYER = "down_blocks.0.attentions.1.transformer_blocks.0.attn1"
PROJECTIONS = {f"{LAYER}.to_q": Projection(6, 8), f"{LAYER}.to_out.0": Projection(8, 6)}


@dataclass(frozen=True)
class Kind:
    """`files` makes the folder's sound files by name, of which `spoilt` is the one to be spoilt;
    a refusal names it, or one of `said`.
    """

    files: Callable[[], dict[str, bytes]]
    spoilt: str
    mutate: Callable[[Any, bytes], bytes]
    read: Callable[[Path], Any]
    fault: Callable[[Any, Path], str | None]  # what is wrong with something that was read
    said: tuple[str, ...] = ()


def picture(array, form="PNG", **more):
    buffer = io.BytesIO()
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(buffer, form, **more)
    return buffer.getvalue()


def depth_png(facts=None):
    chunks = PngImagePlugin.PngInfo()
    for key, value in (facts or {}).items():
        chunks.add_text(key, value if isinstance(value, str) else json.dumps(value))
    return picture((DEPTH * 1000).astype(np.uint16), pnginfo=chunks)


def exr(compression=OpenEXR.ZIP_COMPRESSION):
    header = {
        "compression": compression, "type": OpenEXR.scanlineimage, "depthUnits": "metric",
        "intrinsics": json.dumps(CAMERA.tolist()),
    }
    channels = {"Z": DEPTH, "R": DEPTH.astype("<f2"), "id": DEPTH.astype("<u4")}
    with tempfile.TemporaryDirectory() as folder, OpenEXR.File(header, channels) as file:
        file.write(f"{folder}/depth.exr")
        return Path(folder, "depth.exr").read_bytes()


def npz():
    arrays = {
        "depth": DEPTH[None], "mask": DEPTH[None] > 1, "image": COLORS[None] / np.float32(255),
        "units": np.array("metric"),
    }
    return spoil.pack_npz(
        arrays
        | {"intrinsics": CAMERA[None], "confidence": DEPTH[None], "direction": np.array("larger = farther")}
    )


def foreign_npz():
    """As Depth Anything 3 exports it."""
    pose = np.eye(4, dtype="<f4")[None, :3]
    arrays = {
        "depth": DEPTH[None], "image": COLORS[None], "conf": DEPTH[None], "intrinsics": CAMERA[None],
        "extrinsics": pose,
    }
    return spoil.pack_npz(arrays, packed=True)


def lines(*entries):
    return b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)


def loose(**more):
    """A dataset folder of loose files: one sample."""
    entry = {
        "image": "image.png", "depth": "depth.png", "depth_scale": 0.001, "mask": "mask.png",
        "caption": "a ball",
    }
    mask = picture(np.full((HEIGHT, WIDTH), 255, np.uint8))
    return {
        "image.png": picture(COLORS), "depth.png": depth_png(), "mask.png": mask,
        "manifest.jsonl": lines(entry | more),
    }


def with_maps():
    """The same with normals, masks and lines."""
    grey = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)
    maps = {"normals.png": picture(COLORS), "segmentation.png": picture(grey), "line.png": picture(grey)}
    return {**loose(**{name.removesuffix(".png"): name for name in maps}), **maps}


def shard(height=HEIGHT, width=WIDTH):
    """A dataset folder of a shard with three samples."""
    tensors = {"image": torch.arange(3 * height * width * 3).reshape(3, height, width, 3).to(torch.uint8)}
    tensors |= {"depth": 1 + torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))}
    tensors |= {
        "segmentation": torch.ones(3, height, width, dtype=torch.int16),
        "line": torch.zeros(3, height, width).half(),
    }
    rows = lines(
        *(
            {"shard": "shard.safetensors", "row": row, "caption": "a red ball", "objects": ["red ball"]}
            for row in range(3)
        )
    )
    return {"shard.safetensors": save(tensors), "manifest.jsonl": rows}


def recipe():
    model, data = {"width": 16, "depth": 1}, {"folder": "nowhere", "scenes": 8, "size": 16}
    values = {
        "system": "tiny_codec", "steps": 20, "batch_size": 4, "lr": 1e-3, "betas": [0.9, 0.99],
        "model": model, "data": data,
    }
    return {
        "recipe.json": json.dumps(
            values | {"lr_scale": {"a": 2.0}, "freeze": ["b"], "workers": 0, "output": "out"}
        ).encode()
    }


def recipe_of(system, **more):
    values = {
        "system": system, "steps": 20, "batch_size": 1, "data": {"folder": "here", "size": 16}, "model": {},
        "loss": {},
    } | more
    return {"recipe.json": json.dumps(values).encode(), **shard(16, 16)}


def adapter():
    """As PEFT writes one: the settings in a file of their own."""
    tensors = {
        f"base_model.model.{name}.lora_A.weight": torch.ones(3, part.inputs)
        for name, part in PROJECTIONS.items()
    }
    tensors |= {
        f"base_model.model.{name}.lora_B.weight": torch.ones(part.outputs, 3)
        for name, part in PROJECTIONS.items()
    }
    settings = {
        "peft_type": "LORA", "lora_alpha": 6, "r": 3, "use_rslora": False, "alpha_pattern": {"to_q": 3},
        "rank_pattern": {},
    }
    return {"adapter_model.safetensors": save(tensors), "adapter_config.json": json.dumps(settings).encode()}


def lora():
    tensors = {f"unet.{name}.lora_A.weight": torch.ones(3, part.inputs) for name, part in PROJECTIONS.items()}
    tensors |= {
        f"unet.{name}.lora_B.weight": torch.ones(part.outputs, 3) for name, part in PROJECTIONS.items()
    }
    tensors[f"unet.{LAYER}.to_q.alpha"] = torch.tensor(6.0)
    settings = {
        "unet.lora_alpha": 6, "unet.r": 3, "unet.alpha_pattern": {f"{LAYER}.to_out.0": 3},
        "unet.rank_pattern": {},
    }
    return {
        "lora.safetensors": save(tensors, {"lora_adapter_metadata": json.dumps(settings), "format": "pt"})
    }


def vae():
    config = VaeConfig(32, (1, 1), 1, 4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = AutoencoderKL(**config.for_diffusers()).state_dict()
    return {"vae.safetensors": save(state, {"config": config.to_json(), "latent_scale": "0.5"})}


def network():
    config = ModalityForcingConfig(
        in_channels=4, depth_channels=16, context_in_dim=8, hidden_size=16, num_heads=2, num_double_blocks=1,
        num_single_blocks=1,
        num_depth_decoder_blocks=1, axes_dim=(2, 2, 2, 2), depth_patch=4, time_embed_dim=8,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = {
            f"dit.{name}": torch.randn_like(value)
            for name, value in ModalityForcing(config).state_dict().items()
        }
    return {"network.safetensors": save(state, {"config": json.dumps(config.to_json())})}


def codec():
    state = {name: value.half() for name, value in TinyCodec().state_dict().items()}
    return {"codec.safetensors": save(state, {"spatialweave": "tiny image codec"})}


def workflow():
    return {"graph.json": (ROOT / "workflows" / "api" / "build_intrinsic_dataset.json").read_bytes()}


def base():
    """As much of a base's folder in diffusers' form as says what it is."""
    unet = {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 1024, "addition_embed_type": None}
    return {
        "unet/config.json": json.dumps(unet).encode(),
        "vae/config.json": json.dumps({"scaling_factor": 0.18215}).encode(),
    }


def read_adapter(path):
    tensors, metadata = open_lora(path)
    return read_lora(tensors, PROJECTIONS, base="SD2.1", name=str(path), metadata=metadata)


def read_image(path):
    return read_pictures(demo.open_image(path)[0]).rgb


def read_network(path):
    return load_network(path)[0]


def convert(path):
    """A file in fewer bits, and what it is when it is read again."""
    target = path.with_name("converted.safetensors")
    convert_network(path, target, "bf16")
    return read_network(target)


def read_samples(path):
    dataset = FolderDataset(path.parent)
    return [dataset[index] for index in range(len(dataset))]


def read_maps(path):
    samples = IntrinsicSamples(path.parent, image=True)
    return [samples[index] for index in range(len(samples))]


def build(path):
    """A recipe's trainer, made on the dataset beside it, and one loss."""
    recipe = Recipe.read(path)
    recipe = (
        replace(recipe, data={**recipe.data, "folder": str(path.parent)})
        if recipe.data.get("folder") == "here"
        else recipe
    )
    if recipe.system not in trainers.BUILDERS:
        raise ValueError(f"{path}: {recipe.system!r} is no system that has a trainer")  # as run_recipe says
    with naming(path):
        task = trainers.BUILDERS[recipe.system](recipe)
    return task.loss(task.model, task.collate([task.dataset[0]]), torch.Generator().manual_seed(0))[0]


def read_weights_and_settings(path):
    return read_adapter(path.with_name("adapter_model.safetensors"))


def read_caption(path):
    """As `build` lists it: a caption that cannot be read leaves its picture out, with a word why."""
    (source,) = dataset_build.find_images(path.parent)
    if source.fault:
        raise ValueError(source.fault)
    return source.entry["caption"]


def read_runner_graph(path):
    spec = importlib.util.spec_from_file_location("spatialweave_run", ROOT / "workflows" / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        return module.change_inputs(module.read_graph(path), [])
    except module.RunError as error:
        raise ValueError(str(error)) from error  # the runner's own family; its door prints it as it is


def read_family(path):
    folder = path.parents[1]
    return find_family(folder), find_kind(folder, find_family(folder))


def read_facts(path):
    return shards.check_facts(
        shards.ShardFolder(path.parent), {"format": "spatialweave-intrinsics", "version": 1, "count": 3}
    )


def read_published(path):
    files = registry.read_registry(path)
    return [(file.line, file.as_template_model) for file in files]


# what must hold of what was read


def png_size(path):
    return struct.unpack(">2I", path.read_bytes()[16:24])[::-1]


def view_fault(view, size=None):
    if not isinstance(view, View):
        return f"{type(view).__name__} instead of a View"
    if size is not None and tuple(view.depth.shape[1:]) != tuple(size):
        return f"{tuple(view.depth.shape[1:])} pixels, another reader says {tuple(size)}"
    if not bool(torch.isfinite(view.depth).all()) or bool((view.depth < 0).any()):
        return "depth that is not finite"
    for name in ("image", "normals", "confidence", "intrinsics", "world_to_cam"):
        tensor = getattr(view, name)
        if tensor is not None and (
            tensor.dtype != torch.float32 or (name != "confidence" and not bool(torch.isfinite(tensor).all()))
        ):
            return f"{name} of {tensor.dtype}, or not finite"
    if view.image is not None and not 0 <= float(view.image.min()) <= float(view.image.max()) <= 1:
        return "an image outside [0, 1]"
    if view.intrinsics is not None and not bool((view.intrinsics[:, (0, 1), (0, 1)] > 0).all()):
        return "a camera without focal length"
    return None


def png_fault(view, path):
    return view_fault(view, png_size(path.with_suffix(".png")))


def exr_fault(view, path):
    """Size and values as the OpenEXR library has them, where it opens the file at all."""
    if b"displayWindow\0box2i\0" not in path.read_bytes():  # every reader has another guess
        return view_fault(view)
    try:
        with OpenEXR.File(str(path), separate_channels=True, header_only=True) as file:
            low, high = file.header()["displayWindow"]
            inside = all(np.array_equal(*pair) for pair in zip(file.header()["dataWindow"], (low, high)))
    except Exception:  # noqa: BLE001 - it refuses what we could read
        return view_fault(view)
    size = (int(high[1] - low[1] + 1), int(high[0] - low[0] + 1))
    if view_fault(view, size) or not inside or max(size) > 64:
        return view_fault(view, size)
    try:
        with OpenEXR.File(str(path), separate_channels=True) as file:
            planes = {
                name: np.asarray(channel.pixels, np.float32) for name, channel in file.channels().items()
            }
    except Exception:  # noqa: BLE001
        return None
    plane = planes.get("Z", next(iter(planes.values())))
    exact = np.where(np.isfinite(plane) & (plane > 0), plane, 0)
    return (
        None
        if np.array_equal(exact, view.depth[0].numpy())
        else "other numbers than the OpenEXR library reads"
    )


def npz_fault(view, path):
    """Height and width are the array's last two sides, or the two before one of 1."""
    try:
        with np.load(path) as found:
            array = found["depth" if "depth" in found.files else found.files[0]]
    except Exception:  # noqa: BLE001 - numpy wants the archive from the first byte on, zipfile does not
        return view_fault(view)
    sizes = {array.shape[-2:], array.shape[-3:-1] if array.shape[-1:] == (1,) else array.shape[-2:]}
    return (
        view_fault(view)
        if tuple(view.depth.shape[1:]) in sizes
        else f"{tuple(view.depth.shape)} of an array {array.shape}"
    )


def samples_fault(samples, path):
    for sample in samples:
        sizes = {
            key: tuple(value.shape[:2])
            for key, value in sample.items()
            if key in ("image", "depth", "mask", "segmentation")
        }
        for height, width in sizes.values():  # another resolution is fine, another cut of the scene is not
            if any(abs(height * w - width * h) > max(h, w, height, width) for h, w in sizes.values()):
                return f"maps of several sizes {sizes}"
        if "depth" in sizes and sizes["mask"] != sizes["depth"]:
            return f"a mask and a depth of several sizes {sizes}"
        for key, dtype, axes in (
            ("image", torch.uint8, 3), ("depth", torch.float32, 2), ("mask", torch.bool, 2),
        ):
            if key in sample and (
                sample[key].dtype != dtype or sample[key].ndim != axes or sample[key].numel() == 0
            ):
                return f"{key} of {sample[key].dtype} {tuple(sample[key].shape)}"
        if "image" in sample and sample["image"].shape[-1] != 3:
            return f"image of {tuple(sample['image'].shape)}"
        if "depth" in sample and not bool(torch.isfinite(sample["depth"]).all()):
            return "depth that is not finite"
        if not isinstance(sample.get("caption"), str) or sample["caption"] == "None":
            return f"the caption {sample.get('caption')!r}"
    return None


def maps_fault(samples, path):
    for sample in samples:
        maps, image = sample["maps"], sample["image"]
        if (
            maps.shape[0] != 8
            or maps.shape[1:] != image.shape[1:]
            or maps.dtype != torch.float32
            or image.dtype != torch.float32
        ):
            return f"maps {maps.dtype} {tuple(maps.shape)} with an image {image.dtype} {tuple(image.shape)}"
        if not all(
            bool(torch.isfinite(value).all()) and float(value.abs().max()) <= 1.001 for value in (maps, image)
        ):
            return "values outside [-1, 1]"
    return None


def image_fault(rgb, path):
    with Image.open(path) as found:
        width, height = found.size
    sizes = [(1, height, width, 3), (1, width, height, 3)]  # the camera may have lain on its side
    if tuple(rgb.shape) not in sizes or rgb.dtype != torch.float32:
        return f"{rgb.dtype} {tuple(rgb.shape)}, Pillow says {height} x {width}"
    return None if 0 <= float(rgb.min()) <= float(rgb.max()) <= 1 else "values outside [0, 1]"


def picture_fault(image, path):
    return (
        None
        if tuple(image.shape) == (8, 8, 3) and image.dtype == torch.uint8
        else f"{image.dtype} {tuple(image.shape)}"
    )


def module_fault(module, path):
    state = module.state_dict() if isinstance(module, torch.nn.Module) else module.state
    bad = [name for name, value in state.items() if not bool(torch.isfinite(value.float()).all())]
    return f"{bad[0]} is not finite" if bad else None


def lora_fault(parts, path):
    for name, part in parts.items():
        wanted = PROJECTIONS[name]
        if (
            part.down.shape[1] != wanted.inputs
            or part.up.shape[0] != wanted.outputs
            or not np.isfinite(part.scale)
        ):
            return f"{name} of {tuple(part.down.shape)}, {tuple(part.up.shape)} at {part.scale}"
        if not all(bool(torch.isfinite(matrix.float()).all()) for matrix in (part.down, part.up)):
            return f"{name} is not finite"
    return None


def recipe_fault(recipe, path):
    return None if isinstance(recipe, Recipe) and recipe.to_json() else "no recipe"


def loss_fault(loss, path):
    return None if loss.ndim == 0 and bool(torch.isfinite(loss)) else f"a loss of {loss}"


def text_fault(text, path):
    return (
        None
        if isinstance(text, str) and "\ufffd" not in text and "\ufeff" not in text
        else f"the text {text!r}"
    )


def graph_fault(graph, path):
    nodes = graph.values() if isinstance(graph, dict) else [{"class_type": None}]
    fine = all(isinstance(node["class_type"], str) and isinstance(node["inputs"], dict) for node in nodes)
    return None if fine else "nodes without class_type or inputs"


def published_fault(lines, path):
    return (
        None
        if all(isinstance(line, str) and "None" not in line for line, _ in lines)
        else "a line without words"
    )


def nothing_fault(value, path):
    return None


def family_fault(family, path):
    return (
        None
        if family[0] in ("sd21", "sdxl", "pixart") and family[1] in ("", "sd15", "pixart_sigma")
        else f"the family {family!r}"
    )


def pictured(form, mode="RGB", **more):
    name = f"picture.{form.lower()}"
    return {name: picture(Image.fromarray(COLORS).convert(mode), form, **more)}


def picture_kind(form, mode="RGB", mutate=spoil.spoil_bytes, **more):
    return Kind(
        lambda: pictured(form, mode, **more), f"picture.{form.lower()}", mutate, read_image, image_fault
    )


ORIENTED = Image.Exif()
ORIENTED[0x0112] = 6
VAE = {"model": {"config": {"width": 32, "multiples": [1], "blocks": 1, "latent_channels": 4}}}
# of two files that do not fit each other, by the manifest's line
SIZES = ("pixels, got", "pixels (width", "of one batch and size")
ANY = ("recipe", "folder", "dataset")  # the trainer speaks of what the recipe names
KINDS = {
    "depth PNG": Kind(
        lambda: {"depth.png": depth_png(FACTS)}, "depth.png", spoil.spoil_png, read_depth, png_fault
    ),
    "JSON beside a depth PNG": Kind(
        lambda: {"depth.png": depth_png(), "depth.json": json.dumps(FACTS).encode()}, "depth.json",
        spoil.spoil_json,
        lambda path: read_depth(path.with_suffix(".png")), png_fault, ("depth.png", "depth.json"),
    ),
    "EXR, ZIP": Kind(lambda: {"depth.exr": exr()}, "depth.exr", spoil.spoil_exr, read_depth, exr_fault),
    "EXR, raw": Kind(
        lambda: {"depth.exr": exr(OpenEXR.NO_COMPRESSION)},
        "depth.exr",
        spoil.spoil_exr,
        read_depth,
        exr_fault,
    ),
    "NPZ of a View": Kind(lambda: {"depth.npz": npz()}, "depth.npz", spoil.spoil_npz, read_depth, npz_fault),
    "NPZ of others": Kind(
        lambda: {"depth.npz": foreign_npz()},
        "depth.npz",
        spoil.spoil_npz,
        lambda path: read_depth(path, units="metric"),
        npz_fault,
    ),
    "picture, PNG": picture_kind("PNG", mutate=spoil.spoil_png),
    "picture, palette": picture_kind("PNG", "P", mutate=spoil.spoil_png),
    "picture, JPEG": picture_kind("JPEG", exif=ORIENTED),
    "picture, TIFF": picture_kind("TIFF", "CMYK"),
    "picture, WEBP": picture_kind("WEBP", "RGBA"),
    "picture to build from": Kind(
        lambda: pictured("PNG"),
        "picture.png",
        spoil.spoil_png,
        lambda path: dataset_build.read_cropped_image(path, (8, 8))[0],
        picture_fault,
    ),
    "caption": Kind(
        lambda: {"a.txt": "a ball, été".encode(), "a.png": picture(COLORS)},
        "a.txt",
        spoil.spoil_bytes,
        read_caption,
        text_fault,
    ),
    "manifest": Kind(loose, "manifest.jsonl", spoil.spoil_json_lines, read_samples, samples_fault),
    "training picture": Kind(
        loose, "image.png", spoil.spoil_png, read_samples, samples_fault, ("image.png", *SIZES)
    ),
    "training depth": Kind(
        loose, "depth.png", spoil.spoil_png, read_samples, samples_fault, ("depth.png", *SIZES)
    ),
    "training depth, npy": Kind(
        lambda: {**loose(depth="depth.npy"), "depth.npy": spoil.pack_npy(DEPTH)}, "depth.npy",
        spoil.spoil_npy, read_samples, samples_fault,
        ("depth.npy", *SIZES),
    ),
    "training shard": Kind(shard, "shard.safetensors", spoil.spoil_safetensors, read_samples, samples_fault),
    "manifest of maps": Kind(with_maps, "manifest.jsonl", spoil.spoil_json_lines, read_maps, maps_fault),
    "training map": Kind(
        with_maps, "normals.png", spoil.spoil_png, read_maps, maps_fault, ("normals.png", *SIZES)
    ),
    "shard of maps": Kind(shard, "shard.safetensors", spoil.spoil_safetensors, read_maps, maps_fault),
    "recipe": Kind(recipe, "recipe.json", spoil.spoil_json, Recipe.read, recipe_fault),
    "recipe of a codec": Kind(
        lambda: recipe_of("tiny_codec"), "recipe.json", spoil.spoil_json, build, loss_fault, ANY
    ),
    "recipe of a VAE": Kind(
        lambda: recipe_of("intrinsic_vae", **VAE), "recipe.json", spoil.spoil_json, build, loss_fault, ANY
    ),
    "settings of an adapter": Kind(
        adapter, "adapter_config.json", spoil.spoil_json, read_weights_and_settings, lora_fault, ("adapter_",)
    ),
    "LoRA": Kind(lora, "lora.safetensors", spoil.spoil_safetensors, read_adapter, lora_fault),
    "intrinsic VAE": Kind(vae, "vae.safetensors", spoil.spoil_safetensors, load_intrinsic_vae, module_fault),
    "network": Kind(network, "network.safetensors", spoil.spoil_safetensors, read_network, module_fault),
    "network to convert": Kind(
        network, "network.safetensors", spoil.spoil_safetensors, convert, module_fault
    ),
    "codec": Kind(codec, "codec.safetensors", spoil.spoil_safetensors, load_codec, module_fault),
    "workflow to build by": Kind(
        workflow, "graph.json", spoil.spoil_json, lambda path: dataset_build.read_graph(path, []), graph_fault
    ),
    "workflow to run": Kind(workflow, "graph.json", spoil.spoil_json, read_runner_graph, graph_fault),
    "facts of a dataset": Kind(
        lambda: {
            "dataset.json": json.dumps(
                {"format": "spatialweave-intrinsics", "version": 1, "count": 3, "finished": True}
            ).encode()
        },
        "dataset.json", spoil.spoil_json, read_facts, nothing_fault, ("folder",),
    ),
    "base's folder": Kind(base, "unet/config.json", spoil.spoil_json, read_family, family_fault, ("folder",)),
    "registry": Kind(
        lambda: {"released.json": (ROOT / "models" / "modality_forcing" / "released.json").read_bytes()},
        "released.json",
        spoil.spoil_json,
        read_published,
        published_fault,
    ),
}  # fmt: skip
