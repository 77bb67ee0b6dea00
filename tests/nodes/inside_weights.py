"""Called by worker.py inside ComfyUI: files of users in every precision through core's loader,
core's text encoder, what is missing.
"""

import importlib.util
import json
import re
from pathlib import Path

import comfy.model_management
import comfy.nested_tensor
import comfy.sd
import torch

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py

LOADER = "SpatialWeave_LoadModalityForcing"


def load(path):
    return ours("nodes.host.modality_forcing.loading").load_joint_model(path)


def quantised(path, source):
    """A file in fewer bits, hosted, against the plain network with the values that its weights stand for,
    and against the source's.
    """
    hosted = load(path).model.diffusion_model
    original, config = ours("models.modality_forcing.weights").load_network(source, dtype=torch.float32)
    values = held(hosted)
    plain = ours("models.modality_forcing.network").ModalityForcing(config)
    plain.load_state_dict(values, strict=True)
    inputs = make_inputs(config)
    out = {"host": hosted_forward(hosted, inputs), "plain": plain(*inputs), "original": original(*inputs)}
    before = {name: value.float() for name, value in original.state_dict().items()}
    layers = [name for name, module in hosted.named_modules() if getattr(module, "quant_format", None)]
    return {
        "layers": len(layers),
        "formats": sorted({hosted.get_submodule(name).quant_format for name in layers}),
        "head": str(hosted.depth_final_layer.linear.weight.dtype),
        "kept": max(
            relative(values[n], before[n]) for n in values if n.removesuffix(".weight") not in layers
        ),
        "weights": max(relative(values[f"{n}.weight"], before[f"{n}.weight"]) for n in layers),
        "step": max(
            worst_step(hosted.get_submodule(n), values[f"{n}.weight"], before[f"{n}.weight"]) for n in layers
        ),
        "loading": max(map(relative, out["host"], out["plain"])),
        "accuracy": max(map(relative, out["plain"], out["original"])),
        "host_accuracy": max(map(relative, out["host"], out["original"])),
    }


def worst_step(module, got, wanted):
    """The largest error of a weight, as a part of what half a step of its format allows. 1 is the bound."""
    error, scale = (got - wanted).abs(), module.weight._params.scale.float()
    if module.quant_format == "float8_e4m3fn":
        bound = (wanted.abs() / scale).clamp(min=2**-6).log2().floor().exp2() * 2**-4 * scale
    elif module.quant_format == "nvfp4":
        largest = wanted.unflatten(1, (-1, 16)).abs().amax(-1, keepdim=True).expand(-1, -1, 16).flatten(1)
        # half of the widest step, 2 of 6, times the rounding of the group's scale
        bound = largest / 6 * (1 + 2**-4)
    else:  # int8 with turned columns: lengths are kept, so the bound is on a row's length
        error, bound = error.norm(dim=1), scale[:, 0] / 2 * got.shape[1] ** 0.5
    return float((error / (bound + 1e-9)).max())


def as_float(value):
    """What a weight stands for, by core's own arithmetic."""
    value = value.data
    return (
        value.dequantize() if hasattr(value, "dequantize") and hasattr(value, "_params") else value
    ).float()


def relative(got, wanted):
    return float((got.float() - wanted.float()).norm() / (wanted.float().norm() + 1e-12))


def make_inputs(config, batch=1, grid=(3, 2), text=4):
    generator = torch.Generator().manual_seed(3)
    p = config.depth_patch
    shapes = (
        (batch, config.in_channels, *grid), (batch, 1, grid[0] * p, grid[1] * p),
        (batch, text, config.context_in_dim),
    )
    return (
        *(torch.randn(shape, generator=generator) for shape in shapes), torch.full((batch,), 0.7),
        torch.full((batch,), 0.4),
    )


def hosted_forward(hosted, inputs):
    return ours("models.modality_forcing.network").ModalityForcing.forward(hosted, *inputs)


def sampled(path):
    """Two steps of core's KSampler; finite, and how much memory core counts for the weights."""
    model = load(path)
    config = model.model.model_config.network
    context = torch.randn(1, 4, config.context_in_dim, generator=torch.Generator().manual_seed(0))
    p = config.depth_patch
    latent = {
        "samples": comfy.nested_tensor.NestedTensor(
            [torch.zeros(1, config.in_channels, 4, 4), torch.zeros(1, 1, 4 * p, 4 * p)]
        )
    }
    (out,) = core.KSampler().sample(
        model, 0, 2, 1.0, "euler", "simple", [[context, {}]], [[context, {}]], latent
    )
    return {
        "finite": all(bool(part.isfinite().all()) for part in out["samples"].unbind()),
        "size": model.model_size(),
    }


def rebuilt(path):
    """The recipe by which core makes a patcher again gives the same weights, plain where it is asked for."""
    model = load(path)
    factory, arguments = model.cached_patcher_init
    again = factory(*arguments, disable_dynamic=True)
    first, second = (held(m.model.diffusion_model) for m in (model, again))
    return type(again).__name__, set(first) == set(second) and all(
        torch.equal(first[name], second[name]) for name in first
    )


def held(network):
    return {name: as_float(value) for name, value in network.named_parameters()}


def precision(path):
    """A large network on a device that computes in bfloat16: the body in it, the depth head in float32."""
    hosting, management = ours("nodes.host.shared.hosting"), comfy.model_management
    before = hosting.SMALL, management.should_use_bf16
    hosting.SMALL, management.should_use_bf16 = 0, lambda *args, **kwargs: True
    try:
        network = load(path).model.diffusion_model
        dtypes = {name: str(value.dtype) for name, value in network.named_parameters()}
        return dtypes | sampled(path)
    finally:
        hosting.SMALL, management.should_use_bf16 = before


def chosen(name, folder=None):
    """What core's validation of the loader's widget says, and what running it anyway says."""
    import folder_paths

    if folder:
        folder_paths.add_model_folder_path("diffusion_models", folder)
    node = core.NODE_CLASS_MAPPINGS[LOADER]
    said = node.validate_inputs(model_name=name)
    try:
        outputs = node.execute(name).result
    except ValueError as error:
        return {"valid": said, "error": str(error)}
    return {"valid": said, "sockets": [getattr(output, "message", None) for output in outputs[1:]]}


def klein_tokens(text):
    """Core's tokens of a prompt for the encoder of FLUX.2 klein 9B: ids and weights."""
    import comfy.text_encoders.flux

    tokens = comfy.text_encoders.flux.KleinTokenizer8B().tokenize_with_weights(text)["qwen3_8b"]
    return [int(token) for token, *_ in tokens[0]], sorted({float(weight) for _, weight, *_ in tokens[0]})


def klein_context():
    """A small Qwen3 with random weights as core's CLIP hosts it: the context's shape,
    and which hidden states it is made of.
    """
    import comfy.text_encoders.flux

    sizes = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 28, "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    options = {"model_name": "qwen3_8b", "qwen3_8b_model_config": sizes}
    encoder = comfy.text_encoders.flux.klein_te(model_type="qwen3_8b")(
        device="cpu", dtype=torch.float32, model_options=options
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in encoder.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    tokens = comfy.text_encoders.flux.KleinTokenizer8B().tokenize_with_weights("")
    context = encoder.encode_token_weights(tokens)[0]
    return {
        "shape": list(context.shape), "zero": not bool(context.any()), "layers": list(encoder.qwen3_8b.layer),
    }


def zeros(kind, cfg):
    """Zeros as a prompt of the tiny model: the sentence, or None where they do no harm."""
    loading = ours("nodes.host.modality_forcing.loading")
    model, clip, _ = loading.load_modality_forcing(loading.TINY)
    text = core.CLIPTextEncode().encode(clip, "")[0]
    nothing = core.ConditioningZeroOut().zero_out(text)[0]
    prompts = {"positive": (nothing, text), "negative": (text, nothing)}[kind]
    latent = ours("nodes.host.modality_forcing.joint_latent").empty_joint_latent(model, 32, 32, 1)
    try:
        core.KSampler().sample(model, 0, 1, cfg, "euler", "simple", *prompts, latent)
    except ValueError as error:
        return str(error)
    return None


def registry_lines():
    return {file.name: file.line for file in ours("models.modality_forcing.released").released_files()}


def state_names(path):
    """The description of each layer, as core would save the model again."""
    state = load(path).model.diffusion_model.state_dict()
    marks = {
        name: json.loads(bytes(value.tolist()))
        for name, value in state.items()
        if name.endswith(".comfy_quant")
    }
    return {name.removesuffix(".comfy_quant"): mark for name, mark in marks.items()}


def small_klein(folder, parts):
    """A network's file before and after its encoder and VAE lie in core's folders;
    `parts` is a file that writes small ones there.
    """
    from dataclasses import replace

    import folder_paths
    from safetensors.torch import save_file

    for name in ("diffusion_models", "text_encoders", "vae"):
        (Path(folder) / name).mkdir()
        folder_paths.add_model_folder_path(name, str(Path(folder) / name), is_default=True)
    config = replace(
        ours("models.modality_forcing.config").PRESETS["tiny"],
        in_channels=128,
        context_in_dim=96,
        infinite_sky=False,
    )
    torch.manual_seed(0)
    network = ours("models.modality_forcing.network").ModalityForcing(config)
    for value in network.parameters():
        torch.nn.init.normal_(value, std=0.5 * value.shape[-1] ** -0.5)
    file, state = "small_klein.safetensors", network.to(torch.bfloat16).state_dict()
    save_file({f"dit.{name}": value for name, value in state.items()}, f"{folder}/diffusion_models/{file}")
    encoder, codec = "qwen_3_8b_fp8mixed.safetensors", "flux2-vae.safetensors"
    ours("models.modality_forcing.released").TEXT_ENCODERS[96] = encoder

    node = core.NODE_CLASS_MAPPINGS[LOADER]
    before, known = node.execute(file).result[1:], node.fingerprint_inputs(model_name=file)
    spec = importlib.util.spec_from_file_location("small_parts", parts)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    model, clip, vae = node.execute(file).result
    off = node.execute(file, False).result[1:]

    own_clip, own_vae = core.CLIPLoader().load_clip(encoder, "flux2")[0], core.VAELoader().load_vae(codec)[0]
    positive, wanted = (core.CLIPTextEncode().encode(each, "a red ball")[0] for each in (clip, own_clip))
    latent = ours("nodes.host.modality_forcing.joint_latent").empty_joint_latent(model, 48, 32, 1)
    (made,) = core.KSampler().sample(model, 0, 2, 1.0, "euler", "simple", positive, positive, latent)
    pictures, view = core.NODE_CLASS_MAPPINGS["SpatialWeave_DecodeJointLatent"].execute(made, vae).result
    again, _ = core.NODE_CLASS_MAPPINGS["SpatialWeave_DecodeJointLatent"].execute(made, own_vae).result
    return {
        "before": [socket.message for socket in before],
        "found": [known, node.fingerprint_inputs(model_name=file)],
        "same prompt": bool(torch.equal(positive[0][0], wanted[0][0])) and bool(positive[0][0].any()),
        "same picture": bool(torch.equal(pictures, again)) and bool(pictures.isfinite().all()),
        "sizes": [list(pictures.shape), list(view.depth.shape)],
        "rebuilt": all(part.patcher.cached_patcher_init for part in (clip, vae)),
        "off": [socket.message for socket in off],
    }


FOUR_BITS = {
    "convrot_w4a4": ("TensorCoreConvRotW4A4Layout", {"scale": "weight_scale"}, {"convrot_groupsize": 64}),
    "asym_w4a8_int8": (
        "AsymW4A8Int8Layout",
        {"scale": "weight_s_rel", "s_channel": "weight_s_channel", "codebook": "weight_codebook"},
        {"convrot_groupsize": 64, "group_size": 16},
    ),
}


def four_bits(source, path, form):
    """The blocks' matrices in a format of core's with two values a byte, written by core's own layout, in a
    file marked as core marks it; then hosted.
    """
    import comfy.quant_ops
    from safetensors import safe_open
    from safetensors.torch import save_file

    layout, names, facts = FOUR_BITS[form]
    with safe_open(source, "pt") as file:
        state, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    written = {}
    for name, value in state.items():
        if value.ndim != 2 or not re.search(r"_blocks\.\d+\.", name):
            written[name] = value
            continue
        packed, params = getattr(comfy.quant_ops, layout).quantize(value, **facts)
        layer, mark = name.removesuffix(".weight"), json.dumps({"format": form, **facts}).encode()
        written |= {name: packed, f"{layer}.comfy_quant": torch.tensor(list(mark), dtype=torch.uint8)}
        tensors = {stored: getattr(params, own, None) for own, stored in names.items()}
        written |= {f"{layer}.{stored}": part for stored, part in tensors.items() if part is not None}
    save_file({name: value.contiguous() for name, value in written.items()}, path, metadata=metadata)
    hosted = load(path).model.diffusion_model
    original, config = ours("models.modality_forcing.weights").load_network(source, dtype=torch.float32)
    before, values = original.state_dict(), held(hosted)
    layers = [name for name, module in hosted.named_modules() if getattr(module, "quant_format", None)]
    inputs = make_inputs(config)
    return {
        "layers": len(layers),
        "formats": sorted({hosted.get_submodule(name).quant_format for name in layers}),
        "weights": max(relative(values[f"{n}.weight"], before[f"{n}.weight"].float()) for n in layers),
        "result": max(map(relative, hosted_forward(hosted, inputs), original(*inputs))),
        "bytes": Path(path).stat().st_size / Path(source).stat().st_size,
    }


def formats_of_core():
    """The quantised formats that this core reads."""
    import comfy.quant_ops

    return sorted(comfy.quant_ops.QUANT_ALGOS)
