"""Called by worker.py inside ComfyUI: Depth Adapter on small random models of core's classes.

The yardstick is the same F added to what the network itself receives, by a forward pre-hook.
"""

import contextlib
import json
import os
import sys
from pathlib import Path

import comfy.cldm.cldm
import comfy.controlnet
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.utils
import folder_paths
import torch
from safetensors.torch import save_file

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py
small = sys.modules["__main__"].load_file("inside_small_models.py")  # worker.py's
DEFAULTS = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "framing": "refuse", "mask": None}
PRESETS = {
    "sd15": "sd15", "sd21_v": "sd21", "sdxl": "sdxl", "flux": "flux", "flux_inpaint": "flux",
    "flux2": "flux2",
    "omnigen2": "omnigen2", "qwen": "qwen_image", "joy": "joyimage",
}  # fmt: skip


def run(node, **inputs):
    return core.NODE_CLASS_MAPPINGS[f"SpatialWeave_{node}"].EXECUTE_NORMALIZED(**inputs).result


def make_adapter(preset, seed=0, **changes):
    """An adapter with random weights whose F has a standard deviation of about .5."""
    import dataclasses

    config = dataclasses.replace(ours("models.spatial_fusion.config").find_preset(preset), **changes)
    adapter = ours("models.spatial_fusion.network").AdapterNetwork(config)
    generator = torch.Generator().manual_seed(seed)
    for value in adapter.parameters():
        fan_in = value[0].numel() if value.ndim > 1 else 16
        value.data.copy_(torch.randn(value.shape, generator=generator) * 1.5 * fan_in**-0.5)
    return adapter


def make_view(count=1, height=64, width=96, holes=True, seed=0):
    depth = torch.rand(count, height, width, generator=torch.Generator().manual_seed(seed)) * 4 + 1
    if holes:
        depth[:, : height // 4, : width // 4] = float("inf")
    return ours("models.core.geometry.view").View.from_depth(depth, units="relative")


def patch(model, adapter, view, **changes):
    return run("DepthAdapter", model=model, adapter=adapter, view=view, **{**DEFAULTS, **changes})[0]


def addend(adapter, view, size=(8, 12)):
    return ours("models.spatial_fusion.pipeline").view_to_addend(adapter, view, size).values


def sample(
    model, positive, negative, shape, *, batch=2, steps=3, cfg=4.0, sampler="euler", latent=None, **more
):
    latent = {"samples": torch.zeros(batch, *shape)} if latent is None else latent
    out = core.common_ksampler(model, 5, steps, cfg, sampler, "simple", positive, negative, latent, **more)
    return out[0]["samples"]


@contextlib.contextmanager
def added_inside(model, values, area=None, on=None):
    """Add F to what the network receives; rows of several prompts follow each other. `area`: y, x, h, w."""

    def add(x):
        if isinstance(x, list):
            return [add(x[0]), *x[1:]]
        part = values
        if area and tuple(x.shape[-2:]) == area[2:]:
            part = values[..., area[0] : area[0] + area[2], area[1] : area[1] + area[3]]
        part = part.repeat(len(x) // len(part), 1, 1, 1)
        while part.ndim < x.ndim:
            part = part.unsqueeze(2)
        x = x.clone()
        x[:, : part.shape[1]] += part
        return x

    def hook(module, args):
        return (add(args[0]), *args[1:]) if on is None or on(args[1]) else None

    handle = model.model.diffusion_model.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def gap(a, b):
    return float((a.float() - b.float()).abs().max())


def rig(kind, views=1):
    model, shape = small.make(kind)
    adapter, view = make_adapter(PRESETS[kind]), make_view(views)
    return model, shape, adapter, view, small.prompt(kind), small.prompt(kind, seed=2)


def family(kind):
    """Adapter against F inside the network, with CFG, a VIEW for each image; zero; the base afterwards."""
    model, shape, adapter, view, positive, negative = rig(kind, views=2)
    size = shape[-2:]
    go = lambda patched, **more: sample(patched, positive, negative, shape, **more)  # noqa: E731
    base = go(model)
    on = go(patch(model, adapter, view))
    with added_inside(model, addend(adapter, view, size)):
        want = go(model)
    nothing = make_adapter(PRESETS[kind])
    nothing.out.weight.data.zero_(), nothing.out.bias.data.zero_()
    one = make_view(seed=7)
    plain = go(patch(model, adapter, one), cfg=1.0)
    with added_inside(model, addend(adapter, one, size)):
        want_plain = go(model, cfg=1.0)
    return {
        "gap": gap(on, want), "change": gap(on, base), "size": float(want.abs().max()),
        "without CFG": gap(plain, want_plain),
        "an adapter of zeros": bool(torch.equal(go(patch(model, nothing, view)), base)),
        "strength 0": bool(torch.equal(go(patch(model, adapter, view, strength=0.0)), base)),
        "base again": bool(torch.equal(go(model), base)), "shape": list(on.shape) == [2, *shape],
    }  # fmt: skip


def write_small_omnigen2(folder):
    """The weights of core's small OmniGen2, as its release lays them out."""
    path = Path(folder) / "transformer" / "diffusion_pytorch_model.safetensors"
    path.parent.mkdir(parents=True)
    state = small.make("omnigen2")[0].model.diffusion_model.state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, path)


def sample_trained(name, folder, given, lora=""):
    """Three Euler steps of the same model with a trained adapter, loaded by its node; and without it.

    `lora` is the file of one that was trained with the adapter, for both.
    """
    folder_paths.add_model_folder_path("model_patches", folder)
    model, _ = small.make("omnigen2")
    if lora:
        model, _ = comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(lora), 1.0, 0)
    adapter = run("LoadDepthAdapter", adapter_name=name)[0]
    tensors = comfy.utils.load_torch_file(given)
    view = ours("models.core.geometry.view").View.from_depth(tensors["depth"], units="relative")
    entry = {
        "attention_mask": torch.ones(1, tensors["context"].shape[1], dtype=torch.long),
        "reference_latents": [tensors["reference"]],
    }
    positive = [[tensors["context"], entry]]
    shape = tuple(tensors["noise"].shape[1:])
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 3)
    outputs = {}
    for key, patched in (("with", patch(model, adapter, view)), ("without", model)):
        out = sample(patched, positive, positive, shape, batch=len(tensors["noise"]), cfg=1.0)
        outputs[key] = model.model.process_latent_in(out).contiguous()
    save_file(outputs, str(Path(given).with_name("sampled.safetensors")))
    return {"sigmas": sigmas.tolist()}


def samplers(kind, names):
    """Each sampler against F inside the network."""
    model, shape, adapter, view, positive, negative = rig(kind)
    found = {}
    for name in names:
        on = sample(patch(model, adapter, view), positive, negative, shape, sampler=name)
        with added_inside(model, addend(adapter, view, shape[-2:])):
            want = sample(model, positive, negative, shape, sampler=name)
        found[name] = gap(on, want) / float(want.abs().max())
    return found


def lora(kind):
    """A LoRA on the network's first square projection, over and under the adapter."""
    model, shape, adapter, view, positive, negative = rig(kind)
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    state = model.model.state_dict()
    name, key = next(
        (name, key) for name, key in keys.items()
        if isinstance(key, str) and key in state and state[key].ndim == 2 and len(set(state[key].shape)) == 1
    )  # fmt: skip
    width = state[key].shape[0]
    tensors = {
        f"{name}.lora_up.weight": small.draw(width, 4),
        f"{name}.lora_down.weight": small.draw(4, width, seed=1),
    }
    tensors = {each: value * 0.3 for each, value in tensors.items()}
    load = lambda patched: comfy.sd.load_lora_for_models(patched, None, tensors, 1.0, 0)[0]  # noqa: E731
    trained = load(model)
    before, after = patch(trained, adapter, view), load(patch(model, adapter, view))
    with added_inside(model, addend(adapter, view, shape[-2:])):
        want = sample(trained, positive, negative, shape)
    plain = sample(patch(model, adapter, view), positive, negative, shape)
    got = [sample(each, positive, negative, shape) for each in (before, after)]
    return {
        "gap": max(gap(each, want) for each in got),
        "lora": gap(got[0], plain),
        "size": float(want.abs().max()),
    }


def areas(kind):
    """A prompt for an area, with strength, over one for the whole image; and a prompt with a mask."""
    model, shape, adapter, view, _, negative = rig(kind)
    plain = [
        [each, {k: v for k, v in more.items() if k != "reference_latents"}]
        for each, more in small.prompt(kind)
    ]
    zone = (4, 6, 2, 4)  # height, width, y, x in latent cells
    dims = (1, *zone[:2], 0, *zone[2:]) if len(shape) == 4 else zone
    other = small.draw(1, 7, small.CONTEXT, seed=21) * 3
    within = [[other, {**plain[0][1], "area": dims, "strength": 1.0}], *plain]
    mask = torch.zeros(1, 64, 96)
    mask[:, :, 48:] = 1
    masked = [[other, {**plain[0][1], "mask": mask, "mask_strength": 1.0}], *plain]
    negative = [
        [each, {k: v for k, v in more.items() if k != "reference_latents"}] for each, more in negative
    ]
    values, found = addend(adapter, view, shape[-2:]), {}
    for name, positive in (("area", within), ("mask", masked)):
        on = sample(patch(model, adapter, view), positive, negative, shape)
        with added_inside(model, values, area=(zone[2], zone[3], *zone[:2])):
            want = sample(model, positive, negative, shape)
        found[name] = gap(on, want) / float(want.abs().max())
        found[f"{name} matters"] = gap(on, sample(patch(model, adapter, view), plain, negative, shape))
    return found


def control(kind):
    """A ControlNet of core's class: it reads the latent without F, the network the sum."""
    model, shape, adapter, view, positive, negative = rig(kind)
    sizes = {
        k: v for k, v in small.KINDS[kind][1].items() if k not in ("out_channels", "transformer_depth_output")
    }
    net = comfy.cldm.cldm.ControlNet(
        hint_channels=3, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init, **sizes
    )
    small.fill(net, seed=5)
    held = comfy.controlnet.ControlNet(net, load_device=small.CPU, global_average_pooling=False)
    held.latent_format = None
    hint = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(1))
    with_net = core.ControlNetApplyAdvanced().apply_controlnet(positive, negative, held, hint, 0.3, 0.0, 1.0)[
        :2
    ]
    on = sample(patch(model, adapter, view), *with_net, shape)
    with added_inside(model, addend(adapter, view, shape[-2:])):
        want = sample(model, *with_net, shape)
    without = sample(patch(model, adapter, view), positive, negative, shape)
    return {"gap": gap(on, want), "control": gap(on, without), "size": float(want.abs().max())}


def inpainting(kind):
    """A noise mask: the kept half is the given latent, the other follows the depth."""
    model, shape, adapter, view, positive, negative = rig(kind)
    noise_mask = torch.cat([torch.zeros(1, 1, 64, 48), torch.ones(1, 1, 64, 48)], -1)
    latent = {"samples": small.draw(2, *shape, seed=6), "noise_mask": noise_mask}
    go = lambda patched: sample(patched, positive, negative, shape, latent=latent)  # noqa: E731
    on, base = go(patch(model, adapter, view)), go(model)
    with added_inside(model, addend(adapter, view, shape[-2:])):
        want = go(model)
    kept = on[..., :5] - latent["samples"][..., :5]
    return {
        "kept": float(kept.abs().max()),
        "gap": gap(on, want),
        "change": gap(on[..., 7:], base[..., 7:]),
        "size": float(want.abs().max()),
    }


def joint():
    """Our own joint model: F goes to the image stream of the nested latent alone."""
    loading = ours("nodes.host.modality_forcing.loading")
    model, clip, _ = loading.load_modality_forcing(loading.TINY)
    positive, negative = (core.CLIPTextEncode().encode(clip, text)[0] for text in ("a red ball", ""))
    network = model.model.model_config.network
    changes = {
        "latent_format": "LatentFormat", "latent_channels": network.in_channels,
        "stride": network.depth_patch,
        "widths": (16,) * (network.depth_patch.bit_length() - 1),
    }  # fmt: skip
    adapter, view = make_adapter("omnigen2", **changes), make_view(1, 64, 96)
    empty = ours("nodes.host.modality_forcing.joint_latent").empty_joint_latent(model, 96, 64, 2)
    go = lambda patched: core.common_ksampler(  # noqa: E731
        patched, 5, 3, 4.0, "euler", "simple", positive, negative, empty
    )[0]["samples"].unbind()
    base, on = go(model), go(patch(model, adapter, view))
    with added_inside(model, addend(adapter, view, (64 // network.depth_patch, 96 // network.depth_patch))):
        want = go(model)
    again = go(model)
    return {
        "gap": max(gap(a, b) for a, b in zip(on, want)), "image": gap(on[0], base[0]), "streams": len(on),
        "base again": all(torch.equal(a, b) for a, b in zip(again, base)), "size": float(want[0].abs().max()),
    }  # fmt: skip


def schedule():
    """Which steps get F: by start and end, at the sigmas of the model as it is when it runs."""
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    model, shape, adapter, view, positive, negative = rig("omnigen2")
    seen = []

    def watch(executor, x, t, *args, **kwargs):
        seen.append((round(float(t[0]), 4), any(key.startswith("spatialweave_depth") for key in kwargs)))
        return executor(x, t, *args, **kwargs)

    wrappers = ours("nodes.host.spatial_fusion.patch").Wrappers

    def steps(patched, **more):
        seen.clear()
        # the outermost: it sees the conditions before the adapter takes its own
        patched = patched.clone()
        own = patched.wrappers.pop(wrappers.APPLY_MODEL)
        patched.wrappers[wrappers.APPLY_MODEL] = {"watch": [watch], **own}
        sample(patched, positive, negative, shape, steps=4, cfg=1.0, **more)
        return [on for _, on in seen]

    shifted = lambda patched: ModelSamplingSD3().patch(patched, 5.0)[0]  # noqa: E731
    later, before = (
        shifted(patch(model, adapter, view, end_percent=0.6)),
        patch(shifted(model), adapter, view, end_percent=0.6),
    )
    return {
        "all": steps(patch(model, adapter, view)),
        "first part": steps(patch(model, adapter, view, end_percent=0.6)),
        "last part": steps(patch(model, adapter, view, start_percent=0.6)),
        "nothing": steps(patch(model, adapter, view, start_percent=1.0)),
        "shifted after": steps(later), "shifted before": steps(before),
        "sigmas": [sigma for sigma, _ in seen],
    }  # fmt: skip


def stacking():
    """Two adapters add up, in either order; masks, strengths, and what one F costs to compute."""
    model, shape, adapter, view, positive, negative = rig("omnigen2")
    other, second = make_adapter("omnigen2", seed=9), make_view(2, seed=3)
    go = lambda patched: sample(patched, positive, negative, shape)  # noqa: E731
    size = shape[-2:]
    both = go(patch(patch(model, adapter, view), other, second, strength=-0.5))
    with added_inside(model, addend(adapter, view, size) - 0.5 * addend(other, second, size)):
        want = go(model)
    twice = go(patch(patch(model, adapter, view), adapter, view))
    with added_inside(model, 2 * addend(adapter, view, size)):
        want_twice = go(model)
    mask = torch.zeros(2, 64, 96)
    mask[1, :, :48] = 1
    masked = go(patch(model, adapter, view, mask=mask))
    cells = torch.zeros(2, 1, 8, 12)
    cells[1, ..., :6] = 1
    with added_inside(model, addend(adapter, view, size) * cells):
        want_masked = go(model)
    calls = []
    handle = adapter.register_forward_hook(lambda *_: calls.append(1))
    go(patch(model, adapter, view))
    handle.remove()
    black = go(patch(model, adapter, view, mask=torch.zeros(1, 16, 16)))
    return {
        "both": gap(both, want), "twice": gap(twice, want_twice),
        "row 0 masked out": gap(masked[0], go(model)[0]),
        "masked": gap(masked, want_masked),
        "black": bool(torch.equal(black, go(model))), "computed": len(calls), "size": float(want.abs().max()),
    }  # fmt: skip


def sizes():
    """One patched MODEL at two sizes, as after an upscale; a VIEW of another aspect by each framing."""
    model, shape, adapter, view, positive, negative = rig("omnigen2")
    patched = patch(model, adapter, view)
    with added_inside(model, addend(adapter, view, (16, 24))):
        want = sample(model, positive, negative, (16, 16, 24))
    larger = gap(sample(patched, positive, negative, (16, 16, 24)), want)
    smaller = sample(patched, positive, negative, shape)
    with added_inside(model, addend(adapter, view, (8, 12))):
        back = gap(smaller, sample(model, positive, negative, shape))
    pipeline = ours("models.spatial_fusion.pipeline")
    square, framed = make_view(1, 64, 64, holes=False), {}
    for framing in ("crop", "pad", "stretch"):
        values = pipeline.view_to_addend(adapter, square, (8, 12), framing=framing).values
        with added_inside(model, values):
            want = sample(model, positive, negative, shape)
        framed[framing] = gap(
            sample(patch(model, adapter, square, framing=framing), positive, negative, shape), want
        )
    return {"larger": larger, "back": back, **framed}


def guiders():
    """DualCFGGuider of core, which runs three prompts."""
    from comfy_extras import nodes_custom_sampler as custom

    model, shape, adapter, view, positive, negative = rig("omnigen2", views=2)
    middle = small.prompt("omnigen2", seed=8)

    def go(patched):
        guider = custom.DualCFGGuider.execute(
            patched, positive, middle, negative, 3.0, 2.0, "regular"
        ).result[0]
        noise = custom.RandomNoise.execute(5).result[0]
        sampler = custom.KSamplerSelect.execute("euler").result[0]
        sigmas = custom.BasicScheduler.execute(patched, "simple", 3, 1.0).result[0]
        latent = {"samples": torch.zeros(2, *shape)}
        return custom.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent).result[0][
            "samples"
        ]

    on = go(patch(model, adapter, view))
    with added_inside(model, addend(adapter, view, shape[-2:])):
        want = go(model)
    return {"gap": gap(on, want), "change": gap(on, go(model)), "size": float(want.abs().max())}


class Stop(Exception):
    """Cancel, as a callback sees it."""


def cancel():
    """A run that ends in the middle leaves the base as it was, and the next run of the patched MODEL too."""
    model, shape, adapter, view, positive, negative = rig("omnigen2")
    patched = patch(model, adapter, view)
    base, on = sample(model, positive, negative, shape), sample(patched, positive, negative, shape)

    def stop(*_):
        raise Stop

    ended = False
    try:
        comfy.sample.sample(
            patched,
            small.draw(2, *shape),
            3,
            4.0,
            "euler",
            "simple",
            positive,
            negative,
            torch.zeros(2, *shape),
            callback=stop,
            seed=1,
        )
    except Stop:
        ended = True
    return {
        "stopped": ended, "base": bool(torch.equal(sample(model, positive, negative, shape), base)),
        "patched": bool(torch.equal(sample(patched, positive, negative, shape), on)),
        "no hook": not model.model.diffusion_model._forward_pre_hooks,
    }  # fmt: skip


def files(folder):
    """A saved adapter through the loader, in three precisions, and what else the loader is given."""
    os.makedirs(folder, exist_ok=True)
    folder_paths.add_model_folder_path("model_patches", folder)
    adapter = make_adapter("flux", code="unit_mean", invalid="channel", widths=(8, 8, 8))
    weights, view = ours("models.spatial_fusion.weights"), make_view()
    want, gaps = addend(adapter, view), {}
    for name, dtype in (("float32", torch.float32), ("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        weights.save_adapter(f"{folder}/{name}.safetensors", adapter, dtype=dtype)
        (loaded,) = run("LoadDepthAdapter", adapter_name=f"{name}.safetensors")
        gaps[name] = gap(addend(loaded, view), want)
    same = loaded.config == adapter.config
    state, config = adapter.state_dict(), json.dumps(adapter.config.to_json())
    mark = {"spatialweave": "depth adapter", "config": config}
    broken = json.dumps({**adapter.config.to_json(), "stride": 7})
    save_file({"lora_unet_x.lora_down.weight": torch.ones(1)}, f"{folder}/lora.safetensors")
    save_file(
        {k: v for k, v in state.items() if k != "out.bias"}, f"{folder}/part.safetensors", metadata=mark
    )
    save_file(state, f"{folder}/other.safetensors", metadata={**mark, "config": broken})
    save_file(
        {**state, "out.bias": state["out.bias"] * float("nan")}, f"{folder}/nan.safetensors", metadata=mark
    )
    (Path(folder) / "text.safetensors").write_text("hello")
    said = {}
    for name in ("lora", "part", "other", "nan", "text"):
        try:
            run("LoadDepthAdapter", adapter_name=f"{name}.safetensors")
        except (ValueError, OSError) as error:
            said[name] = str(error)
    node = core.NODE_CLASS_MAPPINGS["SpatialWeave_LoadDepthAdapter"]
    said["missing"] = node.validate_inputs("none.safetensors")
    return {"gaps": gaps, "config": same, "size": float(want.abs().max()), "said": said}


def refusals():
    """The sentences under the node, and those that a sampler ends with."""
    model, shape, adapter, view, positive, negative = rig("omnigen2")
    said = {}

    def attempt(name, act):
        try:
            act()
            said[name] = ""
        except (ValueError, OSError) as error:
            said[name] = str(error)

    go = lambda patched, batch=2: sample(patched, positive, negative, shape, batch=batch)  # noqa: E731
    nothing = ours("models.core.geometry.view").View.from_depth(torch.zeros(1, 64, 96), units="relative")
    attempt("another latent", lambda: patch(model, make_adapter("sdxl"), view))
    attempt("same channels", lambda: patch(model, make_adapter("qwen_image"), view))
    attempt("audio", lambda: patch(small.make("audio")[0], make_adapter("sd15"), view))
    attempt("no valid pixel", lambda: patch(model, adapter, nothing))
    attempt("start after end", lambda: patch(model, adapter, view, start_percent=0.7, end_percent=0.2))
    attempt("aspect", lambda: go(patch(model, adapter, make_view(1, 64, 64))))
    attempt("counts", lambda: go(patch(model, adapter, make_view(2)), batch=3))
    attempt("mask counts", lambda: go(patch(model, adapter, view, mask=torch.ones(3, 64, 96))))
    attempt("masks for views", lambda: go(patch(model, adapter, make_view(2), mask=torch.ones(3, 64, 96))))
    middle = torch.zeros(1, 64, 200)
    middle[:, :, :20] = 1
    edge = ours("models.core.geometry.view").View.from_depth(middle, units="relative")
    attempt("cropped to nothing", lambda: go(patch(model, adapter, edge, framing="crop")))
    attempt("no model", lambda: patch({"a": 1}, adapter, view))
    return said
