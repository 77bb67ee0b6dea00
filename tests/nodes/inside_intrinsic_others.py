"""Called by worker.py inside ComfyUI: ControlNet, IPAdapter's way in and other packs' attention beside
intrinsic co-generation.
"""

import sys

import comfy.cldm.cldm
import comfy.controlnet
import torch
from comfy.ldm.modules.attention import optimized_attention

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py
small = sys.modules["__main__"].load_file("inside_intrinsic.py")
PROMPT_ATTENTION = "input_blocks.4.1.transformer_blocks.0.attn2"


class Control(comfy.controlnet.ControlBase):
    """A ControlNet without a network; it writes down how many rows it saw, and what it said."""

    def __init__(self):
        super().__init__()
        self.seen, self.said = [], []

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        self.seen.append([x_noisy.shape[0], cond["c_crossattn"].shape[0], t.shape[0], batched_number])
        self.said.append(x_noisy.mean((1, 2, 3), keepdim=True).expand(-1, 128, 1, 1) + 0.5)
        return {"input": [], "output": [], "middle": [self.said[-1]]}


def halved(q, k, v, extra):
    """A replacement of prompt attention that is not core's."""
    return q * 0.5 + v.mean(dim=1, keepdim=True)


def image_branch(schedule="off"):
    """ControlNet and a replacement of prompt attention (IPAdapter's way):
    at w = 0 the image is as without us; who saw which rows.
    """
    seen, control = [], Control()

    def replaced(q, k, v, extra):
        seen.append([q.shape[0], len(extra["cond_or_uncond"])])
        return halved(q, k, v, extra)

    adapted = small.model().clone()
    adapted.set_model_attn2_replace(replaced, "input", 4)
    conds = {
        "positive": small.prompt(1, control=control, control_apply_to_uncond=False),
        "negative": small.prompt(2, control=control),
    }
    want = small.sample(adapted, small.empty(2), steps=2, **conds)
    base = [list(control.seen), list(seen)]
    control.seen.clear(), seen.clear()
    patched = small.coupled(adapted, schedule)
    got = small.sample(patched, small.joined(patched, small.empty(2)), steps=2, **conds).unbind()
    plain = small.coupled(small.model(), schedule)
    without = small.sample(plain, small.joined(plain, small.empty(2)), steps=2).unbind()
    moved = small.gap(got[0], without[0])
    return {
        "gap": small.gap(got[0], want), "seen": [control.seen, seen] == base, "moved": moved,
        "rows": control.seen[0],
    }


class Watch:
    """Hooks that keep what goes through some modules of the small SD2.1 in every call."""

    def __init__(self, path):
        network = small.model().model.diffusion_model
        self.calls, self.parts = [], {}
        self.handles = [network.register_forward_pre_hook(self.network, with_kwargs=True)]
        for name in ("to_q", "to_k", "to_v"):
            self.handles.append(
                network.get_submodule(f"{path}.{name}").register_forward_hook(
                    lambda module, args, out, name=name: self.parts.setdefault(name, []).append(out.clone())
                )
            )
        out = network.get_submodule(f"{path}.to_out")
        self.handles.append(
            out.register_forward_pre_hook(
                lambda module, args: self.parts.setdefault("out", []).append(args[0].clone())
            )
        )

    def network(self, module, args, kwargs):
        middle = (kwargs["control"] or {}).get("middle") or [torch.zeros(len(args[0]), 1, 1, 1)]
        chunks = len(kwargs["transformer_options"]["cond_or_uncond"])
        self.calls.append((chunks, middle[0].clone()))

    def close(self):
        for handle in self.handles:
            handle.remove()


def halves(tensor, chunks):
    """The images' rows and the maps', in the order of rows.py: prompts, then streams, then pictures."""
    grid = tensor.unflatten(0, (chunks, 2, -1))
    return grid[:, 0].flatten(0, 1), grid[:, 1].flatten(0, 1)


def by_value():
    """In coupled steps: what came into the network from a ControlNet and a replacement of prompt attention,
    by rows, against what they said of the images alone, zero, and core's own attention."""
    control, adapted = Control(), small.model().clone()
    adapted.set_model_attn2_replace(halved, "input", 4)
    patched, watch = small.coupled(adapted, "half"), Watch(PROMPT_ATTENTION)
    conds = {
        "positive": small.prompt(1, control=control, control_apply_to_uncond=False),
        "negative": small.prompt(2, control=control),
    }
    try:
        small.sample(patched, small.joined(patched, small.empty(2)), steps=2, **conds)
    finally:
        watch.close()
    found = {
        "control": 0.0, "maps": 0.0, "replaced": 0.0, "core": 0.0, "apart": 1e9, "calls": len(watch.calls),
    }
    for (chunks, middle), said in zip(watch.calls, control.said, strict=True):
        image, maps = halves(middle, chunks)
        found["control"] = max(found["control"], float((image - said).abs().max()))
        found["maps"] = max(found["maps"], float(maps.abs().max()))
    parts = zip(*(watch.parts[name] for name in ("to_q", "to_k", "to_v", "out")), strict=True)
    for (chunks, _), (q, k, v, out) in zip(watch.calls, parts, strict=True):
        image, maps = zip(*(halves(tensor, chunks) for tensor in (q, k, v)))
        got_image, got_maps = halves(out, chunks)
        own = optimized_attention(*maps, q.shape[-1] // 64)
        found["replaced"] = max(found["replaced"], small.gap(got_image, halved(*image, {})))
        found["core"] = max(found["core"], small.gap(got_maps, own))
        found["apart"] = min(found["apart"], small.gap(own, halved(*maps, {})))
    return found


def controlnet():
    """One of core's own ControlNets."""
    config = {
        name: value
        for name, value in small.unet_config("sd21").items()
        if name not in ("out_channels", "dtype")
    }
    network = comfy.cldm.cldm.ControlNet(**config, hint_channels=3, dtype=torch.float32)
    generator = torch.Generator().manual_seed(8)
    for parameter in network.parameters():
        width = max(1, parameter.numel() // max(1, len(parameter)))
        parameter.data = (
            torch.randn(parameter.shape, generator=generator)
            * (0.8 / width**0.5 if parameter.dim() > 1 else 0.1)
        )
    network.train(False).requires_grad_(False)
    return comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"))


def real_controlnet():
    """The image at weight 0 against the base's with a ControlNet of core's own class,
    and what it does in coupled steps.
    """
    plain, hint = small.model(), torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(6))
    conds = core.ControlNetApplyAdvanced().apply_controlnet(
        small.prompt(1), small.prompt(2), controlnet(), hint, 0.7, 0.0, 1.0
    )
    conds = dict(zip(("positive", "negative"), conds))
    want, bare = (small.sample(plain, small.empty(2), steps=2, **more) for more in (conds, {}))
    images, spread = {}, 0.0
    for name, schedule, more in (("off", "off", conds), ("half", "half", conds), ("without", "half", {})):
        patched, watch = small.coupled(plain, schedule), Watch(PROMPT_ATTENTION)
        try:
            images[name] = small.sample(
                patched, small.joined(patched, small.empty(2)), steps=2, **more
            ).unbind()[0]
        finally:
            watch.close()
        if name == "half":
            spread = max(float(halves(middle, chunks)[1].abs().max()) for chunks, middle in watch.calls)
    half = small.gap(images["half"], images["without"])
    return {
        "gap": small.gap(images["off"], want), "moved": small.gap(want, bare), "half": half, "maps": spread,
    }


CALLS = []


def counting(func, *args, **kwargs):
    """Another pack's attention that does core's work."""
    CALLS.append(kwargs.get("mask") is not None)
    return func(*args, **kwargs)


def doubling(func, *args, **kwargs):
    """One with an effect of its own, that takes masks."""
    CALLS.append(kwargs.get("mask") is not None)
    return func(*args, **kwargs) * 2


def deaf(func, *args, **kwargs):
    """One that takes no masks, and says nothing."""
    CALLS.append(kwargs.get("mask") is not None)
    return func(*args, **(kwargs | {"mask": None}))


def cutting(func, *args, **kwargs):
    """One that takes a mask for a choice of keys: all that are not left out weigh 1."""
    CALLS.append(kwargs.get("mask") is not None)
    mask = kwargs.get("mask")
    return func(*args, **(kwargs | {"mask": mask if mask is None else mask.masked_fill(mask > -1e9, 0.0)}))


def set_by_core(*args, **kwargs):
    """One that takes no masks, put in by core's own setter, which hides its name."""
    return optimized_attention(*args, **(kwargs | {"mask": None}))


OVERRIDES = {"counting": counting, "doubling": doubling, "deaf": deaf, "cutting": cutting}


def overridden(kind="sd21", override="counting", schedule="half"):
    """Another pack's attention: the calls that go through it, those with weights,
    and how far it moves image and maps.
    """
    CALLS.clear()
    plain = small.model(kind)
    patched = small.coupled(plain, schedule)
    want = small.sample(patched, small.joined(patched), steps=2).unbind()
    other = plain.clone()
    if override == "set_by_core":
        other.set_model_optimized_attention(set_by_core)
    else:
        other.model_options["transformer_options"]["optimized_attention_override"] = OVERRIDES[override]
    patched = small.coupled(other, schedule)
    try:
        got = small.sample(patched, small.joined(patched), steps=2).unbind()
    except ValueError as error:
        return {"refused": str(error)}
    gaps = list(map(small.gap, got, want))
    base = (
        small.gap(got[0], small.sample(other, small.empty(kind=kind), steps=2)) if schedule == "off" else None
    )
    return {"gaps": gaps, "calls": len(CALLS), "with weights": sum(CALLS), "base": base}
