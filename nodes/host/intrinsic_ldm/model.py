"""Patches a MODEL to sample an image together with its intrinsic maps, and joins and splits its latents."""

from __future__ import annotations

import comfy.model_sampling
import comfy.nested_tensor
import comfy.patcher_extension
import comfy.sample
import comfy.utils
import folder_paths
import torch

from ....models.core.diffusion.ddpm import STEPS, flow_to_sigma, sigma_to_ddpm
from ....models.intrinsic_ldm.layers import Reading, check_layers, middle_layers
from ....models.intrinsic_ldm.lora import open_lora, read_lora
from ....models.intrinsic_ldm.plot import plot_weights
from ....models.intrinsic_ldm.schedules import (
    OFF,
    Constant,
    Cut,
    Drop,
    Gaussian,
    Schedule,
    read_curve,
    read_layers,
)
from ....models.intrinsic_ldm.tiny import LORA_FILE as TINY_LORA
from ..shared.nested_latents import MASKS, SIZE, JointLatent, nest_masks, read_samples, take_apart
from ..shared.shipped import TINY, explain_missing
from .hooks import Change
from .layers import PROJECTIONS, Base
from .run import run_coupled
from .settings import KEY, Settings

FOLDER = "loras"
REFUSAL = (
    "Expected a plain latent, got a joint one of an image and its maps. Split it with Split Intrinsic Latent "
    "first."
)


def list_loras() -> list[str]:
    """The tiny model's LoRA, then the files of core's loras folders."""
    return [TINY, *folder_paths.get_filename_list(FOLDER)]


def find_missing_lora(name: str | None) -> str | None:
    """What to do about a LoRA file that is not there; else None."""
    remedy = (
        f"Copy it there and refresh, or choose another: none is published, {TINY!r} is for Load Tiny "
        "Diffusion, and `spatialweave train` (in an installed clone of the repository) makes those of "
        "other base models."
    )
    return explain_missing(name, list_loras(), FOLDER, remedy)


def with_intrinsics(
    model,
    lora_name: str,
    schedule: dict,
    *,
    cut_below: float,
    keep_maps: bool,
    share_image_loras: bool,
    node_id=None,
):
    """(a clone of MODEL that samples joint latents, its settings).

    `schedule` is the value of the node's dynamic combo: the kind of schedule and its parameters.
    """
    base = Base(model)
    chosen, reading = read_schedule(schedule, base)
    path = str(TINY_LORA) if lora_name == TINY else folder_paths.get_full_path_or_raise(FOLDER, lora_name)
    changes = lora_changes(model, base, path, lora_name)
    settings = Settings(base, Cut(chosen, cut_below), reading, changes, keep_maps, share_image_loras, node_id)
    coupled = model.clone()
    coupled.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, KEY, run_coupled(settings))
    return coupled, settings


def lora_changes(model, base: Base, path: str, name: str) -> list[Change]:
    """The LoRA at `path` as changes of the network's modules."""
    tensors, metadata = (
        open_lora(path)
        if path.lower().endswith((".safetensors", ".sft"))
        else (open_torch_file(path, name), None)
    )
    trained_on = (metadata or {}).get("base", base.family)
    if trained_on != base.family:
        raise ValueError(
            f"Expected a LoRA trained on {base.family}, the base of {base.name}, got {name}, trained on "
            f"{trained_on}. Load such a base, or the LoRA trained on this one."
        )
    network = model.model.diffusion_model
    updates = read_lora(tensors, base.projections(network), base=base.name, name=name, metadata=metadata)
    changes = []
    for layer in base.layers:
        for projection in PROJECTIONS:
            low = updates.get(f"{layer.name}.{projection}")
            if low is None:
                continue
            module, third = base.find(layer, projection)
            width = low.up.shape[0]
            changes.append(
                Change(
                    module, low, slice(None) if third is None else slice(third * width, (third + 1) * width)
                )
            )
    return changes


def open_torch_file(path: str, name: str) -> dict[str, torch.Tensor]:
    """The tensors of a PyTorch file, read by core without executing pickled code."""
    expected = f"Expected a PyTorch file of tensors as the LoRA {name}"
    try:
        tensors = comfy.utils.load_torch_file(path, safe_load=True)
    except Exception as error:  # torch's reader raises many types, depending on the first bytes
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(
            f"{expected}, got one that does not load ({reason}). Use the safetensors file."
        ) from error
    if not isinstance(tensors, dict):
        raise ValueError(f"{expected}, got {type(tensors).__name__}. Use the safetensors file.")
    return tensors


def read_schedule(choice: dict, base: Base) -> tuple[Schedule, Reading]:
    """The node's schedule and layer reading, checked against the model's layers."""
    kind, reading = choice["schedule"], choice.get("layer_reading", "blocks")
    if kind == "drop":
        layers = read_layers(choice["layers"]) or middle_layers(base.layers, reading)
        check_layers(layers, base.layers, reading)
        return Drop(layers, choice["tau"]), reading
    if kind == "gaussian":
        return Gaussian(choice["alpha"], choice["tau"], choice["sigma"]), reading
    if kind == "curve":
        return read_curve(choice["points"]), reading
    return (OFF if kind == "off" else Constant(choice["weight"])), reading


def plot(settings: Settings, model, sigmas=None) -> torch.Tensor:
    """Plot of w over the steps of SIGMAS, or over DDPM time without them, as IMAGE (1, h, w, 3)."""
    if sigmas is None:
        times = [float(t) for t in range(STEPS - 1, -1, -5)]
    else:
        flow = isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST)
        times = [sigma_to_ddpm(flow_to_sigma(sigma) if flow else sigma) for sigma in sigmas.tolist()[:-1]]
        if not times:
            raise ValueError(
                "Expected SIGMAS of one step or more, got none. Connect those of a whole run, from a "
                "scheduler node."
            )
    image = plot_weights(
        settings.schedule, settings.base.layers, settings.reading, times, steps=sigmas is not None
    )
    return torch.from_numpy(image.copy()).float()[None] / 255


def join_intrinsic(model, image: dict, maps: dict | None) -> dict:
    """A joint LATENT of the image's latent and the maps' (zeros if None); a batch of 1 is repeated."""
    base, key = Base(model), comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
    if not model.get_wrappers(key, KEY):
        raise ValueError(
            f"Expected the MODEL of Intrinsic Co-Generation, got a {base.name} model without it. Connect "
            "that MODEL."
        )
    streams = []
    for name, latent in (("image", image), ("maps", maps)):
        samples = read_samples(image if latent is None else latent, f"{name}_latent")
        if getattr(samples, "is_nested", False):
            raise ValueError(
                f"Expected a plain latent at {name}_latent, got a joint one. Split it with Split Intrinsic "
                f"Latent and connect its {name}_latent."
            )
        samples = torch.zeros_like(samples) if latent is None else samples
        # core's samplers do this for a plain latent, but not for the streams of a nested one
        samples = comfy.sample.fix_empty_latent_channels(model, samples)
        if samples.dim() != 4 or samples.shape[1] != base.channels:
            raise ValueError(
                f"Expected a latent (b, {base.channels}, h, w) of {base.name} at {name}_latent, got "
                f"{tuple(samples.shape)}. Encode with this base's VAE."
            )
        streams.append(samples)
    counts = [len(stream) for stream in streams]
    if streams[0].shape[2:] != streams[1].shape[2:]:
        sizes = " and ".join("{} x {}".format(*stream.shape[2:]) for stream in streams)
        raise ValueError(
            f"Expected image and maps latents of one height and width, got {sizes}. VAE Encode crops an odd "
            "size and Encode Intrinsics pads it: resize the image to the padded size before VAE Encode, or "
            "set Empty Latent Image to that size."
        )
    if counts[0] != counts[1] and 1 not in counts:
        raise ValueError(
            f"Expected as many images as sets of maps, or one of either, got {counts[0]} and {counts[1]}. "
            "Change a batch size."
        )
    streams = [stream.expand(max(counts), -1, -1, -1).clone() for stream in streams]
    joined = {key: value for key, value in image.items() if key != MASKS} | {
        "samples": comfy.nested_tensor.NestedTensor(streams)
    }
    # the maps' size in pixels before padding, for Decode Intrinsics
    joined |= {SIZE: maps[SIZE]} if maps and SIZE in maps else {}
    return JointLatent(joined | nest_masks((image, maps), streams), REFUSAL)


def split_intrinsic(latent: dict) -> list[dict]:
    """The image latent and the maps latent of a joint one, each with its own noise mask."""
    samples = read_samples(latent, "samples")
    shapes = (
        [tuple(stream.shape) for stream in samples.unbind()]
        if getattr(samples, "is_nested", False)
        else [tuple(samples.shape)]
    )
    if len(shapes) != 2 or shapes[0] != shapes[1]:
        listed = " and ".join(map(str, shapes))
        raise ValueError(
            f"Expected a joint latent of an image and its maps, got {listed}. Connect the KSampler's result "
            "for a latent of Join Intrinsic Latent."
        )
    return take_apart(latent, samples.unbind())
