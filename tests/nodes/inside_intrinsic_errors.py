"""Called by worker.py inside ComfyUI: wrong inputs of the intrinsic nodes, and what of a refused run is left
in the model.
"""

import sys
import types
from pathlib import Path

import comfy.hooks
import comfy.model_detection
import comfy.sample
import comfy.samplers
import comfy.supported_models
import comfy.weight_adapter
import folder_paths
import torch
from comfy_extras.nodes_advanced_samplers import sample_lcm_upscale
from safetensors.torch import load_file, save_file

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py
# worker.py's: the small models and their LoRAs
small = sys.modules["__main__"].load_file("inside_intrinsic.py")
FIRST = "input_blocks.1.1.transformer_blocks.0"
NAME = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_q"
# an image LoRA in kohya's names
STYLE = {f"{NAME}.lora_down.weight": torch.ones(2, 64), f"{NAME}.lora_up.weight": torch.ones(64, 2)}


def written(name, tensors, metadata=None):
    """A file in a LoRA folder; its name for the node."""
    small.lora()  # makes the folder
    save_file(tensors, Path(small.KEEP["folder"]) / name, metadata=metadata)
    folder_paths.filename_list_cache.clear()
    return name


def run(patcher, kind="sd21", **more):
    """Two steps of an image with its maps."""
    patched = small.coupled(patcher, **more)
    return small.sample(patched, small.joined(patched), steps=2)


def with_patch(key, patch):
    clone = small.model().clone()
    assert clone.add_patches({f"diffusion_model.{key}": patch}, 1.0) == [f"diffusion_model.{key}"]
    return clone


def dora():
    width = small.model().model.diffusion_model.get_submodule(f"{FIRST}.attn2.to_q").in_features
    weights = (torch.ones(64, 2), torch.ones(2, width), 2.0, None, torch.ones(64, 1), None)
    run(with_patch(f"{FIRST}.attn2.to_q.weight", comfy.weight_adapter.LoRAAdapter(set(), weights)))


def normed():
    run(with_patch(f"{FIRST}.norm1.weight", ("diff", (torch.ones(64),))))


def inpainting():
    plain = small.model()
    made = types.SimpleNamespace(
        diffusion_model=plain.model.diffusion_model, model_config=plain.model.model_config,
        concat_keys=("mask", "masked_image"),
        latent_format=plain.model.latent_format,
    )  # fmt: skip
    return ours("nodes.host.intrinsic_ldm.layers").Base(types.SimpleNamespace(model=made))


def scheduled():
    """A prompt with a LoRA of its own, by core's hooks."""
    patched = small.coupled(small.model())
    hooked = small.prompt(1)
    hooked[0][1]["hooks"] = comfy.hooks.create_hook_lora(STYLE, 1.0, 0.0)
    small.sample(patched, small.joined(patched), positive=hooked, steps=1)


def taken_in_pixart():
    """Another node's work that core's samplers put into the network while it runs."""
    plain = small.model("pixart")
    attention = plain.model.diffusion_model.blocks[2].attn
    attention.forward = attention.forward
    try:
        run(plain)
    finally:
        del attention.forward


def regrouped():
    """A node that gives the network one row after the other."""

    def one_by_one(apply_model, args):
        rows = zip(args["input"].split(1), args["timestep"].split(1), args["c"]["c_crossattn"].split(1))
        return torch.cat(
            [apply_model(x, t, **(args["c"] | {"c_crossattn": context})) for x, t, context in rows]
        )

    plain = small.model().clone()
    plain.set_model_unet_function_wrapper(one_by_one)
    run(plain)


def taken():
    other = small.model().clone()
    other.set_model_attn1_replace(lambda q, k, v, extra: v, "middle", 0)
    run(other)


def bypassed():
    other = small.model().clone()
    other.set_injections("bypass_lora", [])
    run(other)


def flux():
    network = types.SimpleNamespace(
        diffusion_model=torch.nn.Identity(), model_config=comfy.supported_models.Flux({})
    )
    return small.coupled(types.SimpleNamespace(model=network), file="any")


def editing():
    """Core's own Instruct-Pix2Pix: a UNet that reads a picture in more channels,
    which it does not call concat_keys.
    """
    config = comfy.supported_models.SD15_instructpix2pix(small.unet_config("sd15") | {"in_channels": 8})
    made = config.get_model({}, device=torch.device("meta"))
    return ours("nodes.host.intrinsic_ldm.layers").Base(types.SimpleNamespace(model=made))


def twice():
    patched = small.coupled(small.coupled(small.model()))
    small.sample(patched, small.joined(patched), steps=1)


def sampled(latent, **more):
    patched = small.coupled(small.model())
    return small.sample(patched, latent or small.joined(patched), steps=2, **more)


def by_sampler(sampler):
    """A run by a sampler that a node of its own makes."""
    patched = small.coupled(small.model())
    latent = small.joined(patched)["samples"]
    noise, sigmas = comfy.sample.prepare_noise(latent, 5), torch.tensor([14.0, 7.0, 0.0])
    comfy.sample.sample_custom(
        patched, noise, 3.0, sampler, sigmas, small.prompt(1), small.prompt(2), latent, seed=5
    )


def pair(image, maps=None, patcher=None):
    latents = [shape and {"samples": torch.ones(shape)} for shape in (image, maps)]
    return ours("nodes.host.intrinsic_ldm.model").join_intrinsic(
        patcher or small.coupled(small.model()), *latents
    )


def trained_on(family, kind):
    """Names and widths of this base, and a file that says it was trained on another."""
    small.model(kind)
    name = small.lora(kind)  # makes the folder
    tensors = load_file(Path(small.KEEP["folder"]) / name)
    small.coupled(small.model(kind), file=written(f"{family}.safetensors", tensors, {"base": family}))


def settings(patcher):
    (wrapper,) = patcher.get_wrappers("outer_sample", "spatialweave_intrinsics")
    (found,) = [cell.cell_contents for cell in wrapper.__closure__]
    return found


def predicted(rows, **options):
    """One step, asked for as core's samplers ask."""
    hosted = ours("nodes.host.intrinsic_ldm.run")
    hosted.Run(settings(small.coupled(small.model())), 1, [], None).predict(
        None, None, [], torch.zeros(rows, 4, 8, 8), torch.ones(rows), options
    )


def plotted():
    host, patched = ours("nodes.host.intrinsic_ldm.model"), small.coupled(small.model())
    return host.plot(settings(patched), small.model(), torch.zeros(1))


def scheduled_by(**choice):
    return small.coupled(small.model(), choice)


def wide():
    patched = small.coupled(small.model())
    small.sample(
        patched, {"samples": small.nested(torch.zeros(1, 16, 8, 8), torch.zeros(1, 16, 8, 8))}, steps=1
    )


def joined_twice(at):
    patched = small.coupled(small.model())
    pair, plain = small.joined(patched), small.empty()
    return ours("nodes.host.intrinsic_ldm.model").join_intrinsic(
        patched, *((pair, None) if at == "image" else (plain, pair))
    )


def wired(sampler, **more):
    """A graph in API form: loader 1, co-generation 2, joint latent 3, and what samples it;
    what it says of the joint latent.
    """
    prompt = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd21.safetensors"}},
        "2": {"class_type": "SpatialWeave_IntrinsicCoGeneration", "inputs": {"model": ["1", 0]}},
        "3": {"class_type": "SpatialWeave_JoinIntrinsicLatent", "inputs": {"model": ["2", 0]}},
        "8": {
            "class_type": "KSampler", "inputs": {"latent_image": ["3", 0], "seed": 3, **sampler},
            "_meta": {"title": "My sampler"},
        },
        **more,
    }
    hidden = type("Hidden", (), {"prompt": prompt, "unique_id": "3"})
    return ours("nodes.host.intrinsic_ldm.graph").check_samplers(hidden)


def sound_graphs():
    """Graphs that are as they should be: with nodes between, through a guider, and a plain second pass over
    the image's part alone.
    """
    lora = {"4": {"class_type": "LoraLoaderModelOnly", "inputs": {"model": ["2", 0], "strength_model": 1.0}}}
    guider = {"5": {"class_type": "CFGGuider", "inputs": {"model": ["2", 0], "cfg": 4.0}}}
    split = {"6": {"class_type": "SpatialWeave_SplitIntrinsicLatent", "inputs": {"samples": ["8", 0]}}}
    second = {"9": {"class_type": "KSampler", "inputs": {"model": ["1", 0], "latent_image": ["6", 0]}}}
    wired({"model": ["2", 0]})
    wired({"model": ["4", 0]}, **lora)
    wired({"guider": ["5", 0]}, **guider)
    wired({"model": ["2", 0]}, **split, **second)
    # called by a script, there is no graph
    node = core.NODE_CLASS_MAPPINGS["SpatialWeave_JoinIntrinsicLatent"]
    return list(node.execute(small.coupled(small.model()), small.empty()).result[0]["samples"].shape)


def ordinary():
    return written("style.safetensors", STYLE)


CASES = {
    "a plain model samples the pair": lambda: wired({"model": ["1", 0]}),
    "a plain guider samples the pair": lambda: wired(
        {"guider": ["5", 0]}, **{"5": {"class_type": "CFGGuider", "inputs": {"model": ["1", 0]}}}
    ),
    "a LoRA that names another base": lambda: trained_on("sdxl", "sd21"),
    "PixArt-alpha's LoRA on Sigma": lambda: trained_on("pixart", "sigma"),
    "SD2.1's LoRA on SD1.5": lambda: trained_on("sd21", "sd15"),
    "SD1.5's LoRA on SD2.1": lambda: trained_on("sd15", "sd21"),
    "SDXL's refiner": lambda: small.lora("refiner"),
    "unCLIP": lambda: small.lora("unclip"),
    "another base": flux,
    "an editing base": editing,
    "another base's LoRA": lambda: small.coupled(
        small.model(), file=small.lora("sd21", width=20, name="wide.safetensors")
    ),
    "SDXL's LoRA on SD2.1": lambda: (
        small.model("sdxl"), small.coupled(small.model(), file=small.lora("sdxl", name="xl.safetensors")),
    ),
    "unknown layer": lambda: scheduled_by(schedule="drop", layers="3-12", layer_reading="stages", tau=900.0),
    "plain latent": lambda: sampled(small.empty()),
    "two shapes": lambda: sampled(
        {"samples": small.nested(small.empty()["samples"], torch.zeros(1, 1, 64, 64))}
    ),
    "plain model": lambda: pair((1, 4, 8, 8), patcher=small.model()),
    "batches": lambda: pair((2, 4, 8, 8), (3, 4, 8, 8)),
    "sizes": lambda: pair((1, 4, 8, 8), (1, 4, 8, 6)),
    "channels": lambda: pair((1, 16, 8, 8)),
    "plain to split": lambda: ours("nodes.host.intrinsic_ldm.model").split_intrinsic(small.empty()),
    "attention taken": taken,
    "bypass": bypassed,
    "twice": twice,
    "dpm_adaptive": lambda: sampled(None, sampler="dpm_adaptive"),
    "lcm_upscale": lambda: by_sampler(comfy.samplers.KSAMPLER(sample_lcm_upscale)),
    "ar_video": lambda: by_sampler(comfy.samplers.ksampler("ar_video")),
    "PixArt's LoRA on SD2.1": lambda: (
        small.model("pixart"), small.coupled(small.model(), file=small.lora("pixart")),
    ),
    "SD2.1's LoRA on PixArt": lambda: small.coupled(small.model("pixart"), file=small.lora("sd21")),
    "an ordinary LoRA": lambda: small.coupled(small.model(), file=ordinary()),
    "no LoRA": lambda: small.coupled(
        small.model(), file=written("vae.safetensors", {"decoder.conv_in.weight": torch.ones(4)})
    ),
    "an inpainting base": inpainting,
    "a DoRA": dora,
    "a LoRA of a norm": normed,
    "hooks": scheduled,
    "attention taken in PixArt": taken_in_pixart,
    "rows one by one": regrouped,
    "rows left out": lambda: predicted(1),
    "several GPUs": lambda: predicted(2, multigpu_clones={}),
    "channels of a pair": wide,
    "a pair to join, as image": lambda: joined_twice("image"),
    "a pair to join, as maps": lambda: joined_twice("maps"),
    "layers that are no numbers": lambda: scheduled_by(
        schedule="drop", layers="middle", layer_reading="stages", tau=900.0
    ),
    "a block that is not there": lambda: scheduled_by(
        schedule="drop", layers="3-40", layer_reading="blocks", tau=900.0
    ),
    "a stage without attention": lambda: scheduled_by(
        schedule="drop", layers="4", layer_reading="stages", tau=900.0
    ),
    "a curve that is none": lambda: scheduled_by(schedule="curve", points="900 is 1"),
    "no steps to plot": plotted,
}


def refused(case):
    """The sentence, and how many hooks and replaced methods the refused run has left in the networks."""
    kept = {kind: traces(kind) for kind in ("sd21", "pixart")}
    try:
        CASES[case]()
        sentence = None
    except ValueError as error:
        sentence = str(error)
    return {"sentence": sentence, "left": sum(traces(kind) - count for kind, count in kept.items())}


def traces(kind):
    return sum(
        len(part._forward_hooks) + ("forward" in vars(part))
        for part in small.model(kind).model.diffusion_model.modules()
    )


def pixart_by_its_inputs():
    """What core takes a PixArt for that reads the picture's size, as alpha's of 1024 pixels does,
    and for one that does not.
    """
    state = {"t_block.1.weight": torch.ones(1), "blocks.0.attn.proj.weight": torch.ones(1)}
    sized = state | {"ar_embedder.mlp.0.weight": torch.ones(1)}
    found = [comfy.model_detection.model_config_from_unet(tensors, "") for tensors in (sized, state)]
    return [[type(config).__name__, config.latent_format.scale_factor] for config in found]
