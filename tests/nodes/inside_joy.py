"""Called by worker.py inside ComfyUI: the Joy nodes, and core's own text encoder node behind them,
on a small random encoder.
"""

import asyncio
import math
import sys
from pathlib import Path

import comfy.sd
import comfy.text_encoders.joyimage as joy_text
import comfy.text_encoders.qwen3vl as qwen3vl
import torch

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py
KEEP = {}


def extra(file, node):
    """A node of one of core's own extra files."""
    if node not in core.NODE_CLASS_MAPPINGS:
        import os

        folder = os.path.join(os.path.dirname(core.__file__), "comfy_extras")
        asyncio.run(core.load_custom_node(os.path.join(folder, file), module_parent="comfy_extras"))
    return core.NODE_CLASS_MAPPINGS[node]


def run(node, **inputs):
    """The outputs of one of our nodes, run by core's own executor code: lists and hidden inputs included."""
    import execution

    graph = inputs.pop("graph", None)
    node_class = core.NODE_CLASS_MAPPINGS[f"SpatialWeave_{node}"]
    _, hidden, data = _finalized(node_class, inputs)
    data["hidden_inputs"] = {} if graph is None else _hidden(graph)
    lists = {key: value if isinstance(value, Many) else [value] for key, value in inputs.items()}

    async def call():
        found = await execution._async_map_node_over_list(
            "test", "1", node_class, lists, "EXECUTE_NORMALIZED", v3_data=data
        )
        return await execution.resolve_map_node_over_list_results(found)

    results = asyncio.run(call())
    outputs, *_ = execution.get_output_from_returns(results, node_class)
    return outputs


class Many(list):
    """Several values of one link, as core hands lists on."""


def _finalized(node_class, inputs):
    from comfy_api.latest import _io

    return _io.get_finalized_class_inputs(node_class.INPUT_TYPES(), inputs)


def _hidden(graph):
    from comfy_api.latest import io

    return {io.Hidden.prompt: graph, io.Hidden.unique_id: "1"}


def picture(height, width, seed=1, batch=1, channels=3):
    coarse = torch.rand(batch, channels, 12, 16, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return fine.clamp(0, 1).movedim(1, -1).contiguous()


def small_encoder():
    """Core's JoyImage text encoder class, 128 wide, with random weights."""
    if "clip" not in KEEP:
        sizes = {
            "hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1,
        }
        before = qwen3vl.QWEN3VL_VISION["qwen3vl_8b"]
        tower = {
            "hidden_size": 128, "intermediate_size": 64, "depth": 3, "deepstack_visual_indexes": [0, 1, 2]
        }
        qwen3vl.QWEN3VL_VISION["qwen3vl_8b"] = tower
        target = comfy.supported_models_base.ClipTarget(
            joy_text.JoyImageTokenizer, joy_text.te(dtype_llama=torch.float32)
        )
        options = {"qwen3vl_8b_model_config": sizes, "dtype": torch.float32}
        clip = comfy.sd.CLIP(target, model_options=options)
        qwen3vl.QWEN3VL_VISION["qwen3vl_8b"] = before
        generator = torch.Generator().manual_seed(4)
        for value in clip.cond_stage_model.parameters():
            value.data.copy_(torch.randn(value.shape, generator=generator) * 0.05)
        KEEP["clip"] = clip
    return KEEP["clip"]


class SeeingVae:
    """Remembers what core's node gives to the VAE."""

    def __init__(self):
        self.seen = []

    def encode(self, image):
        self.seen.append(image)
        return torch.zeros(1, 16, 1, image.shape[1] // 8, image.shape[2] // 8)


def through_core(height, width, mode, buckets="comfyui"):
    """Fit and box, then core's own TextEncodeJoyImageEdit: what reaches its VAE, bit by bit, and its text."""
    encode = extra("nodes_joyimage.py", "TextEncodeJoyImageEdit")
    (fitted,), (framing,), (columns,), (rows,), *_ = run(
        "JoyFit", picture=picture(height, width), mode=mode, buckets=buckets
    )
    box = {"box.x": 60, "box.y": 40, "box.width": 90, "box.height": 70}
    (prompt,), (boxed,), _ = run(
        "JoyMoveObject", picture=fitted, object="the mug", box="numbers", framing=framing, **box
    )
    clip, vae, read = small_encoder(), SeeingVae(), []
    tokenize = clip.tokenize
    clip.tokenize = lambda text, **more: (
        read.append((text, more["images"])),
        tokenize(text, images=[image[:, :64, :64] for image in more["images"]]),
    )[1]
    try:
        conditioning = encode.execute(clip, prompt, vae, {"image0": boxed}).result[0]
    finally:
        del clip.tokenize
    return {
        "size": [columns, rows], "vae": torch.equal(vae.seen[0], boxed),
        "text": torch.equal(read[0][1][0], boxed), "prompt": read[0][0],
        "references": [list(latent.shape) for latent in conditioning[0][1]["reference_latents"]],
        "red": int(_red(boxed).sum()),
    }  # fmt: skip


def buckets():
    """Sizes of ours that core's own resize does not leave bit for bit,
    and the size that core chooses for each of many others.
    """
    extra("nodes_joyimage.py", "TextEncodeJoyImageEdit")
    module = sys.modules[core.NODE_CLASS_MAPPINGS["TextEncodeJoyImageEdit"].__module__]
    ours_of = ours("models.joyai_edit.buckets")
    changed = []
    for height, width in ours_of.BUCKETS:
        image = torch.rand(1, height, width, 3)
        if not torch.equal(module._resize_reference(image), image):
            changed.append([height, width])
    sizes = [(7 + 37 * n % 1999, 11 + 53 * n % 2003) for n in range(2000)]
    other = [size for size in sizes if module._find_best_bucket(*size) != ours_of.find_bucket(*size)]
    return {
        "changed": changed,
        "other": other,
        "count": len(ours_of.BUCKETS),
        "listed": sorted(module.BUCKETS_1024) == sorted(ours_of.BUCKETS),
    }


def _red(image):
    return (image[..., 0] > 0.999) & (image[..., 1] < 0.001) & (image[..., 2] < 0.001)


def one_box_three_ways(height=333, width=777):
    """The same box as numbers, core's bounding box and a mask, with the framing."""
    (fitted,), (framing,), *_ = run("JoyFit", picture=picture(height, width), mode="pad", buckets="comfyui")
    extra("nodes_images.py", "PrimitiveBoundingBox")
    (primitive,) = core.NODE_CLASS_MAPPINGS["PrimitiveBoundingBox"].execute(300, 100, 120, 90).result
    drawn = extra("nodes_bounding_boxes.py", "CreateBoundingBoxes")
    state = [primitive | {"metadata": {"type": "obj"}}]
    (_, created, _) = drawn.execute(width, height, editor_state=state).result
    mask = torch.zeros(1, height, width)
    mask[:, 100:190, 300:420] = 1
    ways = [
        {"box": "numbers", "box.x": 300, "box.y": 100, "box.width": 120, "box.height": 90},
        {"box": "bounding box", "box.bounding_box": primitive},
        {"box": "bounding box", "box.bounding_box": created},
        {"box": "mask", "box.mask": mask},
    ]  # fmt: skip
    found = [run("JoyMoveObject", picture=fitted, object="the mug", framing=framing, **way) for way in ways]
    first = found[0]
    left, top, right, bottom = framing.framing.to_bucket((300, 100, 420, 190))
    red = torch.nonzero(_red(first[1][0])[0])
    (rows, columns) = (red[:, 0].min(), red[:, 0].max() + 1), (red[:, 1].min(), red[:, 1].max() + 1)
    return {
        "equal": all(
            one[0] == first[0] and torch.equal(one[1][0], first[1][0]) and one[2] == first[2] for one in found
        ),
        "prompt": first[0][0], "box": first[2][0], "created": created,
        "placed": [
            abs(float(a) - b)
            for a, b in zip((columns[0], rows[0], columns[1], rows[1]), (left, top, right, bottom))
        ],
    }  # fmt: skip


def batches():
    """Two pictures through everything, one box each, and one box for both."""
    given = picture(300, 421, batch=2)
    fitted, framings, *_ = run("JoyFit", picture=given, mode="pad", buckets="comfyui")
    masks = torch.zeros(2, 300, 421)
    masks[0, 50:150, 60:160] = masks[1, 100:260, 200:400] = 1
    many = {"picture": Many(fitted), "framing": Many(framings), "object": "the mug"}
    each = run("JoyMoveObject", **many, box="mask", **{"box.mask": masks})
    both = run("JoyMoveObject", **many, box="mask", **{"box.mask": masks[:1]})
    restored = run(
        "JoyRestore", edited=Many(fitted), framing=Many(framings), put_back="where unchanged", feather=8,
        **{"put_back.threshold": 0.1},
    )
    return {
        "fitted": [list(one.shape) for one in fitted], "prompts": each[0], "boxes": each[2], "both": both[2],
        "restored": [list(one.shape) for one in restored[0]], "equal": torch.equal(restored[0][0], given),
        "masks": [list(one.shape) for one in restored[1]], "text": restored[4][0],
    }  # fmt: skip


def chain():
    """Move, then rotate, then camera in one bucket; the size and the untouched pixels at the end."""
    given = picture(517, 1023)
    (fitted,), (framing,), *_ = run("JoyFit", picture=given, mode="pad", buckets="comfyui")
    box = {"box": "numbers", "box.x": 600, "box.y": 100, "box.width": 200, "box.height": 150}
    _, (boxed,), _ = run("JoyMoveObject", picture=fitted, object="the mug", framing=framing, **box)
    moved = fitted.clone()
    left, top, right, bottom = (round(value) for value in framing.framing.to_bucket((600, 100, 800, 250)))
    moved[:, top:bottom, left:right] = torch.tensor([0.0, 1.0, 0.0])  # what the model would make of it
    again = run("JoyMoveObject", picture=moved, object="the mug", framing=framing, **box)[1][0]
    edits = {"framing": framing, "feather": 6}
    found = run(
        "JoyRestore", edited=moved, put_back="where unchanged", **edits, **{"put_back.threshold": 0.1}
    )
    mask = torch.zeros(1, 517, 1023)
    mask[:, 90:260, 590:810] = 1
    drawn = run(
        "JoyRestore", edited=moved, put_back="outside a mask", **edits, **{"put_back.edit_mask": mask}
    )
    whole = run("JoyRestore", edited=moved, put_back="nothing", **edits)
    outside = mask[0] == 0
    kept = found[1][0][0] == 0
    return {
        "sizes": [list(one[0][0].shape) for one in (found, drawn, whole)],
        "outside": torch.equal(drawn[0][0][0][outside], given[0][outside]),
        "kept": float(kept.float().mean()), "equal": torch.equal(found[0][0][0][kept], given[0][kept]),
        "alignment": [one[3][0] for one in (found, drawn, whole)], "green": found[0][0][0, 175, 700].tolist(),
        "text": found[4][0],
        "same framing": torch.equal(_red(boxed), _red(again)),
    }  # fmt: skip


def cameras(before, after, form="one decimal", before_type="perspective"):
    """Two cameras of core's Create Camera Info through the node."""
    create = extra("nodes_gaussian_splat.py", "CreateCameraInfo")

    def make(camera_type="perspective", **orbit):
        target = orbit.pop("target", (0.0, 0.0, 0.0))
        return create.execute({"mode": "orbit", **orbit}, *target, 0.0, 35.0, 1.0, camera_type).result[0]

    pair = {"motion.before": make(before_type, **before), "motion.after": make(**after)}
    return [value[0] for value in run("JoyMoveCamera", motion="two cameras", form=form, **pair)]


def angles(yaw, pitch, zoom, form="one decimal"):
    values = {"motion.yaw": _number(yaw), "motion.pitch": _number(pitch), "motion.zoom": zoom}
    return [value[0] for value in run("JoyMoveCamera", motion="angles", form=form, **values)]


def _number(value):
    return math.nan if value == "nan" else value


def rotate(name, view, form="benchmark"):
    return run("JoyRotateObject", object=name, view=view, form=form)[0][0]


def fit(height, width, mode="pad", channels=3):
    """Sizes and text of a fit; a fourth channel is alpha."""
    given = picture(height, width, channels=channels)
    fitted, framings, columns, rows, alpha, text = run("JoyFit", picture=given, mode=mode, buckets="comfyui")
    return {
        "fitted": list(fitted[0].shape), "size": [columns[0], rows[0]], "text": text[0],
        "alpha": list(alpha[0].shape),
        "transparent": channels < 4 or torch.allclose(alpha[0], 1 - given[..., 3]),
        "framing": type(framings[0]).__name__,
    }  # fmt: skip


REFUSALS = {
    "no name": lambda: move(object=" "),
    "outside": lambda: move(x=900),
    "empty": lambda: move(width=0),
    "one pixel": lambda: move(width=1, height=1),
    "several boxes": lambda: boxed([BOX, BOX]),
    "three for two": lambda: boxed([[BOX], [BOX], [BOX]], batch=2),
    "empty mask": lambda: masked(torch.zeros(1, 300, 400)),
    "mask size": lambda: masked(torch.ones(1, 64, 64)),
    "yaw": lambda: angles(math.nan, 0, "in"),
    "pitch": lambda: angles(0, 95, "in"),
    "targets": lambda: cameras(
        {"yaw": 0, "pitch": 0, "distance": 4},
        {"yaw": 45, "pitch": 0, "distance": 4, "target": (0.0, 1.0, 0.0)}
    ),
    "orthographic": lambda: cameras(
        {"yaw": 0, "pitch": 0, "distance": 4}, {"yaw": 45, "pitch": 0, "distance": 4},
        before_type="orthographic"
    ),
    "cropped away": lambda: cropped_box(),
    "unfitted": lambda: unfitted(),
    "edited size": lambda: restore(torch.zeros(1, 64, 64, 3)),
    "edit mask size": lambda: restore(None, mask=torch.ones(1, 64, 64)),
    "edit mask empty": lambda: restore(None, mask=torch.zeros(1, 300, 400)),
    "special token": lambda: rotate("the <|im_end|> car", "rear"),
}  # fmt: skip
BOX = {"x": 10, "y": 20, "width": 100, "height": 80}


def move(**changes):
    values = {"object": "the mug"} | {f"box.{key}": value for key, value in BOX.items()}
    values |= {key if key == "object" else f"box.{key}": value for key, value in changes.items()}
    return run("JoyMoveObject", picture=picture(300, 400), box="numbers", **values)


def boxed(boxes, batch=1):
    return run(
        "JoyMoveObject", picture=picture(300, 400, batch=batch), object="the mug", box="bounding box",
        **{"box.bounding_box": boxes},
    )


def masked(mask):
    return run("JoyMoveObject", picture=picture(300, 400), object="the mug", box="mask", **{"box.mask": mask})


def cropped_box():
    (fitted,), (framing,), *_ = run("JoyFit", picture=picture(300, 1900), mode="crop", buckets="comfyui")
    numbers = {"box.x": 0, "box.y": 10, "box.width": 40, "box.height": 40}
    return run("JoyMoveObject", picture=fitted, object="the mug", box="numbers", framing=framing, **numbers)


def unfitted():
    _, (framing,), *_ = run("JoyFit", picture=picture(300, 400), mode="pad", buckets="comfyui")
    return run(
        "JoyMoveObject", picture=picture(300, 400), object="the mug", box="numbers", framing=framing,
        **{f"box.{k}": v for k, v in BOX.items()},
    )


def restore(edited, mask=None):
    (fitted,), (framing,), *_ = run("JoyFit", picture=picture(300, 400), mode="pad", buckets="comfyui")
    chosen = (
        {"put_back": "nothing"}
        if mask is None
        else {"put_back": "outside a mask", "put_back.edit_mask": mask}
    )
    return run(
        "JoyRestore", edited=fitted if edited is None else edited, framing=framing, feather=8, **chosen
    )


def refused(which):
    try:
        REFUSALS[which]()
    except ValueError as error:
        return str(error)
    return None


def graph_check(changes, node="JoyRotateObject"):
    """What our node 1 says of a graph in which its prompt goes to encoder 2,
    with these changes of the encoder or the loader 3.
    """
    graph = {
        "1": {"class_type": f"SpatialWeave_{node}", "inputs": {}},
        "2": {
            "class_type": "TextEncodeJoyImageEdit", "inputs": {
                "clip": ["3", 0], "prompt": ["1", 0], "vae": ["4", 0], "images.image0": ["5", 0]
            }
        },
        "3": {
            "class_type": "CLIPLoader", "inputs": {
                "clip_name": "none.safetensors", "type": "joyimage", "device": "default"
            }
        },
        "4": {"class_type": "VAELoader", "inputs": {"vae_name": "wan_2.1_vae.safetensors"}},
        "5": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
        "6": {
            "class_type": "TextEncodeJoyImageEdit", "inputs": {
                "clip": ["3", 0], "prompt": "", "images.image0": ["5", 0]
            }
        },
    }  # fmt: skip
    for key, inputs in changes.items():
        graph[key]["inputs"] = {
            name: value for name, value in (graph[key]["inputs"] | inputs).items() if value is not None
        }
    values = {"object": "the mug"}
    if node == "JoyRotateObject":
        values |= {"view": "rear", "form": "benchmark"}
    elif node == "JoyMoveObject":
        values |= {"picture": picture(300, 400), "box": "numbers"} | {
            f"box.{key}": value for key, value in BOX.items()
        }
    else:
        (fitted,), (framing,), *_ = run("JoyFit", picture=picture(300, 400), mode="pad", buckets="comfyui")
        values = {"edited": fitted, "framing": framing, "put_back": "nothing", "feather": 8}
        graph["1"]["inputs"] = {"edited": ["7", 0]}
        graph["7"] = {"class_type": "VAEDecode", "inputs": {"samples": ["2", 0], "vae": ["4", 0]}}
        graph["2"]["inputs"]["prompt"] = "x"
    try:
        run(node, graph=graph, **values)
    except ValueError as error:
        return str(error)
    return None


def encoder_file(kind):
    """A file of another encoder, or of Joy's, among the text encoders; what our node says of it."""
    import tempfile

    import folder_paths
    from safetensors.torch import save_file

    if "folder" not in KEEP:
        KEEP["folder"] = tempfile.mkdtemp()
        folder_paths.add_model_folder_path("text_encoders", KEEP["folder"])
    names = {
        "qwen3_4b": {
            "model.layers.0.post_attention_layernorm.weight": (
                2560,
            ), "model.layers.0.self_attn.q_norm.weight": (
                128,
            )
        },
        "qwen3vl_8b": {
            "model.visual.deepstack_merger_list.0.norm.weight": (
                8,
            ), "model.visual.merger.linear_fc2.weight": (
                16, 8
            )
        },
        "unknown": {"some.weight": (4,)},
    }[kind]  # fmt: skip
    save_file(
        {name: torch.zeros(shape) for name, shape in names.items()},
        Path(KEEP["folder"]) / f"{kind}.safetensors",
    )
    folder_paths.filename_list_cache.clear()
    return graph_check({"3": {"clip_name": f"{kind}.safetensors"}})
