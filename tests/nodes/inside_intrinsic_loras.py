"""Called by worker.py inside ComfyUI: the image's LoRAs, and whether the intrinsic maps see
anything of them.
"""

import sys

import comfy.hooks
import comfy.sd
import comfy.weight_adapter
import torch
from comfy_extras.nodes_model_merging import ModelMergeSimple

ours = ours  # noqa: F821, PLW0127 - set by worker.py
small = sys.modules["__main__"].load_file("inside_intrinsic.py")
LAST = "output_blocks.11.1.transformer_blocks.0"
STRENGTH = 0.8


def patch_for(key, form, shape):
    """A change of core's own classes for one weight, as its LoRA loader makes it."""
    generator = torch.Generator().manual_seed(23)

    def draw(*size):
        return torch.randn(*size, generator=generator) * 0.4

    if form == "set":
        return ("set", (draw(*shape),))
    if form == "diff":
        return ("diff", (draw(*shape) * 0.5,))
    if form == "loha":
        weights = (
            draw(shape[0], 2), draw(2, shape[1]), 2.0, draw(shape[0], 2), draw(2, shape[1]), None, None, None,
        )
        return comfy.weight_adapter.LoHaAdapter(set(), weights)
    if form == "lokr":
        weights = (draw(4, 4), draw(shape[0] // 4, shape[1] // 4), 2.0, None, None, None, None, None, None)
        return comfy.weight_adapter.LoKrAdapter(set(), weights)
    up = draw(shape[0], 3, *([1, 1] if len(shape) == 4 else [])) * 2
    weights = (up, draw(3, *shape[1:]), 2.0, None, torch.ones(shape[0], 1) if form == "dora" else None, None)
    return comfy.weight_adapter.LoRAAdapter(set(), weights)


def with_lora(patcher, target, form="lora", part="weight", third=None):
    """A clone with a LoRA on one module; `third` 0, 1, 2 of its outputs where q, k and v are one module."""
    key = f"diffusion_model.{target}.{part}"
    shape = list(patcher.model.state_dict()[key].shape)
    clone, at = patcher.clone(), key
    if third is not None:
        shape[0] //= 3
        at = (key, (0, third * shape[0], shape[0]))
    assert clone.add_patches({at: patch_for(key, form, shape)}, STRENGTH) == [at]
    return clone


def merged(patcher, whole, ratio=0.6):
    """Core's merge with a model that has a LoRA of its own, which is then part of the base. Not `whole`:
    of one layer, by core's means.
    """
    other = with_lora(small.model(), f"{LAST}.ff.net.2", "diff")
    if whole:
        return ModelMergeSimple().merge(patcher, other, ratio)[0]
    clone = patcher.clone()
    clone.add_patches(other.get_key_patches(f"diffusion_model.{LAST}.ff."), 1 - ratio, ratio)
    return clone


def once(patcher, schedule, share=False, cfg=1.0, steps=1, positive=None):
    patched = small.coupled(patcher, schedule, share=share)
    return small.sample(patched, small.joined(patched), steps=steps, cfg=cfg, positive=positive).unbind()


def leak(target, kind="sd21", schedule="half", merge=None, whole=False, **form):
    """A LoRA behind the last self-attention, or in it, for one step: it must change the image,
    and the maps only if asked.
    """
    plain = without = small.model(kind)
    lora = with_lora(plain, target, **form)
    if merge == "after":
        lora, without = merged(lora, whole), merged(plain, whole)
    elif merge == "before":
        lora, without = with_lora(merged(plain, whole), target, **form), merged(plain, whole)
    none, kept, shared = once(without, schedule), once(lora, schedule), once(lora, schedule, share=True)
    off = once(lora, "off", steps=2, cfg=3.0)[0]
    return {
        "image": small.gap(none[0], kept[0]), "maps": small.gap(none[1], kept[1]),
        "asked": small.gap(none[1], shared[1]),
        "off": small.gap(off, small.sample(lora, small.empty(kind=kind), steps=2)),
    }  # fmt: skip


def strided():
    """A convolution with a LoRA in its weight, and ours that takes it off,
    against the convolution without.
    """
    hooks, (path, form) = ours("nodes.host.intrinsic_ldm.hooks"), ("input_blocks.3.0.op", "lora")
    (change,) = hooks.image_lora_changes(with_lora(small.model(), path, form))
    module = small.model().model.diffusion_model.get_submodule(path)
    x = torch.randn(2, module.in_channels, 9, 8, generator=torch.Generator().manual_seed(0))
    both = torch.nn.functional.conv2d(
        x, module.weight + change.delta.weight, module.bias, module.stride, module.padding
    )
    assert small.gap(both, module(x)) > 1e-2
    return small.gap(both - change.delta(x), module(x))


STYLE = {
    f"lora_unet_{f'{LAST}.attn2.to_q'.replace('.', '_')}.lora_down.weight": torch.ones(2, 64) * 0.2,
    f"lora_unet_{f'{LAST}.attn2.to_q'.replace('.', '_')}.lora_up.weight": torch.ones(64, 2),
}


def shared(form):
    """With share_image_loras on, a LoRA that works on all rows alike: what moves,
    and the image at weight 0 against the base's with it.
    """
    plain, positive = small.model(), small.prompt(1)
    lora = plain
    if form == "hooks":
        positive[0][1]["hooks"] = comfy.hooks.create_hook_lora(STYLE, 1.0, 0.0)
    elif form == "bypass":
        lora = comfy.sd.load_bypass_lora_for_models(plain, None, STYLE, 1.0, 0.0)[0]
    else:
        lora = with_lora(plain, f"{LAST}.ff.net.2", form)
    without, moved, off = (
        once(plain, "half", share=True),
        *(once(lora, s, share=True, steps=1, positive=positive) for s in ("half", "off")),
    )
    base = small.sample(lora, small.empty(), positive=positive, steps=1, cfg=1.0)
    return {
        "image": small.gap(without[0], moved[0]), "maps": small.gap(without[1], moved[1]),
        "off": small.gap(off[0], base),
    }


def refused(form):
    """The sentence for a LoRA that cannot be told from the base,
    and how it goes with share_image_loras on.
    """
    plain = small.model()
    if form == "weight wrapper":
        other = plain.clone()
        other.add_weight_wrapper(f"diffusion_model.{LAST}.ff.net.2.weight", lambda weight: weight * 1.5)
    else:
        other = with_lora(plain, f"{LAST}.ff.net.2", form)
    try:
        once(other, "half")
        return {"sentence": None}
    except ValueError as error:
        sentence = str(error)
    shared, without = once(other, "half", share=True), once(plain, "half", share=True)
    off = small.gap(once(other, "off", share=True)[0], small.sample(other, small.empty(), steps=1, cfg=1.0))
    return {"sentence": sentence, "maps": small.gap(shared[1], without[1]), "off": off}


def namings(kind):
    """The maps of one step by the same LoRA in each naming, with alpha its rank and half of it."""
    plain, files = (
        small.model(kind), [("peft", None), ("kohya", 4), ("diffusers", 4), ("kohya", 2), ("diffusers", 2)],
    )
    maps = []
    for style, alpha in files:
        file = small.lora(kind, style=style, alpha=alpha, name=f"{kind}_{style}_{alpha}.safetensors")
        patched = small.coupled(plain, "half", file=file)
        maps.append(small.sample(patched, small.joined(patched), steps=1, cfg=1.0).unbind()[1])
    return [small.gap(other, maps[0]) for other in maps], small.gap(maps[3], maps[4])
