"""Called by worker.py inside ComfyUI: small random models of core's own classes, sampled with and without their intrinsic maps."""

import json
import tempfile
import types

import comfy.controlnet
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


def unet_config(kind):
    """Core's description of a small UNet, with all that its table of LoRA keys asks."""
    base = {
        "image_size": 32, "use_spatial_transformer": True, "legacy": False, "in_channels": 4, "out_channels": 4, "model_channels": 32,
        "num_head_channels": 16, "num_heads": -1, "use_temporal_attention": False, "use_temporal_resblock": False,
        "use_linear_in_transformer": True, "dtype": torch.float32, "context_dim": 24,
    }  # fmt: skip
    if kind == "sd21":
        return base | {
            "model_channels": 64,  # core gives SD2's heads a width of 64
            "channel_mult": [1, 2, 2, 2], "num_res_blocks": [2, 2, 2, 2], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
            "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1, "adm_in_channels": None,
        }  # fmt: skip
    return base | {
        "channel_mult": [1, 2, 2], "num_res_blocks": [2, 2, 2], "transformer_depth": [0, 0, 1, 1, 2, 2],
        "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2], "transformer_depth_middle": 2, "adm_in_channels": 2816,
        "num_classes": "sequential",
    }  # fmt: skip


PIXART = {"image_model": "pixart_alpha", "hidden_size": 48, "depth": 6, "num_heads": 4, "caption_channels": 24, "micro_condition": False,
          "input_size": 8, "pe_interpolation": 1, "dtype": torch.float32}  # fmt: skip


def model(kind="sd21"):
    """A MODEL of random weights, the same every time."""
    if kind not in KEEP:
        import comfy.model_management

        kinds = {"sd21": "SD20", "sdxl": "SDXL", "pixart": "PixArtAlpha"}
        config = getattr(comfy.supported_models, kinds[kind])(dict(PIXART) if kind == "pixart" else unet_config(kind))
        config.unet_config.pop("image_model", None)
        made = config.get_model({}, device=torch.device("cpu"))
        generator = torch.Generator().manual_seed(3)
        for parameter in made.diffusion_model.parameters():
            width = max(1, parameter.numel() // max(1, len(parameter)))
            parameter.data = torch.randn(parameter.shape, generator=generator) * (0.8 / width**0.5 if parameter.dim() > 1 else 0.3)
        made.train(False).requires_grad_(False)
        KEEP[kind] = comfy.model_patcher.ModelPatcher(made, torch.device("cpu"), torch.device("cpu"))
    return KEEP[kind]


def lora(kind="sd21", style="peft", rank=4, alpha=None, scale=1.0, name=None, width=None):
    """A LoRA file for every self-attention projection, in one of the common namings; its name for the node."""
    name = name or f"intrinsic_{kind}.safetensors"
    layers = ours("nodes.host.intrinsic_layers")
    base = layers.Base(model(kind))
    projections = base.projections(model(kind).model.diffusion_model)
    generator, tensors = torch.Generator().manual_seed(11), {}
    for path, projection in projections.items():
        down = torch.randn(rank, width or projection.inputs, generator=generator) * 0.3
        up = torch.randn(projection.outputs, rank, generator=generator) * 0.3 * scale
        if style == "peft":
            tensors[f"base_model.model.{path}.lora_A.weight"], tensors[f"base_model.model.{path}.lora_B.weight"] = down, up
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
    host = ours("nodes.host.intrinsic_model")
    return host.with_intrinsics(plain, file or lora(kind_of(plain)), choice, cut_below=cut, keep_maps=keep, share_image_loras=share)[0]


def kind_of(patcher):
    return next(kind for kind in ("sd21", "sdxl", "pixart") if kind in KEEP and KEEP[kind].model is patcher.model)


def prompt(seed, length=6, **more):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, length, 24, generator=generator), {"pooled_output": torch.randn(1, 1280, generator=generator), **more}]]


def sample(patcher, latent, *, positive=None, negative=None, cfg=3.0, sampler="euler", steps=4, seed=5, scheduler="normal"):
    (out,) = core.common_ksampler(
        patcher, seed, steps, cfg, sampler, scheduler, positive or prompt(1), negative or prompt(2), latent, denoise=1.0
    )
    return out["samples"]


def empty(batch=1, kind="sd21"):
    side = 48 if kind == "pixart" else 8  # core's PixArt counts positions in units of 64
    return {"samples": torch.zeros(batch, 4, side, side)}


def joined(patcher, latent=None, maps=None):
    return ours("nodes.host.intrinsic_model").join_intrinsic(patcher, latent or empty(kind=kind_of(patcher)), maps)


def gap(a, b):
    """The greatest difference, in parts of the greatest value where that is above 1."""
    return float((a - b).abs().max()) / max(1.0, float(b.abs().max()))


def off_is_base(kind="sd21", sampler="euler", batch=1, cfg=3.0, steps=4):
    """The image with w = 0 against the base model alone: how far apart, whether the maps are other than the image."""
    plain = model(kind)
    want = sample(plain, empty(batch, kind), cfg=cfg, sampler=sampler, steps=steps)
    patched = coupled(plain, "off")
    image, maps = sample(patched, joined(patched, empty(batch, kind)), cfg=cfg, sampler=sampler, steps=steps).unbind()
    again = sample(plain, empty(batch, kind), cfg=cfg, sampler=sampler, steps=steps)
    return {"gap": gap(image, want), "restored": gap(again, want), "maps": gap(maps, want), "finite": bool(image.isfinite().all())}


def twins(kind="sd21", sampler="euler", steps=3):
    """A LoRA that does nothing and w = 1: image and maps are one computation if their noise is one, and both are the base model's."""
    plain = model(kind)
    patched = coupled(plain, "one", file=lora(kind, scale=0.0, name=f"zero_{kind}.safetensors"))
    image, maps = sample(patched, joined(patched), sampler=sampler, steps=steps).unbind()
    return {"apart": gap(image, maps), "from base": gap(image, sample(plain, empty(kind=kind), sampler=sampler, steps=steps))}


def coupling(kind="sd21", schedule="half"):
    """What the LoRA, the weight and the seed do: gaps that must not be 0, and one that must."""
    plain = model(kind)
    patched = coupled(plain, schedule)
    image, maps = sample(patched, joined(patched), steps=3).unbind()
    again = sample(patched, joined(patched), steps=3).unbind()
    other = sample(patched, joined(patched), steps=3, seed=6).unbind()
    base = sample(plain, empty(kind=kind), steps=3)
    return {
        "repeated": max(gap(image, again[0]), gap(maps, again[1])), "seed": gap(image, other[0]), "base": gap(image, base),
        "streams": gap(image, maps),
    }  # fmt: skip


def split_chunks(kind="sd21", schedule="half", area=False, batch=2):
    """All prompts in one call against each in its own, as when memory is short: the pairs must be the same."""
    plain, positive = model(kind), prompt(1)
    if area:
        side = 24 if kind == "pixart" else 4
        positive = positive + prompt(7, area=(side * 2, side, 0, side), strength=0.7) + prompt(8, area=(side * 2, side, 0, 0), strength=0.9)
    patched = coupled(plain, schedule)
    latent = joined(patched, empty(batch, kind))
    whole = sample(patched, latent, positive=positive, steps=2).unbind()
    try:
        plain.model.memory_required = lambda *args, **kwargs: 1e30
        parts = sample(patched, latent, positive=positive, steps=2).unbind()
    finally:
        del plain.model.memory_required
    return {"gap": max(map(gap, whole, parts)), "moved": gap(whole[0], sample(patched, latent, steps=2).unbind()[0]) if area else None}


def batch_of(kind="sd21", schedule="half"):
    """Two pictures in one batch against each alone, with its own noise."""
    patched = coupled(model(kind), schedule)
    both = sample(patched, joined(patched, empty(2, kind) | {"batch_index": [0, 1]}), steps=2).unbind()
    gaps = []
    for index in (0, 1):
        one = sample(patched, joined(patched, empty(1, kind) | {"batch_index": [index]}), steps=2).unbind()
        gaps += [gap(both[stream][index : index + 1], one[stream]) for stream in (0, 1)]
    return max(gaps)


def early_stop(kind="sd21", schedule="gaussian", steps=8, cut=0.001):
    """Maps kept to the end against their pass stopped: images, maps, and what the node said of the run."""
    said, run = [], ours("nodes.host.intrinsic_run")
    plain, show = model(kind), run.show
    try:
        run.show = lambda text, node_id: said.append(text)
        outs = []
        for keep in (True, False):
            patched = coupled(plain, schedule, cut=cut, keep=keep)
            outs.append(sample(patched, joined(patched), steps=steps, scheduler="normal").unbind())
    finally:
        run.show = show
    (image, maps), (alone, held) = outs
    return {"image": gap(image, alone), "maps": gap(maps, held), "said": said, "finite": bool(held.isfinite().all())}


def image_lora(patcher, target, conv=False):
    """A clone with an ordinary LoRA of core's own class on one module."""
    import comfy.weight_adapter

    weight = patcher.model.state_dict()[f"diffusion_model.{target}.weight"]
    generator = torch.Generator().manual_seed(23)
    if weight.dim() == 4:
        up, down = torch.randn(weight.shape[0], 3, 1, 1, generator=generator), torch.randn(3, *weight.shape[1:], generator=generator) * 0.2
    else:
        up, down = torch.randn(weight.shape[0], 3, generator=generator), torch.randn(3, weight.shape[1], generator=generator) * 0.2
    clone = patcher.clone()
    adapter = comfy.weight_adapter.LoRAAdapter(set(), (up, down, 2.0, None, None, None))
    clone.add_patches({f"diffusion_model.{target}.weight": adapter}, 0.8)
    return clone


def leak(target, kind="sd21", schedule="half"):
    """An image LoRA behind the last self-attention, for one step: it must change the image, and the maps only if asked."""
    plain = model(kind)
    with_lora = image_lora(plain, target)
    maps, images = {}, {}
    for name, patcher, share in (("none", plain, False), ("kept", with_lora, False), ("shared", with_lora, True)):
        patched = coupled(patcher, schedule, share=share)
        images[name], maps[name] = sample(patched, joined(patched), steps=1, cfg=1.0).unbind()
    patched = coupled(with_lora, "off")
    off = sample(patched, joined(patched), steps=2).unbind()[0]
    return {
        "image": gap(images["none"], images["kept"]), "maps": gap(maps["none"], maps["kept"]), "asked": gap(maps["none"], maps["shared"]),
        "off": gap(off, sample(with_lora, empty(kind=kind), steps=2)),
    }  # fmt: skip


class Control(comfy.controlnet.ControlBase):
    """A ControlNet without a network; it writes down how many rows it saw."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        self.seen.append([x_noisy.shape[0], cond["c_crossattn"].shape[0], t.shape[0], batched_number])
        return {"input": [], "output": [], "middle": [x_noisy.mean((1, 2, 3), keepdim=True).expand(-1, 128, 1, 1) + 0.5]}


def image_branch(schedule="off"):
    """ControlNet and a replacement of prompt attention (IPAdapter's way): at w = 0 the image is as without us; who saw which rows."""
    seen, control = [], Control()

    def replaced(q, k, v, extra):
        seen.append([q.shape[0], len(extra["cond_or_uncond"])])
        return q * 0.5 + v.mean(dim=1, keepdim=True)

    adapted = model().clone()
    adapted.set_model_attn2_replace(replaced, "input", 4)
    positive, negative = prompt(1, control=control, control_apply_to_uncond=False), prompt(2, control=control)
    want = sample(adapted, empty(2), positive=positive, negative=negative, steps=2)
    base = [list(control.seen), list(seen)]
    control.seen.clear(), seen.clear()
    patched = coupled(adapted, schedule)
    got = sample(patched, joined(patched, empty(2)), positive=positive, negative=negative, steps=2).unbind()
    plain = coupled(model(), schedule)
    without = sample(plain, joined(plain, empty(2)), steps=2).unbind()
    return {"gap": gap(got[0], want), "seen": [control.seen, seen] == base, "moved": gap(got[0], without[0]), "rows": control.seen[0]}


def overridden(kind="sd21"):
    """Another pack's attention: every call of ours goes through it, and the result is the same."""
    calls = []

    def override(func, *args, **kwargs):
        calls.append(kwargs.get("mask") is not None)
        return func(*args, **kwargs)

    plain = model(kind)
    patched = coupled(plain, "half")
    want = sample(patched, joined(patched), steps=2).unbind()
    other = plain.clone()
    other.model_options["transformer_options"]["optimized_attention_override"] = override
    patched = coupled(other, "half")
    got = sample(patched, joined(patched), steps=2).unbind()
    return {"gap": max(map(gap, got, want)), "calls": len(calls), "with bias": sum(calls)}


def cancelled(kind="sd21"):
    """A run stopped in its second step: the model is as before, and the same seed gives the same again."""
    import comfy.model_management

    plain = model(kind)
    patched = coupled(plain, "half")
    before = sample(plain, empty(kind=kind), steps=2)
    first = sample(patched, joined(patched), steps=2).unbind()
    calls = []

    def stop(args):
        calls.append(1)
        if len(calls) == 2:
            raise comfy.model_management.InterruptProcessingException()
        return args["denoised"]

    stopping = patched.clone()
    stopping.set_model_sampler_post_cfg_function(stop)
    try:
        sample(stopping, joined(patched), steps=2)
        stopped = False
    except comfy.model_management.InterruptProcessingException:
        stopped = True
    network = plain.model.diffusion_model
    hooks = sum(len(module._forward_hooks) + ("forward" in vars(module)) for module in network.modules())
    again = sample(patched, joined(patched), steps=2).unbind()
    base = gap(before, sample(plain, empty(kind=kind), steps=2))
    return {"stopped": stopped, "hooks": hooks, "base": base, "again": max(map(gap, first, again))}


def refused(case):
    """The sentence with which a wrong input is refused."""
    plain, pair = model("sd21"), ours("nodes.host.intrinsic_model")
    patched = coupled(plain)
    small = {"samples": torch.zeros(3, 4, 8, 8)}

    def taken():
        other = plain.clone()
        other.set_model_attn1_replace(lambda q, k, v, extra: v, "middle", 0)
        again = coupled(other)
        sample(again, joined(again), steps=1)

    def bypassed():
        other = plain.clone()
        other.set_injections("bypass_lora", [])
        again = coupled(other)
        sample(again, joined(again), steps=1)

    def flux():
        network = types.SimpleNamespace(diffusion_model=torch.nn.Identity(), model_config=comfy.supported_models.Flux({}))
        return coupled(types.SimpleNamespace(model=network), file="any")

    cases = {
        "another base": flux,
        "another base's LoRA": lambda: coupled(plain, file=lora("sd21", width=20, name="wide.safetensors")),
        "SDXL's LoRA on SD2.1": lambda: (model("sdxl"), coupled(plain, file=lora("sdxl", name="xl.safetensors"))),
        "unknown layer": lambda: coupled(plain, {"schedule": "drop", "layers": "3-12", "layer_reading": "stages", "tau": 900.0}),
        "plain latent": lambda: sample(patched, empty(), steps=1),
        "two shapes": lambda: sample(patched, {"samples": nested(empty()["samples"], torch.zeros(1, 1, 64, 64))}, steps=1),
        "plain model": lambda: pair.join_intrinsic(plain, empty(), None),
        "batches": lambda: pair.join_intrinsic(patched, empty(2), small),
        "sizes": lambda: pair.join_intrinsic(patched, empty(), {"samples": torch.zeros(1, 4, 8, 6)}),
        "channels": lambda: pair.join_intrinsic(patched, {"samples": torch.ones(1, 16, 8, 8)}, None),
        "plain to split": lambda: pair.split_intrinsic(empty()),
        "attention taken": taken,
        "bypass": bypassed,
        "twice": lambda: (lambda twice: sample(twice, joined(twice), steps=1))(coupled(patched)),
        "sampler": lambda: sample(patched, joined(patched), steps=2, sampler="dpm_adaptive"),
    }
    try:
        cases[case]()
    except ValueError as error:
        return str(error)
    return None


def nested(*tensors):
    import comfy.nested_tensor

    return comfy.nested_tensor.NestedTensor(tensors)


def node(schedule="gaussian", kind="sd21", steps=None):
    """The node itself: the kind of what it gives out, and its picture."""
    found = core.NODE_CLASS_MAPPINGS["SpatialWeave_IntrinsicCoGeneration"].PREPARE_CLASS_CLONE({"hidden_inputs": {"UNIQUE_ID": "7"}})
    sigmas = None if steps is None else torch.linspace(14.6, 0, steps + 1)
    out = found.EXECUTE_NORMALIZED(
        model=model(kind), lora_name=lora(kind), schedule=SCHEDULES[schedule], cut_below=0.001, keep_maps=True, share_image_loras=False,
        sigmas=sigmas,
    )  # fmt: skip
    return {"model": type(out.result[0]).__name__, "ui": len(out.ui.as_dict()["images"])}


def small_diffusers(kind):
    """A diffusers model of our small core model's shape, with its weights."""
    import comfy.utils
    import diffusers

    made = model(kind).model
    if kind == "pixart":
        other = diffusers.PixArtTransformer2DModel(
            num_attention_heads=4, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=6, cross_attention_dim=48,
            caption_channels=24, sample_size=64, use_additional_conditions=False, interpolation_scale=1,
        )  # fmt: skip
        names = comfy.utils.pixart_to_diffusers(dict(PIXART))
    else:
        other = diffusers.UNet2DConditionModel(
            block_out_channels=(64, 128, 128, 128), attention_head_dim=(1, 2, 2, 2), layers_per_block=2, cross_attention_dim=24,
            use_linear_projection=True, sample_size=8,
        )  # fmt: skip
        names = comfy.utils.unet_to_diffusers(made.model_config.unet_config)
    theirs, ours_ = other.state_dict(), made.diffusion_model.state_dict()
    filled = {}
    for name in theirs:
        found = names[name]
        filled[name] = ours_[found] if isinstance(found, str) else ours_[found[0]].narrow(*found[1])
        filled[name] = filled[name].reshape(theirs[name].shape)
    other.load_state_dict(filled, strict=True)
    return other.train(False)


def agreement_with_diffusers(kind="sd21", schedule="gaussian", steps=4, cfg=3.0):
    """A guided run in ComfyUI and one of a diffusers model with our processors: the same weights, LoRA, noise and sampler."""
    try:
        import diffusers  # noqa: F401
    except ImportError:
        return None
    from comfy.k_diffusion.sampling import sample_euler

    plain, file = model(kind), lora(kind)
    patched = coupled(plain, schedule, cut=0.0)
    got = torch.cat(sample(patched, joined(patched), steps=steps, cfg=cfg).unbind())

    other = small_diffusers(kind)
    reader, processors = ours("models.intrinsic_ldm.lora"), ours("models.intrinsic_ldm.processors")
    tensors = comfy.utils.load_torch_file(folder_paths.get_full_path_or_raise("loras", file))
    low_rank = reader.read_lora(tensors, processors.projections(other), base=kind, name=file)
    coupling, layers = processors.couple(other, low_rank)
    coupling.rows = ours("models.intrinsic_ldm.rows").Rows(("cond", "uncond"), 1)
    base = ours("nodes.host.intrinsic_layers").Base(plain)
    chosen, reading = ours("nodes.host.intrinsic_model").read_schedule(SCHEDULES[schedule], base)
    time = ours("models.core.diffusion.ddpm").sigma_to_ddpm
    noise_levels = plain.model.model_sampling
    context = torch.cat([prompt(1)[0][0]] * 2 + [prompt(2)[0][0]] * 2)

    def denoise(x, sigma, **kwargs):
        coupling.weights = {layer.block: chosen.weight(layer.number(reading), time(float(sigma[0]))) for layer in layers}
        rows = torch.cat([noise_levels.calculate_input(sigma, x)] * 2)
        t = noise_levels.timestep(sigma).repeat(2)
        eps = other(rows, encoder_hidden_states=context, timestep=t, return_dict=False)[0][:, :4]
        cond, uncond = noise_levels.calculate_denoised(sigma.repeat(2), eps, torch.cat([x] * 2)).chunk(2)
        return uncond + (cond - uncond) * cfg

    sigmas = comfy.samplers.calculate_sigmas(noise_levels, "normal", steps)
    noise = comfy.sample.prepare_noise(empty(kind=kind)["samples"], 5)
    started = noise_levels.noise_scaling(sigmas[:1], noise, torch.zeros_like(noise), True)
    want = plain.model.process_latent_out(sample_euler(denoise, torch.cat([started] * 2), sigmas, disable=True))
    names = [layer.name for layer in layers] == [layer.name for layer in base.layers]
    numbers = [(layer.stage, layer.block) for layer in layers] == [(layer.stage, layer.block) for layer in base.layers]
    return {"gap": gap(got, want), "size": float(want.abs().mean()), "names": names, "numbers": numbers}


def published_layers(kind):
    """How many self-attention layers each stage of the published model has; built without weights."""
    import comfy.ldm.modules.diffusionmodules.openaimodel as unets
    import comfy.ops

    config = unet_config(kind) | {"model_channels": 320, "num_head_channels": 64, "context_dim": 1024 if kind == "sd21" else 2048}
    config |= {"channel_mult": [1, 2, 4, 4]} if kind == "sd21" else {"channel_mult": [1, 2, 4], "transformer_depth_middle": 10}
    if kind == "sdxl":
        config |= {"transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10]}
    network = unets.UNetModel(**config, device="meta", operations=comfy.ops.disable_weight_init)
    layers = ours("nodes.host.intrinsic_layers").unet_layers(network, config)
    stages = [layer.stage for layer in layers]
    return {"stages": {str(stage): stages.count(stage) for stage in sorted(set(stages))}, "names": [layers[0].name, layers[-1].name]}
