"""Called by worker.py inside ComfyUI: joint latents in core's latent nodes and samplers, and changes of a
model that core makes for other networks.
"""

import asyncio
import os
import sys

import comfy.hooks
import comfy.utils
import torch
from comfy_api.latest import io
from safetensors.torch import save_file

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py
# holds the models; its `start` was called before
sampling = sys.modules["spatialweave_tests_inside_sampling"]
PLAIN = {"samples": torch.rand(1, 32, 4, 3)}


def core_node(file, name):
    """A class of ComfyUI's extra nodes, through its own loader."""
    if name not in core.NODE_CLASS_MAPPINGS:
        place = os.path.join("comfy_extras", f"nodes_{file}.py")
        asyncio.run(core.load_custom_node(place, module_parent="comfy_extras"))
    return core.NODE_CLASS_MAPPINGS[name]


def calls(joint):
    """Core's nodes for one latent, each with the joint one where it would fail."""

    def extra(name, *values):
        return lambda: core_node("latent", name).execute(*values)

    scaled = {
        f"LatentUpscale {method} {crop}": lambda m=method, c=crop: core.LatentUpscale().upscale(
            joint, m, 96, 128, c
        )
        for method in core.LatentUpscale.upscale_methods
        for crop in ("disabled", "center")
    }
    return scaled | {
        "SaveLatent": lambda: core.SaveLatent().save(joint, "spatialweave_test/latent"),
        "LatentUpscaleBy": lambda: core.LatentUpscaleBy().upscale(joint, "bilinear", 2.0),
        "RepeatLatentBatch": lambda: core.RepeatLatentBatch().repeat(joint, 2),
        "LatentFromBatch": lambda: core.LatentFromBatch().frombatch(joint, 0, 1),
        "LatentFlip": lambda: core.LatentFlip().flip(joint, "x-axis: vertically"),
        "LatentRotate": lambda: core.LatentRotate().rotate(joint, "90 degrees"),
        "LatentCrop": lambda: core.LatentCrop().crop(joint, 16, 16, 0, 0),
        "LatentComposite onto": lambda: core.LatentComposite().composite(joint, PLAIN, 0, 0, "composite", 0),
        "LatentComposite of": lambda: core.LatentComposite().composite(PLAIN, joint, 0, 0, "composite", 0),
        "LatentComposite feathered": lambda: core.LatentComposite().composite(
            PLAIN, joint, 8, 8, "composite", 8
        ),
        "LatentBatch": extra("LatentBatch", joint, joint),
        "LatentBatch with another": extra("LatentBatch", joint, PLAIN),
    }


def sentence_of(call):
    try:
        call()
    except Exception as error:  # noqa: BLE001 - ComfyUI shows any below its node
        return str(error)
    return "no error"


def refusals(sampled):
    """What each of core's nodes says of a joint latent, as made or as KSampler hands it on."""
    latent = sampling.rig().latent()
    latent = sampling.ksample(sampling.rig().model, latent, steps=1) if sampled else latent
    return {name: sentence_of(call) for name, call in calls(latent).items()}


def intrinsic_refusals():
    """The same of a joint latent of an image and its maps."""
    latents, model = ours("nodes.host.shared.nested_latents"), ours("nodes.host.intrinsic_ldm.model")
    nested = sampling.NestedTensor([torch.rand(1, 4, 8, 8), torch.rand(1, 4, 8, 8)])
    joint = latents.JointLatent({"samples": nested}, model.REFUSAL)
    return {name: sentence_of(call) for name, call in calls(joint).items()}


def what_core_does_with_nested_tensors():
    """Copies, slices of the batch, sums and moves give what they give for core's own nested tensor."""
    latent = sampling.rig().latent(batch=2)
    own, plain = latent["samples"], sampling.NestedTensor(latent["samples"].unbind())
    pairs = [(own[0:1], plain[0:1]), (own + own, plain + plain), (own.float().cpu(), plain.cpu())]
    return {
        "same": all(
            torch.equal(a, b) for x, y in pairs for a, b in zip(x.unbind(), y.unbind(), strict=True)
        ),
        "kept": {type(x).__name__ for x, _ in pairs} == {"JointSamples"},
        "shape": list(own.shape) == list(plain.shape),
        "has no": not hasattr(own, "contiguous"),
        "copied": type(latent.copy()["samples"]).__name__ == "JointSamples",
    }


def sampler_of_another_model(loader, through=None):
    """What Empty Joint Latent says, run by ComfyUI's executor's rules, of the graph around it."""
    model = ["1", 0] if through is None else ["5", 0]
    prompt = {
        "1": {"class_type": loader, "inputs": {}},
        "2": {"class_type": "SpatialWeave_LoadModalityForcing", "inputs": {}},
        "3": {"class_type": "SpatialWeave_EmptyJointLatent", "inputs": {"model": ["2", 0]}},
        "4": {"class_type": "KSampler", "inputs": {"model": model, "latent_image": ["3", 0]}},
        "5": {"class_type": "LoraLoader", "inputs": {"model": ["1", 0]}},
    }
    node = core.NODE_CLASS_MAPPINGS["SpatialWeave_EmptyJointLatent"]
    hidden = {io.Hidden.unique_id: "3", io.Hidden.prompt: prompt}
    locked = node.PREPARE_CLASS_CLONE({"hidden_inputs": hidden})
    return sentence_of(lambda: locked.execute(sampling.rig().model, 64, 64, 1))


def unet_nodes():
    """FreeU and FreeU_V2 on the joint model."""
    model = sampling.rig().model
    values = {"FreeU": (1.1, 1.2, 0.9, 0.2), "FreeU_V2": (1.3, 1.4, 0.9, 0.2)}
    return {
        name: sentence_of(lambda n=name: core_node("freelunch", n).execute(model, *values[n]))
        for name in values
    }


def foreign_lora(folder, kind):
    """What core's loaders say of a LoRA of SD 1.5's layers."""
    import folder_paths

    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {f"{layer}.lora_down.weight": torch.rand(4, 320), f"{layer}.lora_up.weight": torch.rand(320, 4)}
    name, r = "of_another_network.safetensors", sampling.rig()
    save_file(tensors, os.path.join(folder, name))
    folder_paths.add_model_folder_path("loras", folder)
    alone = core.LoraLoaderModelOnly().load_lora_model_only
    loads = {
        "LoraLoader": lambda: core.LoraLoader().load_lora(r.model, r.clip, name, 1.0, 1.0),
        "LoraLoaderModelOnly": lambda: alone(r.model, name, 1.0),
        "of a clone": lambda: alone(r.model.clone().clone(), name, 1.0),
        "hook": lambda: comfy.hooks.load_hook_lora_for_models(r.model, r.clip, tensors, 1.0, 1.0),
    }
    return sentence_of(loads[kind])


def own_lora_still_loads():
    """A change of one of the network's layers, by the same way, on a clone of a clone."""
    model = sampling.rig().model.clone().clone()
    name = "diffusion_model.img_in.weight"
    shape = comfy.utils.get_attr(model.model, name).shape
    found = model.add_patches({name: ("diff", (torch.ones(shape),))}, 1.0)
    return found == [name] and list(model.patches) == [name] and not sampling.rig().model.patches


def patchers_are_freed():
    """A clone goes with its last user, without a garbage collection."""
    import gc
    import weakref

    gc.disable()
    try:
        clone = sampling.rig().model.clone()
        gone = weakref.ref(clone)
        del clone
        return gone() is None
    finally:
        gc.enable()
