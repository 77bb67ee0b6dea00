"""Called by worker.py inside ComfyUI: every node with every input malformed in its turn, and what it says."""

import asyncio
import contextlib
import inspect
import sys
from dataclasses import replace

import comfy.model_management
import execution
import torch
from comfy.nested_tensor import NestedTensor

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py
sampling, small = (
    sys.modules["__main__"].load_file(f"inside_{name}.py") for name in ("sampling", "intrinsic")
)
asking = sys.modules["__main__"].load_file("inside_joyai_ask.py")  # worker.py's
editors = sys.modules["__main__"].load_file("inside_spatial_diff.py")
inferring = sys.modules["__main__"].load_file("inside_spatial_depth.py")
HEIGHT, WIDTH, NAN = 32, 48, float("nan")
WRITERS = ("SaveDepth", "SaveJointLatent", "PreviewDepth")
LOADERS = (
    "LoadModalityForcing", "LoadTinyDiffusion", "LoadIntrinsicVae", "LoadDepth", "LoadJointLatent",
    "LoadVggt", "LoadExampleViews", "LoadDepthAdapter", "LoadGeometryConnector", "LoadSpatialTransformer",
    "LoadTinyEditor", "LoadTinyLanguageModel",
)  # take no sockets
KEEP = {}
BY_DEPTH = {"method": "metric depth", "metric_view": 0}


def our_nodes():
    return {
        name.removeprefix("SpatialWeave_"): node
        for name, node in core.NODE_CLASS_MAPPINGS.items()
        if name.startswith("SpatialWeave_")
    }


def view(batch=1, height=HEIGHT, width=WIDTH, **more):
    depth = torch.linspace(1, 2, width).expand(batch, height, width)
    image = torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(1))
    return ours("models.core.geometry.view").View.from_depth(depth, units="relative", image=image, **more)


def posed_views():
    """Two views of one plane from cameras beside each other."""
    pose = torch.eye(4).repeat(2, 1, 1)
    pose[1, 0, 3] = 0.1
    camera = torch.tensor([[40.0, 0, WIDTH / 2], [0, 40.0, HEIGHT / 2], [0, 0, 1]]).repeat(2, 1, 1)
    return view(2, world_to_cam=pose, intrinsics=camera)


def small_vggt():
    """What Load VGGT gives, of a small random network."""
    sizes = {
        "img_size": 28, "embed_dim": 32, "depth": 4, "num_heads": 2, "backbone_depth": 1,
        "backbone_num_heads": 2, "dpt_features": 8,
    }
    more = {
        "dpt_out_channels": (8, 8, 8, 8), "dpt_layers": (0, 1, 2, 3), "camera_trunk_depth": 1,
        "camera_num_heads": 2,
    }
    config = ours("models.vggt.config").VggtConfig(**sizes, **more)
    network = ours("models.vggt.network").Vggt(config)
    ours("models.vggt.training").init_weights(network, torch.Generator().manual_seed(0))
    return ours("nodes.host.vggt.model").VggtModel(config, network.state_dict(), "small", ())


def small_adapter(model):
    """A depth adapter for the latent of a MODEL, with the zero output that training starts from."""
    latent = model.get_model_object("latent_format")
    stride = latent.spacial_downscale_ratio
    config = ours("models.spatial_fusion.config").DepthAdapterConfig(
        type(latent).__name__, latent.latent_channels, stride, widths=(4,) * (stride.bit_length() - 1)
    )
    return ours("models.spatial_fusion.network").AdapterNetwork(config)


def framed_picture():
    """What Joy: Fit hands to Joy: Restore, of a picture that has a bucket's size already."""
    framing = ours("models.joyai_edit.framing").plan_framing(512, 2048)
    return ours("models.joyai_edit.restore").FramedImage(torch.rand(1, 512, 2048, 3), framing)


def red_image():
    """An image with a red square, which the sound instruction is about."""
    image = torch.full((1, HEIGHT, WIDTH, 3), 0.6)
    image[:, 10:20, 10:20] = torch.tensor([0.86, 0.13, 0.11])
    return image


def small_object():
    """The mask of an object that leaves background around it."""
    mask = torch.zeros(1, HEIGHT, WIDTH)
    mask[:, 10:20, 10:20] = 1
    return mask


def sound():
    """A value of each socket type; of some nodes' inputs by name."""
    if not KEEP:
        r, packets = sampling.rig(), ours("models.core.geometry.packets")
        coupled = small.coupled(small.model())
        vae = ours("nodes.host.intrinsic_ldm.vae").load_vae("tiny (shipped with the pack)")
        values = {
            "IMAGE": torch.rand(1, HEIGHT, WIDTH, 3), "MASK": torch.ones(1, HEIGHT, WIDTH),
            "SPATIALWEAVE_VIEW": view(), "MODEL": r.model,
            "VAE": r.vae, "LATENT": r.latent(1, HEIGHT, WIDTH),
            "MOGE_GEOMETRY": packets.to_moge(view(), 55.0),
            "DA3_GEOMETRY": packets.to_da3(view()), "SIGMAS": torch.tensor([14.0, 3.0, 0.0]),
            "SPATIALWEAVE_VGGT": small_vggt(), "SPATIALWEAVE_DEPTH_ADAPTER": small_adapter(r.model),
            "SPATIALWEAVE_FRAMING": framed_picture(),
            "SPATIALWEAVE_CLOUD": ours("models.core.geometry.fusion").fuse_views(posed_views()),
        }  # fmt: skip
        plain = {"samples": torch.zeros(1, 4, 8, 8)}
        joined = small.joined(coupled)
        maps = {"samples": torch.zeros(1, vae.latent_channels, HEIGHT // 8, WIDTH // 8)}
        core.NODE_CLASS_MAPPINGS["SpatialWeave_SaveJointLatent"].hidden = type(
            "Hidden", (), {"prompt": None, "extra_pnginfo": None}
        )
        image, depth = values["LATENT"]["samples"].unbind()
        KEEP.update(values | {
            "IntrinsicCoGeneration": {
                "model": small.model(), "lora_name": small.lora("sd21"), "schedule": {"schedule": "off"}
            },
            "JoinIntrinsicLatent": {"model": coupled, "image_latent": plain, "maps_latent": plain},
            "SplitIntrinsicLatent": {"samples": joined}, "EncodeIntrinsics": {"vae": vae},
            "DecodeIntrinsics": {"vae": vae, "samples": maps},
            "ViewFromImage": {"image": torch.rand(1, HEIGHT, WIDTH, 1).expand(1, HEIGHT, WIDTH, 3)},
            "JoinJointLatent": {"image_latent": {"samples": image}, "depth_latent": {"samples": depth}},
            "AskAboutViews": {
                "clip": asking.encoder(), "images": {"image0": values["IMAGE"]}, "question": "Where?",
                "max_tokens": 1,
                "decoding": {"decoding": "greedy"},
            },
            "GeometryTokens": {
                "model": editors.make("flux"), "tokens": editors.geometry(), "connector": editors.connector()
            },
            "SpatialDepth": {
                "clip": inferring.omnigen2_clip(), "transformer": inferring.held(inferring.network()),
                "prompt": "a red ball",
            },
            "MoveObjectInstruction": {
                "object": "the red ball",
                "destination": {
                    "destination": "direction", "direction": "to the left", "distance": "one metre"
                },
                "image": red_image(),
            },
            "JoyMoveObject": {
                "object": "the ball", "framing": None,
                "box": {"box": "numbers", "x": 2, "y": 3, "width": 20, "height": 10},
            },
            "JoyRotateObject": {"object": "the ball"},
            "JoyMoveCamera": {"motion": {"motion": "angles", "yaw": 45.0, "pitch": 0.0, "zoom": "in"}},
            "JoyRestore": {"edited": torch.rand(1, 512, 2048, 3), "put_back": {"put_back": "nothing"}},
            "CheckEdit": {
                "edit": {
                    "edit": "move camera", "yaw_degrees": 45.0, "pitch_degrees": 0.0, "zoom": "unchanged"
                }, "fov_degrees": 50.0,
                **dict.fromkeys(("object_mask", "target_mask", "object_mask_after"), small_object()),
            },
            "SaveColmap": {"images": torch.rand(2, HEIGHT, WIDTH, 3)},
            "ScaleViews": {
                "view": posed_views(), "method": BY_DEPTH, "metric": replace(view(2), units="metric")
            },
            "FuseViews": {"view": posed_views(), "edge_threshold": 0.0},
            "MaskedJointLatent": {
                "image_mask": torch.ones(1, HEIGHT, WIDTH), "depth_mask": torch.zeros(1, HEIGHT, WIDTH)
            },
        })  # fmt: skip
    return KEEP


def arguments(name, node):
    """A sound call: sockets by type, widgets by their default."""
    found = {}
    for put in node.GET_SCHEMA().inputs:
        types = put.get_io_type().split(",")
        kind = next((kind for kind in types if kind in sound()), None)
        found[put.id] = sound()[kind] if kind else getattr(put, "default", None)
        if kind is None and found[put.id] is None and getattr(put, "options", None):
            found[put.id] = put.options[0]
    return found | (sound().get(name) or {})


SHAPES = {
    "no batch": lambda like: like[0], "two more axes": lambda like: like[None, None],
    "video": lambda like: like[:, None],
    "flat": lambda like: like.flatten(), "a scalar": lambda like: torch.tensor(1.0),
    "empty batch": lambda like: like[:0],
    "no rows": lambda like: like[:, :0], "three": lambda like: torch.cat([like] * 3),
    "smaller": lambda like: like[:, : HEIGHT // 2, : WIDTH // 3],
}  # fmt: skip
VALUES = {
    "NaN": lambda like: torch.full_like(like, NAN), "infinite": lambda like: like / 0,
    "large": lambda like: like * 300,
    "negative": lambda like: like * -1, "bytes": lambda like: (like * 255).byte(),
    "double": lambda like: like.double(),
    "half": lambda like: like.half(), "complex": lambda like: like.to(torch.complex64),
    "long": lambda like: like.long(),
    "bool": lambda like: like > 0.5, "numpy": lambda like: like.numpy(), "a list": lambda like: [like],
}  # fmt: skip


def odd_tensors(like):
    """A tensor in shapes, types and values that it should not have, as far as it can."""
    for name, make in (SHAPES | VALUES).items():
        with contextlib.suppress(RuntimeError, IndexError):
            yield name, make(like)


def odd_images(like):
    yield from odd_tensors(like)
    for channels in (1, 2, 4, 5):
        yield f"{channels} channels", like[..., :1].expand(*like.shape[:-1], channels)


def odd_latents(like):
    """A LATENT, joint or plain, in forms that other nodes make."""
    samples = like["samples"]
    parts = list(samples.unbind()) if getattr(samples, "is_nested", False) else [samples]
    yield from {
        "no samples": {},
        "samples of nothing": {"samples": None},
        "a tensor": parts[0],
        "a list": [like],
    }.items()
    yield "nested of one", {"samples": NestedTensor(parts[:1])}
    yield "nested of three", {"samples": NestedTensor([parts[0]] * 3)}
    yield "a plain mask", like | {"noise_mask": torch.ones(1, HEIGHT, WIDTH)}
    yield "a mask of nothing", like | {"noise_mask": None}
    for name, odd in odd_tensors(parts[0]):
        yield f"plain, {name}", {"samples": odd}
        if len(parts) == 2 and isinstance(odd, torch.Tensor):
            yield f"first, {name}", like | {"samples": NestedTensor([odd, parts[1]])}
            yield f"second, {name}", like | {"samples": NestedTensor([parts[0], odd])}


def odd_views(like):
    yield from {"a tensor": like.depth, "a dict": {"depth": like.depth}}.items()
    yield from {"batch of 3": view(3), "smaller": view(1, 16, 8), "a pixel": view(1, 1, 1)}.items()
    kind, depth = type(like), like.depth
    yield "no valid pixel", kind.from_depth(torch.zeros_like(depth), units="relative")
    yield "all sky", kind.from_depth(depth / 0, units="relative")
    yield "constant, no picture", kind.from_depth(torch.ones_like(depth), units="metric")
    yield "enormous", kind.from_depth(depth * 1e30, units="metric")


def odd_packets(like):
    yield from {
        "empty": {},
        "a tensor": torch.ones(1),
        "strings": dict.fromkeys(like, "x"),
        "nothing inside": dict.fromkeys(like),
    }.items()
    for key, value in like.items():
        yield f"without {key}", {name: part for name, part in like.items() if name != key}
        if isinstance(value, torch.Tensor):
            for name, odd in odd_tensors(value):
                yield f"{key} {name}", like | {key: odd}


ODD = {
    "IMAGE": odd_images, "MASK": odd_tensors, "LATENT": odd_latents, "SPATIALWEAVE_VIEW": odd_views,
    "MOGE_GEOMETRY": odd_packets,
    "DA3_GEOMETRY": odd_packets, "SIGMAS": odd_tensors,
    "SPATIALWEAVE_FRAMING": lambda like: {
        "a tensor": torch.ones(1), "a picture": sound()["IMAGE"], "a dict": {}
    }.items(),
    "COMFY_AUTOGROW_V3": lambda like: ((how, {"image0": odd}) for how, odd in odd_images(like["image0"])),
    "CLIP": lambda like: {"a model": sampling.rig().model, "the tiny": sampling.rig().clip}.items(),
    "SPATIALWEAVE_CLOUD": lambda like: {"a VIEW": like.views, "points": like.cloud.points}.items(),
    "MODEL": lambda like: {"another base": small.model("pixart"), "a VAE": sampling.rig().vae}.items(),
    "VAE": lambda like: {
        "a model": small.model(),
        "the tiny": sampling.rig().vae,
        "of maps": sound()["EncodeIntrinsics"]["vae"],
    }.items(),
}  # fmt: skip


def sound_calls():
    """Nodes that do not take the sound call: {name: error}."""
    return {
        name: said
        for name, node in our_nodes().items()
        if name not in LOADERS and (said := call(name, node, {}))
    }


def call(name, node, changed):
    """None where a node runs, its refusal's words, or an error's type and words."""
    try:
        values = arguments(name, node) | changed
        node.execute(**(as_lists(values) if node.GET_SCHEMA().is_input_list else values))
    except (ValueError, OSError) as error:
        return f"refused: {error}"
    except Exception as error:  # noqa: BLE001 - what the test is for
        return f"{type(error).__name__}: {error}"
    return None


def as_lists(values):
    """As core calls a node that takes lists: each link and widget, those of a dynamic combo included;
    nothing where nothing is wired.
    """
    return {
        key: {name: [part] for name, part in value.items()} if isinstance(value, dict) and key in value
        else None if value is None else [value]
        for key, value in values.items()
    }  # fmt: skip


def malformed(name):
    """What a node says of every malformed input: {input: {how: words or None}}."""
    node, found = our_nodes()[name], {}
    for put in node.GET_SCHEMA().inputs:
        kind = next((kind for kind in put.get_io_type().split(",") if kind in ODD), None)
        if kind:
            like = arguments(name, node)[put.id]
            odd = {"nothing": None, "a number": 3, **dict(ODD[kind](like))}
            found[put.id] = {how: call(name, node, {put.id: value}) for how, value in odd.items()}
    return found


def passes():
    """What the net lets through: an interruption and a full memory; and what it makes of others."""
    with_net, found = ours("nodes.host.shared.last_resort").with_net, {}
    interrupted = comfy.model_management.InterruptProcessingException
    for error in (
        interrupted(), torch.OutOfMemoryError("full"), KeyError("samples"),
        ValueError("Expected this, got that. Do so."),
    ):

        class Node(core.NODE_CLASS_MAPPINGS["SpatialWeave_ViewToMask"]):
            @classmethod
            def execute(cls, view):
                raise error  # noqa: B023 - called at once

        try:
            with_net(Node).execute(view())
        except BaseException as raised:  # noqa: BLE001 - an interruption is one
            found[type(error).__name__] = [type(raised).__name__, str(raised)]
    return found


def executed(name, inputs):
    """What a node says in core's own call, on a locked copy of its class."""
    node, values = our_nodes()[name], {key: [value] for key, value in inputs.items()}
    try:
        asyncio.run(
            execution._async_map_node_over_list(
                "run", "1", node, values, node.FUNCTION, v3_data={"hidden_inputs": {}}
            )
        )
    except Exception as error:  # noqa: BLE001 - what the test is for
        return [type(error).__name__, str(error)]


def validated(name, inputs, broken):
    """What core says of a prompt of one node,
    where the pack's function `broken` (module, name) raises a KeyError.
    """
    module, function = broken
    module, prompt = ours(module), {"1": {"class_type": f"SpatialWeave_{name}", "inputs": inputs}}
    whole = getattr(module, function)
    setattr(module, function, lambda *values: {}["entry"])
    try:
        fine, errors, _ = asyncio.run(execution.validate_inputs("run", prompt, "1", {}))
        return fine, [error["details"] for error in errors]
    finally:
        setattr(module, function, whole)


def fingerprinted(name, broken, inputs):
    """What a node's fingerprint_inputs says, where the pack's function `broken` raises a KeyError."""
    module, function = broken
    module, whole = ours(module), getattr(ours(module), function)
    setattr(module, function, lambda *values: {}["entry"])
    try:
        our_nodes()[name].fingerprint_inputs(**inputs)
    except Exception as error:  # noqa: BLE001 - what the test is for
        return [type(error).__name__, str(error)]
    finally:
        setattr(module, function, whole)


def validated_names():
    """The inputs that core hands to each validate_inputs, by node."""
    found = {name: getattr(node, "validate_inputs", None) for name, node in our_nodes().items()}
    return {
        name: inspect.getfullargspec(method).args
        for name, method in found.items()
        if "validate_inputs" in vars(our_nodes()[name])
    }


def unforeseen(io_type, value):
    """What is said of a value that fails for a reason nobody foresaw, at a socket of this type."""
    put = type("Put", (), {"id": "given", "get_io_type": lambda: io_type, "optional": False})
    schema = type("Schema", (), {"display_name": "Node", "inputs": [put], "is_input_list": False})
    kinds = {
        "a row": torch.zeros(4), "whole numbers": torch.zeros(1, 2, 2, 3, dtype=torch.int64),
        "empty": torch.zeros(0, 2, 2, 3),
        "an image": torch.zeros(1, 2, 2, 3), "a mask": torch.zeros(1, 2, 2), "no samples": {"samples": None},
        "samples of two axes": {"samples": torch.zeros(2, 2)},
        "nested": {"samples": NestedTensor([torch.zeros(1, 4, 2, 2), torch.zeros(3)])},
    }  # fmt: skip
    return ours("nodes.host.shared.last_resort").explain_unforeseen(
        schema, {"given": kinds[value]}, RuntimeError("why")
    )
