"""Called by worker.py inside ComfyUI: what a user of intrinsic maps does in the first hour,
on small random bases and autoencoders.
"""

import sys

import comfy.controlnet
import comfy.model_management
import comfy.patcher_extension
import comfy.weight_adapter
import torch

ours = ours  # noqa: F821, PLW0127 - set by worker.py
load_file = sys.modules["__main__"].load_file  # worker.py's
small, maps, hour = (load_file(f"inside_{name}.py") for name in ("intrinsic", "intrinsic_maps", "scenarios"))
run, sentence, finite = hour.run, hour.sentence, hour.finite


def sizes(height, width):
    """Maps of a size beside an empty latent, sampled: refused beside one of whole latents' size below,
    taken beside the padded one.
    """
    model, vae = small.coupled(small.model(), "off"), maps.saved(maps.OF_SD)
    known, text, _ = maps.encode(vae, **maps.pictures(1, height, width))
    below = {"samples": torch.zeros(1, 4, height // 8, width // 8)}
    beside = {"samples": torch.zeros(1, 4, -(-height // 8), -(-width // 8))}
    joint = run("JoinIntrinsicLatent", model=model, image_latent=beside, maps_latent=known)[0]
    sampled = joint | {"samples": small.sample(model, joint, steps=2)}
    (image, made), split = sampled["samples"].unbind(), run("SplitIntrinsicLatent", samples=sampled)
    found = maps.decode(vae, split[1])
    return {
        "refusal": sentence(
            lambda: run("JoinIntrinsicLatent", model=model, image_latent=below, maps_latent=known)
        ),
        "off": small.gap(image, small.sample(small.model(), beside, steps=2)), "said": text.splitlines()[1:],
        "sizes": [list(part.shape[1:3]) for part in (found[0].depth, *found[1:5])],
        "finite": finite([image, made]),
    }  # fmt: skip


def depth(kind):
    """A bad depth as a map: the refusal, or whether its latent is finite, and what is said."""
    view, vae = hour.bad_depth(kind), maps.saved(maps.OF_SD)
    refusal = sentence(lambda: maps.encode(vae, depth=view))
    if refusal:
        return {"refusal": refusal}
    latent, text, _ = maps.encode(vae, depth=view)
    found = maps.decode(vae, latent)[0]
    made = finite([latent["samples"], found.depth])
    return {"refusal": None, "finite": made, "said": text.splitlines()[1:], "valid": bool(found.mask.all())}


def batches():
    """One serves all: images, maps of one kind, and a joint latent; each against three given alike."""
    model, vae, three = small.coupled(small.model(), "half"), maps.saved(maps.OF_SD), maps.pictures(3, 64, 64)
    one = three | {"line": three["line"][:1]}
    alike = three | {"line": three["line"][:1].repeat(3, 1, 1)}
    latents = [maps.encode(vae, **given)[0] for given in (one, alike)]
    first = {"samples": latents[0]["samples"][:1]}
    joint = [
        run("JoinIntrinsicLatent", model=model, image_latent=small.empty(images), maps_latent=known)[0][
            "samples"
        ].unbind()
        for images, known in (
            (3, first), (3, {"samples": first["samples"].repeat(3, 1, 1, 1)}), (1, latents[0]),
        )
    ]
    return {
        "maps": small.gap(latents[0]["samples"], latents[1]["samples"]),
        "joint": max(small.gap(a, b) for a, b in zip(joint[0], joint[1])),
        "counts": [len(part) for pair in joint for part in pair],
    }  # fmt: skip


def refused(case):
    """The sentence for a wrong base, LoRA, latent or batch, and whether anything was sampled before it."""
    plain, choice = small.model("sd21"), "half"
    model, calls = small.coupled(plain), []

    def pair(images=None, maps=None, of=model):
        return run("JoinIntrinsicLatent", model=of, image_latent=images or small.empty(), maps_latent=maps)[0]

    def counting(executor, *args, **kwargs):
        calls.append(1)
        return executor(*args, **kwargs)

    watched = model.clone()
    watched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "count", counting)
    cases = {
        "another base": lambda: small.coupled(hour.sampling.rig().model, choice, file=small.lora()),
        "LoRA of another width": lambda: small.coupled(
            plain, choice, file=small.lora("sd21", width=20, name="hour_wide.safetensors")
        ),
        "SDXL's LoRA on SD2.1": lambda: (
            small.model("sdxl"), small.coupled(plain, choice, file=small.lora("sdxl")),
        ),
        "unknown layer": lambda: small.coupled(plain, small.SCHEDULES["drop"] | {"layers": "3-12"}),
        "plain model": lambda: pair(of=plain),
        "plain latent": lambda: small.sample(watched, small.empty(), steps=1),
        "two batches": lambda: pair(small.empty(2), {"samples": torch.zeros(3, 4, 8, 8)}),
        "channels": lambda: pair({"samples": torch.ones(1, 16, 8, 8)}),
    }
    return {"said": sentence(cases[case]), "calls": len(calls)}


def full_memory(fault):
    """A run whose network finds no memory: its sentence, whether core knows the fault by its type,
    and what is left after it.
    """
    words = (
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9000000000 bytes."
    )
    error = {
        "card": comfy.model_management.OOM_EXCEPTION("CUDA out of memory."), "processor": RuntimeError(words),
    }[fault]

    def full(executor, *args, **kwargs):
        executor(*args, **kwargs)
        raise error

    coupled = small.coupled(small.model(), "half")
    before = small.sample(coupled, small.joined(coupled), steps=2).unbind()
    model = coupled.clone()
    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "full", full)
    try:
        small.sample(model, small.joined(model, small.empty(3)), steps=2)
        said, known = None, False
    except comfy.model_management.OOM_EXCEPTION as raised:
        said, known = str(raised), comfy.model_management.is_oom(raised)
    after = small.sample(coupled, small.joined(coupled), steps=2).unbind()
    return {"said": said, "known": known, "same": hour.sampling.difference(before, after) == 0}


def cancelled(kind, schedule):
    """Cancel in every call of the network of a run with maps: stopped, nothing left in the model,
    and the next run is the same.
    """
    is_cancelled = load_file("inside_cancel.py").is_cancelled
    plain, press = small.model(kind), {"at": None, "seen": 0}

    def pressing(executor, *args, **kwargs):
        if press["seen"] == press["at"]:
            comfy.model_management.interrupt_current_processing(True)
        press["seen"] += 1
        return executor(*args, **kwargs)

    watched = small.coupled(plain, schedule).clone()
    watched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "cancel", pressing)

    def work():
        press["seen"] = 0
        return small.sample(watched, small.joined(watched), steps=3).unbind()

    def left():
        return sum(
            len(module._forward_hooks) + ("forward" in vars(module))
            for module in plain.model.diffusion_model.modules()
        )

    base, want, calls, hooks = (
        small.sample(plain, small.empty(kind=kind), steps=2), work(), press["seen"], left(),
    )
    out = {"calls": calls, "cancelled": [], "left": [], "same": []}
    for press["at"] in range(calls):
        out["cancelled"].append(is_cancelled(work))
        out["left"].append(left() - hooks)
    press["at"] = None
    out["same"] = [
        hour.sampling.difference(work(), want),
        small.gap(small.sample(plain, small.empty(kind=kind), steps=2), base),
    ]
    return out


class Control(comfy.controlnet.ControlBase):
    """A ControlNet without a network."""

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        return {
            "input": [], "output": [],
            "middle": [x_noisy.mean((1, 2, 3), keepdim=True).expand(-1, 128, 1, 1) + 0.5],
        }


def image_lora(patcher):
    """A clone with a LoRA in core's form on the last feed-forward layer of the small SD2.1."""
    key = "diffusion_model.output_blocks.11.1.transformer_blocks.0.ff.net.2.weight"
    (rows, columns), generator = patcher.model.state_dict()[key].shape, torch.Generator().manual_seed(23)
    up, down = torch.randn(rows, 3, generator=generator), torch.randn(3, columns, generator=generator) * 0.2
    clone = patcher.clone()
    assert clone.add_patches(
        {key: comfy.weight_adapter.LoRAAdapter(set(), (up, down, 2.0, None, None, None))}, 0.8
    ) == [key]
    return clone


def stacked():
    """LoRA, ControlNet, a patch of prompt attention, core's rescaled guidance and an attention override,
    with co-generation on top.
    """
    from comfy_extras.nodes_model_advanced import RescaleCFG

    calls, parts = [], ("LoRA", "ControlNet", "attn2", "guidance")

    def attention(function, *args, **kwargs):
        calls.append(1)
        return function(*args, **kwargs)

    def build(without=None):
        model = small.model()
        if without != "LoRA":
            model = image_lora(model)
        if without != "guidance":
            (model,) = RescaleCFG().patch(model, 0.7)
        model = model.clone()
        if without != "attn2":
            model.set_model_attn2_patch(lambda q, k, v, extra_options: (q, k * 1.3, v * 0.7))
        model.model_options["transformer_options"]["optimized_attention_override"] = attention
        return model

    def sample(model, latent, without=None):
        control = {} if without == "ControlNet" else {"control": Control(), "control_apply_to_uncond": False}
        return small.sample(model, latent, positive=small.prompt(1, **control), steps=3)

    stack, gaps, counts = build(), {}, []
    for schedule in ("off", "half"):
        coupled = small.coupled(stack, schedule)
        calls.clear()
        whole = sample(coupled, small.joined(coupled)).unbind()
        counts.append(len(calls))
        for part in parts:
            less = small.coupled(build(part), schedule)
            gaps[f"{schedule} without {part}"] = small.gap(
                sample(less, small.joined(less), part).unbind()[0], whole[0]
            )
        if schedule == "off":
            base = small.gap(whole[0], sample(stack, small.empty()))
    return {
        "base": base, "each": gaps, "attention": counts, "finite": finite(whole),
        "maps": small.gap(whole[1], whole[0]),
    }
