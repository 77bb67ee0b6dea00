"""Called by worker.py inside ComfyUI: core's samplers and ways to sample, stopping and cancelling,
with intrinsic maps.
"""

import contextlib
import sys
import types

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.supported_models
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from comfy_extras.nodes_torch_compile import TorchCompileModel

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py
small = sys.modules["__main__"].load_file("inside_intrinsic.py")


def traces(network):
    """Hooks and replaced methods in a network; core's own bypass mode leaves a method where it was used."""
    return sum(len(part._forward_hooks) + ("forward" in vars(part)) for part in network.modules())


def modes_in_the_network(kind="sd21", sampler="euler_ancestral"):
    """What stands on torch's stack of function modes inside the network's calls and around a step."""
    from torch.overrides import _get_current_function_mode

    plain, inside, outside = small.model(kind), [], []
    patched = small.coupled(plain)
    network = plain.model.diffusion_model

    def look(module, given, out):
        inside.append(type(_get_current_function_mode()).__name__)

    handle = network.register_forward_hook(look)
    around = plain.model.apply_model

    def apply(*given, **named):
        outside.append(type(_get_current_function_mode()).__name__)
        return around(*given, **named)

    plain.model.apply_model = apply
    try:
        small.sample(patched, small.joined(patched, small.empty(1)), sampler=sampler, cfg=3.0, steps=3)
    finally:
        handle.remove()
        del plain.model.apply_model
    return {"inside": sorted(set(inside)), "outside": sorted(set(outside)), "calls": len(inside)}


def every_sampler(batch=2, steps=2):
    """For each of core's samplers the image at weight 0 against the base model's;
    the sentence where it is refused.
    """
    plain = small.model()
    patched = small.coupled(plain, "off")
    latent, found = small.joined(patched, small.empty(batch)), {}
    for sampler in comfy.samplers.KSampler.SAMPLERS:
        named = {"sampler": sampler, "cfg": 1.0, "steps": steps}
        try:
            image, maps = small.sample(patched, latent, **named).unbind()
        except ValueError as error:
            found[sampler] = str(error)
            continue
        finite = bool(image.isfinite().all() and maps.isfinite().all())
        found[sampler] = (
            small.gap(image, small.sample(plain, small.empty(batch), **named)) if finite else "not finite"
        )
    return found


def in_two_halves():
    """KSampler (Advanced) up to a step and from it on, with maps that stop early, against one run."""
    patched, whole = (
        small.coupled(small.model(), "gaussian", keep=False), small.coupled(small.model(), "gaussian"),
    )
    conds, latent = (small.prompt(1), small.prompt(2)), small.joined(patched)
    first = core.KSamplerAdvanced().sample(
        patched, "enable", 5, 6, 3.0, "euler", "normal", *conds, latent, 0, 3, "enable"
    )[0]
    last = core.KSamplerAdvanced().sample(
        patched, "disable", 5, 6, 3.0, "euler", "normal", *conds, first, 3, 10000, "disable"
    )[0]
    got, want = last["samples"].unbind(), small.sample(whole, latent, steps=6).unbind()
    return {"image": small.gap(got[0], want[0])}


def from_images(kind="sd21"):
    """Image to image, inpainting of the image, and latents of odd sizes:
    at weight 0 against the base model.
    """
    plain, generator = small.model(kind), torch.Generator().manual_seed(1)
    patched, side = small.coupled(plain, "off"), small.empty(kind=kind)["samples"].shape[-1]
    picture = {"samples": torch.randn(2, 4, side, side, generator=generator)}
    mask = torch.zeros(1, 8 * side, 8 * side)
    mask[:, :, 4 * side :] = 1
    masked = core.SetLatentNoiseMask().set_mask(picture, mask)[0]
    odd = {"samples": torch.zeros(1, 4, 13, 9)} if kind == "sd21" else {"samples": torch.zeros(1, 4, 50, 46)}
    gaps = {}
    for name, latent, denoise in (("img2img", picture, 0.5), ("inpainting", masked, 1.0), ("odd", odd, 1.0)):
        image = small.sample(patched, small.joined(patched, latent), denoise=denoise, steps=3).unbind()[0]
        gaps[name] = small.gap(image, small.sample(plain, latent, denoise=denoise, steps=3))
        if name == "inpainting":
            gaps["kept"] = small.gap(image[..., : side // 2 - 1], picture["samples"][..., : side // 2 - 1])
    return gaps


def flow():
    """A model in flow time: the image at weight 0, and the DDPM times of a coupled run's steps against the
    noise levels' own.
    """
    shifted = ModelSamplingSD3().patch(small.model(), 3.0)[0]
    sigmas = comfy.samplers.calculate_sigmas(shifted.get_model_object("model_sampling"), "normal", 4)
    hosted, seen = ours("nodes.host.intrinsic_ldm.run"), []
    time = hosted.ddpm_time
    try:
        hosted.ddpm_time = lambda model, sigma: seen.append([sigma, time(model, sigma)]) or seen[-1][1]
        patched = small.coupled(shifted, "gaussian")
        pair = small.sample(patched, small.joined(patched), steps=4).unbind()
    finally:
        hosted.ddpm_time = time
    off = small.coupled(shifted, "off")
    gap = small.gap(
        small.sample(off, small.joined(off), steps=4).unbind()[0],
        small.sample(shifted, small.empty(), steps=4),
    )
    moved = small.gap(pair[0], small.sample(shifted, small.empty(), steps=4))
    return {"gap": gap, "moved": moved, "seen": seen, "sigmas": sigmas.tolist()}


@contextlib.contextmanager
def in_bfloat16(kind):
    """The small model with its weights in bfloat16, in place of the float32 one."""
    plain, file = small.model(kind), small.lora(kind)
    description = dict(small.PIXART) if kind == "pixart" else small.unet_config(kind)
    config = getattr(comfy.supported_models, small.CLASSES[kind])(description | {"dtype": torch.bfloat16})
    config.unet_config.pop("image_model", None)
    config.set_inference_dtype(torch.bfloat16, None)
    made = config.get_model({}, device=torch.device("cpu"))
    made.diffusion_model.to(torch.bfloat16).load_state_dict(plain.model.diffusion_model.state_dict())
    made.train(False).requires_grad_(False)
    small.KEEP[kind] = comfy.model_patcher.ModelPatcher(made, torch.device("cpu"), torch.device("cpu"))
    try:
        yield small.KEEP[kind], file
    finally:
        small.KEEP[kind] = plain


def bfloat16(kind="sd21"):
    """The image at weight 0 against the base's, with the maps stopped against kept,
    and coupled against float32.
    """

    def relative(a, b):
        return float((a.float() - b.float()).norm() / b.float().norm())

    exact = small.coupled(small.model(kind), "half")
    want = small.sample(exact, small.joined(exact), steps=3).unbind()
    with in_bfloat16(kind) as (plain, file):
        off = small.coupled(plain, "off", file=file)
        gap = small.gap(
            small.sample(off, small.joined(off), steps=3).unbind()[0],
            small.sample(plain, small.empty(kind=kind), steps=3),
        )
        runs = [small.coupled(plain, "gaussian", file=file, keep=keep) for keep in (True, False)]
        stopped = small.gap(*(small.sample(run, small.joined(run), steps=5).unbind()[0] for run in runs))
        half = small.coupled(plain, "half", file=file)
        got = small.sample(half, small.joined(half), steps=3).unbind()
    return {"off": gap, "stopped": stopped, "apart": max(map(relative, got, want))}


def early_stop(kind="sd21", steps=8):
    """Maps kept to the end against their pass stopped: images, maps, and what the node said of the run, on a
    clock of our own on which every row that goes through the network takes a quarter of a second."""
    hosted, plain, said, now = ours("nodes.host.intrinsic_ldm.run"), small.model(kind), [], [0.0]
    network, show, outs, rows = plain.model.diffusion_model, hosted.show, [], []
    before = traces(network)

    def tick(module, args):
        rows.append([len(args[0]), traces(module) > before])
        now[0] += len(args[0]) / 4

    handle = network.register_forward_pre_hook(tick)
    try:
        hosted.show = lambda text, node_id: said.append(text)
        hosted.time = types.SimpleNamespace(perf_counter=lambda: now[0])
        for keep in (True, False):
            patched = small.coupled(plain, "gaussian", keep=keep)
            outs.append(small.sample(patched, small.joined(patched), steps=steps).unbind())
    finally:
        handle.remove()
        hosted.show, hosted.time = show, __import__("time")
    (image, maps), (alone, held) = outs
    gaps = {"image": small.gap(image, alone), "maps": small.gap(maps, held)}
    return gaps | {"said": said, "finite": bool(held.isfinite().all()), "last run": rows[-steps:]}


def compiled(kind="sd21", schedule="half", steps=4):
    """Two runs through core's node of torch.compile, with dynamo's tracing and no code generation:
    graphs that each made, and numbers.
    """
    import torch._dynamo
    from torch._dynamo.utils import counters

    plain, graphs, gaps = small.model(kind), [], []
    patched = small.coupled(plain, schedule, keep=schedule == "off")
    want = small.sample(patched, small.joined(patched), steps=steps).unbind()
    torch._dynamo.reset()
    patched = small.coupled(
        TorchCompileModel.execute(plain, "eager").result[0], schedule, keep=schedule == "off"
    )
    for _ in range(2):
        counters.clear()
        got = small.sample(patched, small.joined(patched), steps=steps).unbind()
        graphs.append(counters["stats"]["unique_graphs"])
        gaps.append(max(map(small.gap, got, want)))
    torch._dynamo.reset()
    return {"gap": max(gaps), "first": graphs[0], "second": graphs[1]}


def cancelled(kind="sd21", schedule="gaussian", steps=3):
    """Runs interrupted inside every one of their calls of the network: what is left in it,
    the same run again, and the base model.
    """
    plain, calls = small.model(kind), []
    patched, network = small.coupled(plain, schedule), plain.model.diffusion_model
    before = traces(network)
    handle = network.register_forward_pre_hook(lambda *args: calls.append(1))
    first = small.sample(patched, small.joined(patched), steps=steps).unbind()
    handle.remove()
    base, total, found = small.sample(plain, small.empty(kind=kind), steps=steps), len(calls), []
    (inner,) = [
        module
        for name, module in network.named_modules()
        if name.endswith(("middle_block.1.proj_in", "blocks.3.attn.proj"))
    ]
    for at in range(1, total + 1):
        calls.clear()

        def interrupt(module, args, at=at):
            calls.append(1)
            if len(calls) == at:
                raise comfy.model_management.InterruptProcessingException()

        handle = inner.register_forward_pre_hook(interrupt)
        try:
            small.sample(patched, small.joined(patched), steps=steps)
            found.append("not stopped")
        except comfy.model_management.InterruptProcessingException:
            pass
        finally:
            handle.remove()
        found.append(traces(network) - before)
        found.append(
            max(map(small.gap, first, small.sample(patched, small.joined(patched), steps=steps).unbind()))
        )
    found.append(small.gap(base, small.sample(plain, small.empty(kind=kind), steps=steps)))
    return {"calls": total, "found": found}
