"""Called by worker.py inside ComfyUI: what a joint model composes with.

Each function is a row of docs/composability.md.

It returns claims, {what must hold: whether it does}, or the sentence with which the combination is refused.
"""

import sys
from pathlib import Path

import comfy.controlnet
import comfy.ldm.modules.attention as attention
import comfy.patcher_extension
import folder_paths
import torch
from comfy.nested_tensor import NestedTensor
from safetensors.torch import save_file

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py
sampling = sys.modules[
    "spatialweave_tests_inside_sampling"
]  # holds the models; their `start` was called before
matrix, modes = (sys.modules[f"spatialweave_tests_inside_{name}"] for name in ("matrix", "modes"))
CLOSE = 1e-4
WINDOWS = (
    16,
    4,
    "standard_static",
    1,
    False,
    "pyramid",
    0,
    False,
)  # length, overlap, schedule, stride, loop, fusion, dimension, noise


def run(model=None, latent=None, **settings):
    r = sampling.rig()
    return sampling.ksample(model or r.model, latent or r.latent(), **settings)["samples"].unbind()


def run_with(positive, negative=None, cfg=1.0, steps=4):
    r = sampling.rig()
    prompts = (positive, negative or r.negative)
    (out,) = core.KSampler().sample(r.model, 7, steps, cfg, "euler", "simple", *prompts, r.latent())
    return out["samples"].unbind()


def close(got, want, limit=CLOSE):
    return sampling.difference(got, want) < limit


def finite(streams):
    return all(bool(part.isfinite().all()) for part in streams)


def node(name, *values, **named):
    return core.NODE_CLASS_MAPPINGS[name].execute(*values, **named).result


def say(asked):
    return core.CLIPTextEncode().encode(sampling.rig().clip, asked)[0]


def guidance():
    """KSampler's cfg against the plain sampler, and what cfg 1 saves."""
    r, latent = sampling.rig(), sampling.rig().latent(2)
    shapes = [part.shape for part in latent["samples"].unbind()]
    want = sampling.plain_sample("joint", shapes, steps=4, cfg=4.0)
    again = run_with(r.positive, say("a blue box"), cfg=4.0)
    return {
        "as in plain torch": close(run(latent=latent, cfg=4.0), want),
        "the negative prompt counts": not close(again, run_with(r.positive, cfg=4.0), 1e-3),
    }


def guidance_per_stream():
    """One euler step is linear in the guidance, so its streams must be those of two runs."""
    r, guide = sampling.rig(), core.NODE_CLASS_MAPPINGS["SpatialWeave_GuidancePerStream"].execute
    plain, strong = run(steps=1), run(steps=1, cfg=4.0)
    low, high = (
        run(guide(r.model, value).result[0], steps=1, cfg=cfg) for value, cfg in ((1.0, 4.0), (4.0, 1.0))
    )
    equal = guide(r.model, 3.0).result[0]
    twice = guide(guide(r.model, 9.0).result[0], 3.0).result[0]
    ordered = ours("nodes.host.modality_forcing.joint_model").with_order(r.model, 5.0)
    shapes = [part.shape for part in r.latent()["samples"].unbind()]
    want = sampling.plain_sample("joint", shapes, steps=6, cfg=5.0, log2_alpha=5.0, depth_guidance=1.0)
    alone = matrix.Case(equal, r.latent(), [], None)
    try:
        matrix.advanced(alone, guider="BasicGuider", steps=1)
        sentence = ""
    except ValueError as error:
        sentence = str(error)
    return {
        "the image by the sampler's cfg, the depth by its own": close(low, [strong[0], plain[1]])
        and close(high, [plain[0], strong[1]]),
        "with an order, as in plain torch": close(
            run(guide(ordered, 1.0).result[0], steps=6, cfg=5.0), want
        ),
        "equal strengths are one cfg": close(run(equal, cfg=3.0), run(cfg=3.0)),
        "the last node wins": close(run(twice, cfg=3.0), run(cfg=3.0)),
        "serves CFG++ samplers": finite(run(equal, cfg=1.5, sampler="euler_cfg_pp")),
        "without a negative prompt it is refused": "Expected a negative prompt" in sentence
        and "CFGGuider" in sentence,
        "the model before it is as before": close(run(steps=1), plain, 1e-12),
    }


def guidance_interval():
    """Outside the two noise levels a step is one prediction and follows the prompt."""
    r, guide = sampling.rig(), core.NODE_CLASS_MAPPINGS["SpatialWeave_GuidancePerStream"].execute
    rows, network = [], r.model.model.diffusion_model

    def count(module, given, out):
        rows.append(given[0][0].shape[0])

    def counted(model, cfg=4.0, steps=4):
        rows.clear()
        handle = network.register_forward_hook(count)
        try:
            out = run(model, steps=steps, cfg=cfg)
        finally:
            handle.remove()
        return out, sum(rows)

    every, full = counted(guide(r.model, 4.0).result[0])
    none, bare = counted(guide(r.model, 4.0, 0.0, 0.0).result[0])
    early, some = counted(guide(r.model, 4.0, 1.0, 0.9).result[0])
    late, _ = counted(guide(guide(r.model, 4.0, 1.0, 0.9).result[0], 4.0).result[0])
    shapes = [part.shape for part in r.latent()["samples"].unbind()]
    want = sampling.plain_sample("joint", shapes, steps=4, cfg=4.0, guidance_interval=(1.0, 0.9))
    try:
        guide(r.model, 4.0, 0.2, 0.5)
        sentence = ""
    except ValueError as error:
        sentence = str(error)
    return {
        "all steps are two predictions": full == 2 * bare,
        "a step outside is one": bare < some < full,
        "no guided step is cfg 1": close(none, run(steps=4, cfg=1.0)),
        "some are as in plain torch": close(early, want) and not close(early, every, 1e-3),
        "the last node wins": close(late, every),
        "two levels the wrong way round are refused": "Expected a guidance interval" in sentence,
    }


def other_guiders():
    """Core's guiders and guidance nodes on the network itself."""
    matrix.load_extras("perpneg", "apg", "tcfg", "mahiro", "model_advanced", "cfg", "eps")
    r, plain = sampling.rig(), run(cfg=3.0)
    case = matrix.Case(r.model, r.latent(), [], None)
    dual = matrix.advanced(case, guider="DualCFGGuider", steps=4)["samples"].unbind()
    perpendicular = node("PerpNegGuider", r.model, r.positive, r.negative, say("a blue box"), 3.0, 1.0)[0]
    sigmas, noise = node("BasicScheduler", r.model, "simple", 4, 1.0)[0], node("RandomNoise", 7)[0]
    euler = node("KSamplerSelect", "euler")[0]
    (perp, _) = node("SamplerCustomAdvanced", noise, perpendicular, euler, sigmas, r.latent())
    names = (
        "RescaleCFG",
        "APG",
        "TCFG",
        "Mahiro",
        "CFGNorm",
        "CFGZeroStar",
        "Epsilon Scaling",
        "TemporalScoreRescaling",
    )
    changed = {name: run(patch(name, r.model), cfg=3.0) for name in names}
    return {
        "DualCFGGuider": finite(dual),
        "PerpNegGuider": finite(perp["samples"].unbind()),
        **{
            f"{name} is finite and does something": finite(got) and not close(got, plain, 1e-6)
            for name, got in changed.items()
        },
    }


SETTINGS = {
    "APG": {"eta": 0.5, "norm_threshold": 5.0, "momentum": 0.0},
    "CFGNorm": {"strength": 1.0},
    "Epsilon Scaling": {"scaling_factor": 1.05},
    "TemporalScoreRescaling": {"tsr_k": 0.9, "tsr_sigma": 1.0},
}


def patch(name, model):
    made = core.NODE_CLASS_MAPPINGS[name]
    if name == "RescaleCFG":
        return made().patch(model, 0.7)[0]
    return made.execute(model, **SETTINGS.get(name, {})).result[0]


def skipped_steps():
    """EasyCache and LazyCache: at a threshold of 0 every step is computed, above it some are not, and what is
    given is kept.
    """
    matrix.load_extras("easycache")
    r, steps = sampling.rig(), 20
    plain, out = run(steps=steps), {}
    given = {"EasyCache": modes.run("DepthToImageLatent", r.model, modes.view())[0]}
    given["LazyCache"] = modes.run("ImageToDepthLatent", r.model, r.vae, modes.picture())[0]
    for name, latent in given.items():
        calls = []
        every, some = (
            counted(node(name, r.model, threshold, 0.15, 0.95, False)[0], calls) for threshold in (0.0, 1.0)
        )
        out[f"{name}, threshold 0: as without"] = (
            close(run(every, steps=steps), plain) and len(calls) == steps
        )
        calls.clear()
        out[f"{name}: fewer calls"] = finite(run(some, steps=steps)) and len(calls) < steps
        got, clean, noisy = (
            run(some, latent, steps=steps),
            latent["samples"].unbind(),
            latent["noise_mask"].unbind(),
        )
        out[f"{name}: what is given is kept"] = finite(got) and all(
            torch.equal(a, b) for a, b, m in zip(got, clean, noisy) if not bool(m.any())
        )
    return out


def counted(model, calls):
    """A clone that notes every call of the network itself."""

    def count(executor, *args, **kwargs):
        calls.append(1)
        return executor(*args, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "counted", count)
    return model


def prompts():
    """Combined prompts, prompts for a part of the run, unequal lengths."""
    r, plain = sampling.rig(), run()
    combined = core.ConditioningCombine().combine(r.positive, r.positive)[0]
    halves = [
        core.ConditioningSetTimestepRange().set_range(part, *ends)[0]
        for part, ends in ((r.positive, (0, 0.5)), (r.positive, (0.5, 1)))
    ]
    other = [
        core.ConditioningSetTimestepRange().set_range(part, *ends)[0]
        for part, ends in ((r.positive, (0, 0.5)), (say("a blue box"), (0.5, 1)))
    ]
    longer = [[torch.cat([tensor, tensor[:, :5]], dim=1), extra] for tensor, extra in r.positive]
    apart = run_with(longer, cfg=1.0, steps=2), run_with(r.negative, cfg=1.0, steps=2)
    both = run_with(longer, r.negative, cfg=2.0, steps=1)
    single = [run_with(asked, steps=1) for asked in (longer, r.negative)]
    want = [b + 2.0 * (a - b) for a, b in zip(*single)]
    return {
        "a prompt combined with itself": close(run_with(combined), plain),
        "both halves of a run": close(run_with(halves[0] + halves[1]), plain),
        "another prompt in the second half": not close(run_with(other[0] + other[1]), plain, 1e-4),
        "prompts of unequal length": finite(apart[0]) and close(both, want),
    }


def batch():
    """Each picture of a batch is what it would be alone, with its own noise."""
    r, latent = sampling.rig(), sampling.rig().latent(3)
    whole = run(latent=latent, cfg=2.0)
    shapes = [part.shape for part in latent["samples"].unbind()]
    want = sampling.plain_sample("joint", shapes, steps=4, cfg=2.0)
    image, depth = core.NODE_CLASS_MAPPINGS["SpatialWeave_SplitJointLatent"].execute(r.latent()).result
    twice = [core.RepeatLatentBatch().repeat(part, 2)[0] for part in (image, depth)]
    joined = core.NODE_CLASS_MAPPINGS["SpatialWeave_JoinJointLatent"].execute(*twice).result[0]
    return {
        "as in plain torch": close(whole, want),
        "core's latent nodes on the two parts": [part.shape[0] for part in run(latent=joined)] == [2, 2],
    }


def plain_latent_nodes():
    """Core's nodes for one latent do not take two; the way is through Split and Join."""
    r = sampling.rig()
    failed = []
    for call in (
        lambda: core.LatentUpscale().upscale(r.latent(), "nearest-exact", 96, 96, "disabled"),
        lambda: core.RepeatLatentBatch().repeat(r.latent(), 2),
    ):
        try:
            call()
        except (AttributeError, TypeError, ValueError, RuntimeError, NotImplementedError) as error:
            failed.append(type(error).__name__)
    image, depth = core.NODE_CLASS_MAPPINGS["SpatialWeave_SplitJointLatent"].execute(r.latent()).result
    scaled = [core.LatentUpscaleBy().upscale(part, "nearest-exact", 2.0)[0] for part in (image, depth)]
    joined = core.NODE_CLASS_MAPPINGS["SpatialWeave_JoinJointLatent"].execute(*scaled).result[0]
    return {"they stop": len(failed) == 2, "Split, scale, Join": finite(run(latent=joined, denoise=0.5))}


def inpainting():
    """Masks per stream, by node and by differential diffusion."""
    matrix.load_extras("differential_diffusion")
    r = sampling.rig()
    mask = torch.zeros(1, 64, 48)
    mask[..., 24:] = torch.linspace(0.1, 1, 24)
    parts = {"image": modes.picture(), "image_mask": mask, "view": modes.view(), "depth_mask": mask}
    latent, *_ = modes.run("MaskedJointLatent", r.model, r.vae, **parts)
    given, noisy = latent["samples"].unbind(), latent["noise_mask"].unbind()
    model = node("DifferentialDiffusion", r.model)[0]

    def kept(got):
        return all(
            torch.equal(a[m.expand_as(a) == 0], b[m.expand_as(b) == 0]) for a, b, m in zip(got, given, noisy)
        )

    plain, soft = run(latent=latent), run(model, latent)
    return {
        "what is not masked comes back bit for bit": kept(plain) and kept(soft),
        "a soft mask": finite(plain),
        "Differential Diffusion": finite(soft) and not close(plain, soft, 1e-4),
    }


class Delta:
    """Low-rank changes of image and text layers, as files of every naming, and as the network with them
    added.
    """

    def __init__(self, rank=4, size=0.3):
        config = sampling.rig().config
        width, generator = config.hidden_size, torch.Generator().manual_seed(11)
        state = sampling.rig().network.state_dict()
        self.width, self.parts = width, {}
        for name in self.layers():
            rows, columns = state[f"{name}.weight"].shape
            down, up = (
                torch.randn(shape, generator=generator) * size * shape[-1] ** -0.5
                for shape in ((rank, columns), (rows, rank))
            )
            self.parts[name] = (down, up)

    @staticmethod
    def layers():
        return [
            f"double_blocks.0.{part}"
            for part in ("img_attn.qkv", "img_attn.proj", "img_mlp.0", "txt_attn.qkv", "txt_mlp.2")
        ] + [
            "single_blocks.0.linear1", "single_blocks.1.linear2",
        ]  # fmt: skip

    def kohya(self):
        names = {name: "lora_unet_" + name.replace(".", "_") for name in self.parts}
        return self.state(names, "lora_down.weight", "lora_up.weight")

    def own(self):
        return self.state(
            {name: f"diffusion_model.{name}" for name in self.parts}, "lora_A.weight", "lora_B.weight"
        )

    def state(self, names, down, up):
        out = {}
        for name, (a, b) in self.parts.items():
            out |= {f"{names[name]}.{down}": a, f"{names[name]}.{up}": b}
        return out

    def diffusers(self):
        """The names of diffusers' FLUX.2: q, k and v apart in the double blocks, all in one in the single
        blocks.
        """
        names = {
            "double_blocks.0.img_attn.proj": "transformer_blocks.0.attn.to_out.0",
            "double_blocks.0.img_mlp.0": "transformer_blocks.0.ff.linear_in",
            "double_blocks.0.txt_mlp.2": "transformer_blocks.0.ff_context.linear_out",
            "single_blocks.0.linear1": "single_transformer_blocks.0.attn.to_qkv_mlp_proj",
            "single_blocks.1.linear2": "single_transformer_blocks.1.attn.to_out",
        }
        thirds = {
            "img_attn": ("to_q", "to_k", "to_v"),
            "txt_attn": ("add_q_proj", "add_k_proj", "add_v_proj"),
        }
        out = {}
        for name, (a, b) in self.parts.items():
            if name in names:
                out |= {
                    f"transformer.{names[name]}.lora_A.weight": a,
                    f"transformer.{names[name]}.lora_B.weight": b,
                }
                continue
            for index, part in enumerate(thirds[name.split(".")[2]]):
                key = f"transformer.transformer_blocks.0.attn.{part}"
                rows = b[index * self.width : (index + 1) * self.width].contiguous()
                out |= {f"{key}.lora_A.weight": a.clone(), f"{key}.lora_B.weight": rows}
        return out

    def expected(self, steps=2):
        """The same run of the plain network, with the changes added to its weights."""
        r, modules = sampling.rig(), dict(sampling.rig().network.named_modules())
        shapes = [part.shape for part in r.latent()["samples"].unbind()]
        before = {name: modules[name].weight.clone() for name in self.parts}
        try:
            for name, (down, up) in self.parts.items():
                modules[name].weight.add_(up @ down)
            return sampling.plain_sample("joint", shapes, steps=steps, cfg=1.0)
        finally:
            for name, weight in before.items():
                modules[name].weight.copy_(weight)


def with_lora(state, node_class, folder):
    """Core's own loader node on a file; the model it gives."""
    path = (
        Path(folder) / f"{node_class} of {Path(folder).name}.safetensors"
    )  # of one name ComfyUI would find the first folder's
    save_file(state, path)
    folder_paths.add_model_folder_path("loras", str(folder))
    made = core.NODE_CLASS_MAPPINGS[node_class]()
    return getattr(made, made.FUNCTION)(sampling.rig().model, path.name, 1.0)[0]


def loras(folder):
    """The same change under every naming, against the network with the change added to its weights."""
    matrix.load_extras("lora_debug")
    delta, before = Delta(), run(steps=2)
    want = delta.expected()
    namings = {"kohya": delta.kohya(), "diffusers": delta.diffusers(), "its own names": delta.own()}
    out = {"the change is one": not close(want, before, 1e-2)}
    for naming, state in namings.items():
        out[naming] = close(run(with_lora(state, "LoraLoaderModelOnly", folder), steps=2), want, 1e-3)
    out["bypass loader"] = close(
        run(with_lora(delta.own(), "LoraLoaderBypassModelOnly", folder), steps=2), want, 1e-3
    )
    model = with_lora(delta.kohya(), "LoraLoaderModelOnly", folder)
    run(model, steps=1)
    return out | {"gone from the next run": close(run(steps=2), before, 1e-12)}


def compiled(backend):
    """Core's TorchCompileModel node; other backends by the function behind it.

    With the attention of a GPU: the CPU's asks for the free memory, which breaks the graph in each block.
    """
    matrix.load_extras("torch_compile")
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    r, with_order = sampling.rig(), ours("nodes.host.modality_forcing.joint_model").with_order
    plain = r.model.clone()
    plain.set_model_optimized_attention(attention.attention_pytorch)
    if backend == "inductor":
        model = node("TorchCompileModel", plain, backend)[0]
    else:
        model = plain.clone()
        set_torch_compile_wrapper(model=model, backend=backend)
    guided, want = (run(with_order(each, 3.0), steps=2, cfg=2.0) for each in (model, plain))
    return {
        "as without": close(guided, want, 1e-3),
        "the model before it is as before": finite(run(steps=1)),
    }


def attentions():
    """Every attention that this ComfyUI registered, chosen the way its command line or a node would."""
    r, want, out = sampling.rig(), run(steps=2), {}
    for name, function in attention.REGISTERED_ATTENTION_FUNCTIONS.items():
        if name in ("pytorch", "split", "sub_quad"):
            model = r.model.clone()
            model.set_model_optimized_attention(function)
            out[name] = close(run(model, steps=2), want, 1e-3)
    return out


def attention_on_a_gpu(name):
    """sage, flash or xformers, where they are installed: half precision, so a loose bound."""
    r = sampling.rig()
    model = r.model.clone()
    model.set_model_optimized_attention(attention.get_attention_function(name))
    return {name: close(run(model, steps=2), run(steps=2), 0.1)}


def registered():
    return list(attention.REGISTERED_ATTENTION_FUNCTIONS)


def sampling_patches():
    return {name: sampling.patched_shift(name) < CLOSE for name in ("ModelSamplingFlux", "ModelSamplingSD3")}


def tiled_vae():
    """Core's tiled VAE nodes on the image part."""
    r = sampling.rig()
    image, _ = (
        core.NODE_CLASS_MAPPINGS["SpatialWeave_SplitJointLatent"]
        .execute({"samples": NestedTensor(run())})
        .result
    )
    tiled, whole = (
        core.VAEDecodeTiled().decode(r.vae, image, 512, 64)[0],
        core.VAEDecode().decode(r.vae, image)[0],
    )
    return {"as in one piece": float((tiled - whole).abs().max()) < CLOSE}


def refused(case):
    """The sentence with which a combination is refused."""
    r = sampling.rig()
    hint, mask = torch.rand(1, 64, 48, 3), torch.ones(1, 64, 48)

    def prompted(**extra):
        return lambda: run_with([[tensor, values | extra] for tensor, values in r.positive])

    def replaced():
        model = r.model.clone()
        model.set_model_attn2_replace(lambda *args: args[0], "input", 4)
        return run(model)

    def patched():
        model = r.model.clone()
        model.set_model_output_block_patch(lambda *args: args)
        return run(model)

    def through(extra, name, *values):
        """A run through a node of core's that changes the model."""

        def sample():
            matrix.load_extras(extra)
            made = core.NODE_CLASS_MAPPINGS[name]
            model, *_ = (
                made().patch(r.model, *values) if hasattr(made, "patch") else node(name, r.model, *values)
            )
            return run(model, cfg=2.0)

        return sample

    def given_image():
        matrix.load_extras("easycache")
        latent = modes.run("ImageToDepthLatent", r.model, r.vae, modes.picture())[0]
        return run(node("EasyCache", r.model, 0.2, 0.15, 0.95, False)[0], latent)

    def guided():
        matrix.load_extras("flux")
        return run_with(node("FluxGuidance", r.positive, 3.5)[0])

    def sharpened():
        matrix.load_extras("latent")
        return run(
            node("LatentApplyOperationCFG", r.model, node("LatentOperationSharpen", 9, 1.0, 0.1)[0])[0],
            cfg=2.0,
        )

    cases = {
        "ControlNet": prompted(control=comfy.controlnet.ControlBase()),
        "reference images": prompted(reference_latents=[torch.zeros(1, 32, 4, 3)]),
        "areas": lambda: run_with(core.ConditioningSetArea().append(r.positive, 32, 32, 0, 0, 1.0)[0]),
        "masked prompts": lambda: run_with(
            core.ConditioningSetMask().append(r.positive, mask, "default", 1.0)[0]
        ),
        "inpainting conditioning": lambda: run_with(
            core.InpaintModelConditioning().encode(r.positive, r.negative, hint, r.vae, mask, True)[0]
        ),
        "IP-Adapter": replaced,
        "FreeU": patched,
        "PAG": through("pag", "PerturbedAttentionGuidance", 3.0),
        "NAG": through("nag", "NAGuidance", 5.0, 0.5, 1.5),
        "skipped layers": through("slg", "SkipLayerGuidanceDiT", 3.0, 0.0, 1.0, "0", "", 0.0),
        "FreSca": through("fresca", "FreSca", 1.0, 1.25, 20),
        "latent operations": sharpened,
        "guidance of videos": through("video_model", "VideoLinearCFGGuidance", 1.0),
        "context windows": through("context_windows", "ContextWindowsManual", *WINDOWS),
        "EasyCache on a given image": given_image,
        "guidance value": guided,
        "CLIP Vision": prompted(unclip_conditioning=[{}]),
    }
    try:
        cases[case]()
    except ValueError as error:
        return str(error)
    return None
