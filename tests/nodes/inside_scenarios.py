"""Called by worker.py inside ComfyUI: what a user does in the first hour, where no other inside_*.py
does it yet.
"""

import asyncio
import json
import logging
import socket
import sys
from pathlib import Path

import comfy.model_management
import comfy.patcher_extension
import comfy.sd
import comfy.utils
import torch
from comfy.nested_tensor import NestedTensor

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py
sampling, modes, geometry, matrix, compose = (
    sys.modules.get(f"spatialweave_tests_inside_{name}")
    for name in ("sampling", "modes", "geometry", "matrix", "compose")
)  # loaded before, by the tests that share them
sentence = geometry and geometry.sentence


def run(node, *values, **named):
    return core.NODE_CLASS_MAPPINGS[f"SpatialWeave_{node}"].execute(*values, **named).result


def finite(streams):
    return all(bool(part.isfinite().all()) for part in streams)


def given_pictures():
    """Pictures of one, three and four channels, and what ComfyUI's own node makes of an RGBA file,
    as a given image.
    """
    import folder_paths
    from PIL import Image

    r, rgb = sampling.rig(), torch.rand(1, 64, 48, 3, generator=torch.Generator().manual_seed(0))
    alpha = torch.rand(1, 64, 48, 1, generator=torch.Generator().manual_seed(1))
    grey = rgb[..., :1]
    pictures = {
        "rgb": rgb, "rgba": torch.cat([rgb, alpha], -1), "grey": grey,
        "grey as rgb": grey.expand(1, 64, 48, 3),
    }
    made = {name: run("ImageToDepthLatent", r.model, r.vae, one) for name, one in pictures.items()}
    latents = {name: latent["samples"].unbind()[0] for name, (latent, _, _) in made.items()}
    file = Path(folder_paths.get_temp_directory()) / "rgba.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = (pictures["rgba"][0] * 255).round().byte().numpy()
    Image.fromarray(pixels, "RGBA").save(file)
    image, mask = core.LoadImage().load_image("rgba.png [temp]")
    _, masked, said = run("MaskedJointLatent", r.model, r.vae, pictures["rgba"], torch.ones(1, 64, 48))
    return {
        "rgba": float((latents["rgba"] - latents["rgb"]).abs().max()),
        "grey": float((latents["grey"] - latents["grey as rgb"]).abs().max()),
        "core": [list(image.shape), float((1 - mask - alpha[..., 0]).abs().max())],
        "as core's mask": float((made["rgba"][1] - mask).abs().max()),
        "masks": [
            list(made["rgb"][1].shape), bool(made["rgb"][1].any()),
            bool(torch.equal(masked, made["rgba"][1])),
        ],
        "notes": {name: text for name, (_, _, text) in made.items()} | {"masked rgba": said},
    }


def logged(name, call):
    """What a logger of the pack says during a call."""
    heard = []
    listener = logging.Handler()
    listener.emit = lambda record: heard.append(f"{record.levelname}: {record.getMessage()}")
    logger = logging.getLogger(name)
    level = logger.level
    logger.addHandler(listener)
    logger.setLevel(logging.INFO)
    try:
        call()
    finally:
        logger.removeHandler(listener)
        logger.setLevel(level)
    return heard


def notes():
    """What the nodes of given streams say of their inputs: in the log, and as text."""
    r, View = sampling.rig(), ours("models.core.geometry.view").View
    image, depth = (
        modes.picture(height=37, width=103, channels=4), modes.view(height=37, width=103).depth.clone(),
    )
    image[0, 0, 0, 0], image[0, 0, 1, 0], image[0, 0, 2, 1] = torch.nan, 1.5, -0.5
    depth[0, :7, :10] = 0
    view, mask = View.from_depth(depth, units="metric"), torch.zeros(1, 20, 30)
    mask[:, 5:] = 1
    calls = {
        "image": lambda: run("ImageToDepthLatent", r.model, r.vae, image),
        "depth": lambda: run("DepthToImageLatent", r.model, view),
        "both": lambda: run("MaskedJointLatent", r.model, r.vae, image, mask, view=view),
    }
    said, heard = {}, {}
    for name, call in calls.items():
        heard[name] = logged(
            "spatialweave.inputs", lambda call=call, name=name: said.update({name: call()[-1]})
        )
    return {"said": said, "heard": heard}


def shown_under_the_node():
    """What is sent to which page, by core's own message for it, where graphs of three pages run."""
    import server

    class Page:
        def send_progress_text(self, text, node_id, sid=None):
            sent.append([text, node_id, sid])

    sent, before = [], getattr(server.PromptServer, "instance", None)
    server.PromptServer.instance = page = Page()
    try:
        tell, hidden = ours("nodes.host.shared.notes").tell, type("Hidden", (), {"unique_id": "7"})()
        runs = [("first", []), ("first", ["One.", "Two."]), (None, ["Three."]), ("second", []), ("first", [])]
        for page.client_id, notes in [*runs, ("first", [])]:
            tell(notes, hidden)
    finally:
        if before is None:
            del server.PromptServer.instance
        else:
            server.PromptServer.instance = before
    return sent


def asked_size(height, width):
    """A joint run of a size: the sizes that come back, and what is said of it."""
    r = sampling.rig()
    made = []
    heard = logged(
        "spatialweave.inputs", lambda: made.extend(run("EmptyJointLatent", r.model, width, height, 1))
    )
    pictures, view = run("DecodeJointLatent", sampling.ksample(r.model, *made, steps=1), r.vae)
    return [list(pictures.shape[1:3]), list(view.depth.shape[1:]), heard]


def bad_depth(kind):
    """A VIEW of 64 x 48 pixels made from bad numbers."""
    depth = torch.linspace(1, 4, 64 * 48).reshape(1, 64, 48)
    if kind == "all zero":
        depth = depth * 0
    if kind == "constant":
        depth = torch.ones_like(depth)
    if kind == "holes":
        depth = depth.clone()
        depth[0, 0, 0], depth[0, 0, 1], depth[0, 1:8] = torch.nan, torch.inf, -1.0
    return ours("models.core.geometry.view").View.from_depth(depth, units="metric")


def bad_depth_given(kind):
    """Depth to image with bad numbers: the refusal, or whether the picture is finite and how many pixels
    are missing.
    """
    r, view = sampling.rig(), bad_depth(kind)
    refusal = sentence(lambda: run("DepthToImageLatent", r.model, view))
    if refusal:
        return {"refusal": refusal}
    pictures, _ = run(
        "DecodeJointLatent",
        sampling.ksample(r.model, run("DepthToImageLatent", r.model, view)[0], steps=2),
        r.vae,
    )
    return {
        "refusal": None, "finite": finite([pictures]), "invalid": view.invalid_counts[0],
        "spread": float(pictures.std()),
    }


def empty_prompt():
    """All modes with an empty prompt on both sides, guided."""
    r = sampling.rig()
    latents = {
        "joint": r.latent(),
        "image to depth": run("ImageToDepthLatent", r.model, r.vae, modes.picture())[0],
        "depth to image": run("DepthToImageLatent", r.model, modes.view())[0],
    }
    out = {}
    for name, latent in latents.items():
        (made,) = core.KSampler().sample(
            r.model, 7, 2, 4.0, "euler", "simple", r.negative, r.negative, latent, 1.0
        )
        out[name] = finite(run("DecodeJointLatent", made, r.vae)[:1])
    return out


def on_this_machine():
    """What runs without Triton: a joint run, a cloud, a preview, and which kernel core's attention is
    told to use.
    """
    r = sampling.rig()
    image, depth = sampling.ksample(r.model, r.latent(), steps=1)["samples"].unbind()
    _, view = run("DecodeJointLatent", {"samples": NestedTensor((image, depth))}, r.vae)
    options = {"index": 0, "fov_degrees": 65.0, "edge_threshold": 0.0, "max_points": 100, "frame": "camera"}
    cloud, *_ = run("PointCloud", geometry.scene(), **options)
    return {
        "finite": finite((image, depth)),
        "valid": bool(view.mask.any()),
        "cloud": cloud.format,
        "triton": importable("triton"),
        "device": str(comfy.model_management.get_torch_device()),
    }


def importable(name):
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def missing_weights(name):
    """What the loader says before and in the run, and that it asks no network, neither then nor for a file
    that is there.
    """
    node = core.NODE_CLASS_MAPPINGS["SpatialWeave_LoadModalityForcing"]
    asked, connect = [], socket.socket.connect

    def refuse(self, address):
        asked.append(str(address))
        raise OSError("no network in this test")

    socket.socket.connect = refuse
    try:
        before = node.validate_inputs(name)
        during = sentence(lambda: node.execute(name))
        node.execute(ours("nodes.host.modality_forcing.loading").TINY)
    finally:
        socket.socket.connect = connect
    return {"before": before, "during": during, "asked": asked}


def lora_of_another_width(naming, folder):
    """Core's LoRA node on a file made for a network of half the width: the sentence,
    and what is left after it.
    """
    r = sampling.rig()
    half, layer = r.config.hidden_size // 2, "double_blocks.0.img_attn"
    shapes = {
        "own names": {
            f"diffusion_model.{layer}.qkv": (3 * half, half),
            "diffusion_model.single_blocks.0.linear2": (half, 4 * half),
        },
        "kohya": {f"lora_unet_{layer.replace('.', '_')}_proj": (half, half)},
        "diffusers": {"transformer.transformer_blocks.0.attn.to_q": (half, half)},
        "LoKr": {f"diffusion_model.{layer}.proj": (half, half)},
    }[naming]
    state = {}
    for name, (rows, columns) in shapes.items():
        if naming == "LoKr":
            state |= {
                f"{name}.lokr_w1": torch.ones(2, 2), f"{name}.lokr_w2": torch.ones(rows // 2, columns // 2),
            }
        else:
            state |= {
                f"{name}.lora_A.weight": torch.ones(4, columns), f"{name}.lora_B.weight": torch.ones(rows, 4),
            }
    if naming == "kohya":
        state = {
            name.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): value
            for name, value in state.items()
        }
    before = sampling.ksample(r.model, r.latent(), steps=1)["samples"].unbind()
    model = compose.with_lora(state, "LoraLoaderModelOnly", folder)
    said = sentence(lambda: sampling.ksample(model, r.latent(), steps=1))
    after = sampling.ksample(r.model, r.latent(), steps=1)["samples"].unbind()
    return {
        "said": said, "widths": [half, r.config.hidden_size], "same": sampling.difference(before, after) == 0,
    }


def kinds_of_files():
    """Networks of core's own classes, at their sizes but without memory,
    as the loader would call their files.
    """
    import comfy.ops
    from comfy.ldm.hunyuan_video.model import HunyuanVideo
    from comfy.ldm.lightricks.model import LTXVModel
    from comfy.ldm.lumina.model import NextDiT
    from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
    from comfy.ldm.wan.model import WanModel

    made = {"device": "meta", "dtype": torch.bfloat16, "operations": comfy.ops.disable_weight_init}
    context = {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536}}
    video = {
        "in_channels": 16, "patch_size": [1, 2, 2], "out_channels": 16, "vec_in_dim": 768,
        "context_in_dim": 4096, "hidden_size": 3072,
    }
    video |= {
        "mlp_ratio": 4.0, "num_heads": 24, "depth": 1, "depth_single_blocks": 1, "axes_dim": [16, 56, 56],
        "theta": 256,
    }
    video |= {
        "byt5": False, "meanflow": False, "use_cond_type_embedding": False, "vision_in_dim": None,
        "meanflow_sum": False,
    }
    unet = {
        "image_size": 32, "in_channels": 4, "model_channels": 320, "out_channels": 4,
        "num_res_blocks": [2, 2, 2],
    }
    unet |= {
        "channel_mult": [1, 2, 4], "num_head_channels": 64, "use_spatial_transformer": True,
        "use_linear_in_transformer": True,
    }
    unet |= {
        "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    }
    unet |= {
        "transformer_depth_middle": 10, "context_dim": 2048, "num_classes": "sequential",
        "adm_in_channels": 2816,
    }
    networks = {
        "Wan": lambda: WanModel(dim=5120, ffn_dim=13824, num_heads=40, num_layers=1, **made),
        "Qwen-Image": lambda: QwenImageTransformer2DModel(num_layers=1, **made),
        "Z-Image": lambda: NextDiT(
            in_channels=16, dim=3840, n_layers=2, n_heads=30, n_kv_heads=30, qk_norm=True, cap_feat_dim=2560,
            axes_dims=[32, 48, 48],
            ffn_dim_multiplier=8 / 3, z_image_modulation=True, pad_tokens_multiple=32, **made,
        ),
        "SD3": lambda: MMDiT(
            input_size=None, in_channels=16, depth=24, num_blocks=1, adm_in_channels=2048,
            context_embedder_config=context,
            pos_embed_max_size=192, num_patches=36864, **made,
        ),
        "LTX": lambda: LTXVModel(num_layers=1, **made),
        "Hunyuan": lambda: HunyuanVideo(**video, qkv_bias=True, guidance_embed=True, **made),
        "SDXL": lambda: UNetModel(**unet, **made),
    }  # fmt: skip
    header, describe = (
        ours("models.core.weights.files").Header, ours("nodes.host.shared.file_kinds").describe_file,
    )
    out = {}
    for name, build in networks.items():
        state = build().state_dict()
        out[name] = describe(header({key: tuple(value.shape) for key, value in state.items()}, {}, {}))
    return out


def small_wan(path):
    """A file of a small Wan network, written whole."""
    import comfy.ops
    from comfy.ldm.wan.model import WanModel
    from safetensors.torch import save_file

    sizes = {"dim": 128, "ffn_dim": 128, "num_heads": 1, "num_layers": 1, "text_dim": 16}
    network = WanModel(**sizes, device="meta", dtype=torch.bfloat16, operations=comfy.ops.disable_weight_init)
    save_file(
        {
            name: torch.zeros(value.shape, dtype=torch.bfloat16)
            for name, value in network.state_dict().items()
        },
        path,
    )


def full_memory(kind):
    """A run whose network finds no memory: its sentence, whether core knows the fault by its type,
    and what is left after it.
    """
    r, words = (
        sampling.rig(),
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9000000000 bytes.",
    )
    error = {
        "card": comfy.model_management.OOM_EXCEPTION("CUDA out of memory."), "processor": RuntimeError(words),
    }[kind]

    def full(executor, *args, **kwargs):
        executor(*args, **kwargs)
        raise error

    before = sampling.ksample(r.model, r.latent(), steps=2)["samples"].unbind()
    model = r.model.clone()
    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "full", full)
    try:
        sampling.ksample(model, r.latent(3, 48, 64), steps=2)
        said, known = None, False
    except comfy.model_management.OOM_EXCEPTION as raised:
        said, known = str(raised), comfy.model_management.is_oom(raised)
    after = sampling.ksample(r.model, r.latent(), steps=2)["samples"].unbind()
    return {"said": said, "known": known, "same": sampling.difference(before, after) == 0}


def another_fault():
    """Any other error of a network comes as it is."""

    def broken(executor, *args, **kwargs):
        raise RuntimeError("something else")

    model = sampling.rig().model.clone()
    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "broken", broken)
    try:
        sampling.ksample(model, sampling.rig().latent(), steps=1)
    except RuntimeError as error:
        return str(error)
    return None


def need(free):
    """What the loader says of the tiny model's weights, where so many bytes are free."""
    loading, management = ours("nodes.host.modality_forcing.loading"), comfy.model_management
    before, order = management.get_free_memory, []
    read = comfy.utils.load_torch_file
    management.get_free_memory = lambda *args, **kwargs: free
    comfy.utils.load_torch_file = lambda *args, **kwargs: order.append("read") or read(*args, **kwargs)
    handler = logging.Handler()
    handler.emit = lambda record: order.append("said")
    logging.getLogger("spatialweave.memory").addHandler(handler)
    try:
        heard = logged("spatialweave.memory", lambda: loading.load_joint_model(str(loading.TINY_NETWORK)))
    finally:
        management.get_free_memory, comfy.utils.load_torch_file = before, read
        logging.getLogger("spatialweave.memory").removeHandler(handler)
    return {"heard": heard, "first": order[0]}


def memory_asked():
    """What core is told that a step needs, by picture size."""
    model = sampling.rig().model.model
    return [model.memory_required([1, 1, pixels]) for pixels in (10**4, 10**5, 10**6)]


def stacked():
    """LoRA, order, guidance per stream, core's shift, an attention override and a refused patch
    on one model.
    """
    from comfy_extras.nodes_model_advanced import ModelSamplingFlux

    r = sampling.rig()
    down, up = torch.randn(2, 4, 192, generator=torch.Generator().manual_seed(1)).mul(0.2)
    width, name = r.config.hidden_size, "diffusion_model.double_blocks.0.img_attn.proj"
    state = {
        f"{name}.lora_down.weight": down[:, :width], f"{name}.lora_up.weight": up[:, :width].T.contiguous(),
    }
    calls = []

    def attention(function, *args, **kwargs):
        calls.append(1)
        return function(*args, **kwargs)

    def build(without=()):
        model = r.model
        if "LoRA" not in without:
            model, _ = comfy.sd.load_lora_for_models(model, None, state, 1.0, 0)
        if "order" not in without:
            (model,) = run("ModalityOrder", model, 3.0)
        if "guidance" not in without:
            (model,) = run("GuidancePerStream", model, 2.5)
        if "shift" not in without:
            (model,) = ModelSamplingFlux().patch(model, 2.0, 2.0, 64, 64)
        model = model.clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = attention
        return model

    def sample(model):
        return sampling.ksample(model, r.latent(), steps=3, cfg=3.0)["samples"].unbind()

    whole = sample(build())
    each = {
        part: sampling.difference(sample(build([part])), whole)
        for part in ("LoRA", "order", "guidance", "shift")
    }
    unpatched = build()
    unpatched.set_model_attn1_patch(lambda *args, **kwargs: args)
    return {
        "finite": finite(whole), "each": each, "attention": len(calls),
        "refusal": sentence(lambda: sample(unpatched)),
    }


def validated(graphs, extras):
    """ComfyUI's own check of graphs in API form: what it has against each."""
    import execution

    matrix.load_extras(*extras)
    out = {}
    for name, graph in graphs.items():
        good, error, _, node_errors = asyncio.run(execution.validate_prompt(name, graph, None))
        out[name] = None if good else json.dumps([error, node_errors], default=str)
    return out
