"""Called by worker.py inside ComfyUI: small random models of core's own classes, sampled with and without
their intrinsic maps.
"""

import json
import tempfile

import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.supported_models
import folder_paths
import torch
from safetensors.torch import save_file

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py
KEEP = {}


CLASSES = {
    "sd15": "SD15", "sd21": "SD20", "sdxl": "SDXL", "pixart": "PixArtAlpha", "sigma": "PixArtSigma",
    "refiner": "SDXLRefiner",
    "unclip": "SD21UnclipL",
}  # fmt: skip
PIXARTS = ("pixart", "sigma")


def unet_config(kind):
    """Core's description of a small UNet, with all that its table of LoRA keys asks."""
    base = {
        "image_size": 32, "use_spatial_transformer": True, "legacy": False, "in_channels": 4,
        "out_channels": 4, "model_channels": 32,
        "num_head_channels": 16, "num_heads": -1, "use_temporal_attention": False,
        "use_temporal_resblock": False,
        "use_linear_in_transformer": True, "dtype": torch.float32, "context_dim": 24,
    }  # fmt: skip
    if kind in ("sd15", "sd21", "unclip"):
        more = {"context_dim": 768, "use_linear_in_transformer": False} if kind == "sd15" else {}
        vector = (
            {"adm_in_channels": 1536, "num_classes": "sequential"}
            if kind == "unclip"
            else {"adm_in_channels": None}
        )
        return base | more | vector | {
            "model_channels": 64,  # core gives SD2's heads a width of 64
            "channel_mult": [1, 2, 2, 2], "num_res_blocks": [2, 2, 2, 2],
            "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
            "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1,
        }  # fmt: skip
    return base | {
        "channel_mult": [1, 2, 2], "num_res_blocks": [2, 2, 2], "transformer_depth": [0, 0, 1, 1, 2, 2],
        "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2], "transformer_depth_middle": 2,
        "adm_in_channels": 2560 if kind == "refiner" else 2816, "num_classes": "sequential",
    }  # fmt: skip


PIXART = {
    "image_model": "pixart_alpha", "hidden_size": 48, "depth": 6, "num_heads": 4, "caption_channels": 24,
    "micro_condition": False,
    "input_size": 8, "pe_interpolation": 1, "dtype": torch.float32,
}  # fmt: skip


def model(kind="sd21"):
    """A MODEL of random weights, the same every time."""
    if kind not in KEEP:
        config = getattr(comfy.supported_models, CLASSES[kind])(
            dict(PIXART) if kind in PIXARTS else unet_config(kind)
        )
        config.unet_config.pop("image_model", None)
        made = config.get_model({}, device=torch.device("cpu"))
        generator = torch.Generator().manual_seed(3)
        for parameter in made.diffusion_model.parameters():
            width = max(1, parameter.numel() // max(1, len(parameter)))
            parameter.data = (
                torch.randn(parameter.shape, generator=generator)
                * (0.8 / width**0.5 if parameter.dim() > 1 else 0.3)
            )
        made.train(False).requires_grad_(False)
        KEEP[kind] = comfy.model_patcher.ModelPatcher(made, torch.device("cpu"), torch.device("cpu"))
    return KEEP[kind]


def lora(kind="sd21", style="peft", rank=4, alpha=None, scale=1.0, name=None, width=None):
    """A LoRA file for every self-attention projection, in one of the common namings;
    its name for the node.
    """
    name = name or f"intrinsic_{kind}.safetensors"
    layers = ours("nodes.host.intrinsic_ldm.layers")
    base = layers.Base(model(kind))
    projections = base.projections(model(kind).model.diffusion_model)
    generator, tensors = torch.Generator().manual_seed(11), {}
    for path, projection in projections.items():
        down = torch.randn(rank, width or projection.inputs, generator=generator) * 0.3
        up = torch.randn(projection.outputs, rank, generator=generator) * 0.3 * scale
        if style == "peft":
            (
                tensors[f"base_model.model.{path}.lora_A.weight"],
                tensors[f"base_model.model.{path}.lora_B.weight"],
            ) = down, up
        elif style == "diffusers":
            tensors[f"unet.{path}.lora_A.weight"], tensors[f"unet.{path}.lora_B.weight"] = down, up
        else:
            key = f"lora_unet_{path.replace('.', '_')}"
            tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = down, up
        if alpha is not None and style == "kohya":
            tensors[f"lora_unet_{path.replace('.', '_')}.alpha"] = torch.tensor(float(alpha))
    folder = KEEP.setdefault("folder", tempfile.mkdtemp())
    folder_paths.add_model_folder_path("loras", folder)
    metadata = None
    if alpha is not None and style != "kohya":
        metadata = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": alpha, "unet.r": rank})}
    save_file(tensors, f"{folder}/{name}", metadata=metadata)
    folder_paths.filename_list_cache.clear()
    return name


SCHEDULES = {
    "off": {"schedule": "off"},
    "one": {"schedule": "constant", "weight": 1.0},
    "half": {"schedule": "constant", "weight": 0.5},
    "gaussian": {"schedule": "gaussian", "alpha": 1.0, "tau": 800.0, "sigma": 100.0},
    "drop": {"schedule": "drop", "layers": "", "layer_reading": "stages", "tau": 900.0},
    "drop blocks": {"schedule": "drop", "layers": "3-7", "layer_reading": "blocks", "tau": 900.0},
}


def coupled(plain, schedule="half", *, file=None, cut=0.001, keep=True, share=False):
    choice = SCHEDULES[schedule] if isinstance(schedule, str) else schedule
    host = ours("nodes.host.intrinsic_ldm.model")
    return host.with_intrinsics(
        plain, file or lora(kind_of(plain)), choice, cut_below=cut, keep_maps=keep, share_image_loras=share
    )[0]


def kind_of(patcher):
    return next(kind for kind in CLASSES if kind in KEEP and KEEP[kind].model is patcher.model)


def prompt(seed, length=6, width=24, **more):
    generator = torch.Generator().manual_seed(seed)
    return [
        [
            torch.randn(1, length, width, generator=generator),
            {"pooled_output": torch.randn(1, 1280, generator=generator), **more},
        ]
    ]


def sample(
    patcher, latent, *, positive=None, negative=None, cfg=3.0, sampler="euler", steps=4, seed=5,
    scheduler="normal", denoise=1.0,
):
    wide = {"width": 768} if kind_of(patcher) == "sd15" else {}
    positive, negative = positive or prompt(1, **wide), negative or prompt(2, **wide)
    (out,) = core.common_ksampler(
        patcher, seed, steps, cfg, sampler, scheduler, positive, negative, latent, denoise=denoise
    )
    return out["samples"]


def empty(batch=1, kind="sd21"):
    side = 48 if kind in PIXARTS else 8  # core's PixArt counts positions in units of 64
    return {"samples": torch.zeros(batch, 4, side, side)}


def joined(patcher, latent=None, maps=None):
    return ours("nodes.host.intrinsic_ldm.model").join_intrinsic(
        patcher, latent or empty(kind=kind_of(patcher)), maps
    )


def nested(*tensors):
    import comfy.nested_tensor

    return comfy.nested_tensor.NestedTensor(tensors)


def gap(a, b):
    """The greatest difference, in parts of the greatest value where that is above 1."""
    return float((a - b).abs().max()) / max(1.0, float(b.abs().max()))


def seen_weights(run):
    """The weights of every step of a run, as the coupled attention has them."""
    hosted, seen = ours("nodes.host.intrinsic_ldm.settings"), []
    weights = hosted.Settings.weights
    try:
        hosted.Settings.weights = lambda self, t: seen.append(weights(self, t)) or seen[-1]
        run()
    finally:
        hosted.Settings.weights = weights
    return seen


def drop_by_blocks():
    """w in the layers of Drop read as blocks, at the steps of a run;
    image against that with the layers read as stages.
    """
    outs, patched = {}, coupled(model(), "drop blocks")
    seen = seen_weights(lambda: outs.update(blocks=sample(patched, joined(patched), steps=4).unbind()[0]))
    patched = coupled(model(), "drop")
    outs["stages"] = sample(patched, joined(patched), steps=4).unbind()[0]
    return {
        "seen": [[weights[block] for block in sorted(weights)] for weights in seen],
        "gap": gap(*outs.values()),
    }


def curve_is_constant():
    outs = []
    for schedule in ("half", {"schedule": "curve", "points": "1000: 0.5, 0: 0.5"}):
        patched = coupled(model(), schedule)
        outs.append(sample(patched, joined(patched), steps=3).unbind())
    return max(map(gap, *outs))


def off_is_base(kind="sd21", sampler="euler", batch=1, cfg=3.0, steps=4):
    """The image with w = 0 against the base model alone: how far apart, whether the maps are other
    than the image.
    """
    plain = model(kind)
    want = sample(plain, empty(batch, kind), cfg=cfg, sampler=sampler, steps=steps)
    patched = coupled(plain, "off")
    image, maps = sample(
        patched, joined(patched, empty(batch, kind)), cfg=cfg, sampler=sampler, steps=steps
    ).unbind()
    again = sample(plain, empty(batch, kind), cfg=cfg, sampler=sampler, steps=steps)
    return {
        "gap": gap(image, want), "restored": gap(again, want), "maps": gap(maps, want),
        "finite": bool(image.isfinite().all()),
    }


def twins(kind="sd21", sampler="euler", steps=3):
    """A LoRA that does nothing and w = 1: image and maps are one computation if their noise is one,
    and both are the base model's.
    """
    plain = model(kind)
    patched = coupled(plain, "one", file=lora(kind, scale=0.0, name=f"zero_{kind}.safetensors"))
    image, maps = sample(patched, joined(patched), sampler=sampler, steps=steps).unbind()
    return {
        "apart": gap(image, maps),
        "from base": gap(image, sample(plain, empty(kind=kind), sampler=sampler, steps=steps)),
    }


def coupling(kind="sd21", schedule="half"):
    """What the LoRA, the weight and the seed do: gaps that must not be 0, and one that must."""
    plain = model(kind)
    patched = coupled(plain, schedule)
    image, maps = sample(patched, joined(patched), steps=3).unbind()
    again = sample(patched, joined(patched), steps=3).unbind()
    other = sample(patched, joined(patched), steps=3, seed=6).unbind()
    base = sample(plain, empty(kind=kind), steps=3)
    return {
        "repeated": max(gap(image, again[0]), gap(maps, again[1])), "seed": gap(image, other[0]),
        "base": gap(image, base),
        "streams": gap(image, maps),
    }  # fmt: skip


def prompts(form, kind):
    """A positive prompt in one of core's forms: parts of the picture, parts of the run,
    or longer than the negative.
    """
    if form == "area":
        side = 24 if kind == "pixart" else 4
        return (
            prompt(1)
            + prompt(7, area=(side * 2, side, 0, side), strength=0.7)
            + prompt(8, area=(side * 2, side, 0, 0), strength=0.9)
        )
    if form == "mask":
        mask = torch.zeros(1, 64, 64)
        mask[:, :, 24:] = 1.0
        return core.ConditioningSetMask().append(prompt(1), mask, "default", 0.8)[0] + prompt(7)
    if form == "range":
        ranged = core.ConditioningSetTimestepRange().set_range
        return ranged(prompt(1), 0.0, 0.4)[0] + ranged(prompt(7), 0.4, 1.0)[0]
    return prompt(1, length=14) if form == "unequal" else prompt(1)


def batched(kind="sd21", form="plain", schedule="half", batch=2):
    """All prompts in one call against each in its own, as when memory is short;
    the image at w = 0 against the base's, both ways.
    """
    plain, positive, latent = model(kind), prompts(form, kind), empty(batch, kind)
    # core's last step is at a noise level at which no prompt does anything
    steps = 3 if form == "range" else 2
    patched, off = coupled(plain, schedule), coupled(plain, "off")
    pair, runs = joined(patched, latent), {}
    for way in ("whole", "parts"):
        try:
            if way == "parts":
                plain.model.memory_required = lambda *args, **kwargs: 1e30
            images = [
                sample(off, pair, positive=positive, steps=steps).unbind()[0],
                sample(plain, latent, positive=positive, steps=steps),
            ]
            runs[way] = sample(patched, pair, positive=positive, steps=steps).unbind(), gap(*images)
        finally:
            vars(plain.model).pop("memory_required", None)
    moved = gap(runs["whole"][0][0], sample(patched, pair, steps=steps).unbind()[0])
    return {
        "gap": max(map(gap, runs["whole"][0], runs["parts"][0])), "base": [gap for _, gap in runs.values()],
        "moved": moved,
    }


def batch_of(kind="sd21", schedule="half"):
    """Two pictures in one batch against each alone, with its own noise."""
    patched = coupled(model(kind), schedule)
    both = sample(patched, joined(patched, empty(2, kind) | {"batch_index": [0, 1]}), steps=2).unbind()
    gaps = []
    for index in (0, 1):
        one = sample(patched, joined(patched, empty(1, kind) | {"batch_index": [index]}), steps=2).unbind()
        gaps += [gap(both[stream][index : index + 1], one[stream]) for stream in (0, 1)]
    return max(gaps)


def node(schedule="gaussian", kind="sd21", steps=None):
    """The node itself: the kind of what it gives out, and its picture."""
    found = core.NODE_CLASS_MAPPINGS["SpatialWeave_IntrinsicCoGeneration"].PREPARE_CLASS_CLONE(
        {"hidden_inputs": {"UNIQUE_ID": "7"}}
    )
    sigmas = None if steps is None else torch.linspace(14.6, 0, steps + 1)
    out = found.EXECUTE_NORMALIZED(
        model=model(kind), lora_name=lora(kind), schedule=SCHEDULES[schedule], cut_below=0.001,
        keep_maps=True, share_image_loras=False,
        sigmas=sigmas,
    )  # fmt: skip
    return {"model": type(out.result[0]).__name__, "ui": len(out.ui.as_dict()["images"])}


def published_layers(kind):
    """How many self-attention layers each stage of the published model has; built without weights."""
    import comfy.ldm.modules.diffusionmodules.openaimodel as unets
    import comfy.ops

    config = unet_config(kind) | {
        "model_channels": 320, "num_head_channels": 64, "context_dim": 1024 if kind == "sd21" else 2048,
    }
    config |= (
        {"channel_mult": [1, 2, 4, 4]}
        if kind == "sd21"
        else {"channel_mult": [1, 2, 4], "transformer_depth_middle": 10}
    )
    if kind == "sdxl":
        config |= {
            "transformer_depth": [0, 0, 2, 2, 10, 10],
            "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        }
    network = unets.UNetModel(**config, device="meta", operations=comfy.ops.disable_weight_init)
    layers = ours("nodes.host.intrinsic_ldm.layers").unet_layers(network, config)
    stages = [layer.stage for layer in layers]
    return {
        "stages": {str(stage): stages.count(stage) for stage in sorted(set(stages))},
        "names": [layers[0].name, layers[-1].name],
    }
