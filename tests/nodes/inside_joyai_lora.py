"""Called by worker.py inside ComfyUI: a LoRA that our trainer wrote,
on core's JoyImage in bfloat16 and in int8, beside the network it trained on.
"""

import os
from pathlib import Path

import folder_paths
import torch
from safetensors.torch import load_file, save_file

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py
KEEP = {}
TEXT = 4096  # that core expects


def prepare(folder):
    """The network's file in bfloat16 and int8, the LoRA's file, and the trained network with its hooks."""
    if "network" in KEEP:
        return
    import diffusers

    training = ours("models.joyai_edit.training.lora")
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        torch.manual_seed(3)
        network = diffusers.JoyImageEditTransformer3DModel(
            hidden_size=256, num_attention_heads=2, text_dim=TEXT, num_layers=2, rope_dim_list=[16, 56, 56],
            theta=10000,
        )
        for parameter in network.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        state = {name: value.detach().bfloat16().contiguous() for name, value in network.state_dict().items()}
        network.load_state_dict({name: value.float() for name, value in state.items()})
        settings = training.AdapterSettings(base="x", layers="all", ship="float32", alpha=24.0)
        model = training.Adapters(network, settings, torch.Generator().manual_seed(0))
        for parameter in model.parameters():
            parameter.data = 0.08 * torch.randn(parameter.shape)
        plain = {name: value.clone() for name, value in network.state_dict().items()}
        model.attach(network)
    models, loras = Path(folder) / "models", Path(folder) / "loras"
    models.mkdir()
    save_file(state, models / "joy_bf16.safetensors")
    matrices = [
        name for name, value in state.items() if value.ndim == 2 and name.startswith("double_blocks.")
    ]
    plan = {name: "int8" if name in matrices else torch.bfloat16 for name in state}
    ours("models.core.weights.conversion").convert_file(
        models / "joy_bf16.safetensors", models / "joy_int8.safetensors", plan, {}
    )
    training.export_lora(loras, model.state_dict(), paths=model.paths, settings=settings, facts="{}")
    for kind, place in (("diffusion_models", models), ("loras", loras)):
        folder_paths.add_model_folder_path(kind, str(place))
    other = diffusers.JoyImageEditTransformer3DModel(**network.config)
    other.load_state_dict(plain)
    KEEP.update(
        network=network.train(False),
        plain=other.train(False),
        int8=load_file(models / "joy_int8.safetensors"),
    )


def velocity(patcher):
    """Core's network on fixed inputs, in the precision it chose."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([patcher], force_full_load=True)
    network = patcher.model.diffusion_model
    noisy, reference, context, t = inputs()
    dtype = patcher.model.get_dtype_inference()
    out = network(noisy.to(dtype), t, context=context.to(dtype), ref_latents=[reference.to(dtype)])
    return out.float()


def inputs():
    generator = torch.Generator().manual_seed(5)
    latents = [torch.randn(1, 16, 1, 8, 12, generator=generator) for _ in range(2)]
    return (*latents, torch.randn(1, 9, TEXT, generator=generator), torch.tensor([700.0]))


def loaded(folder, name):
    """Stock loaders: the network, then the LoRA at strength 1 and 0,
    against diffusers with our hooks and without.
    """
    prepare(folder)
    (model,) = core.NODE_CLASS_MAPPINGS["UNETLoader"]().load_unet(name, "default")
    lora = os.path.basename(ours("models.joyai_edit.training.lora").LORA_FILE)
    (patched,) = core.NODE_CLASS_MAPPINGS["LoraLoaderModelOnly"]().load_lora_model_only(model, lora, 1.0)
    noisy, reference, context, t = inputs()
    items = torch.stack([reference, noisy], 1)
    with torch.no_grad():
        want, base = (KEEP[kind](items, t, context).sample[:, -1] for kind in ("network", "plain"))
    plain = velocity(model)
    with_lora = velocity(patched)
    return {
        "kind": type(model.model).__name__, "patches": len(patched.patches),
        "quantized": sum(value.dtype == torch.int8 for value in KEEP["int8"].values()),
        "base": float((plain - base).norm() / base.norm()),
        "trained": float((with_lora - want).norm() / want.norm()),
        "change": float((want - base).norm() / base.norm()), "sampled": sampled(patched),
    }  # fmt: skip


def sampled(model):
    """A KSampler on the patched model."""
    noisy, reference, context, _ = inputs()
    positive = [[context, {"reference_latents": [reference]}]]
    (out,) = core.KSampler().sample(
        model, 1, 2, 2.0, "euler", "normal", positive, positive, {"samples": torch.zeros_like(noisy)}
    )
    return bool(out["samples"].isfinite().all())
