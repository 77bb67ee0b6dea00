"""The shipped workflows, small: few pixels, one step, and a seed on which every result depends."""

import json

SIDE, LONG = 32, 5000  # pixels; steps of a run that is cancelled
SIDES = {
    "depth_to_blender": 64, "depth_to_image": 64, "refine_depth": 64, "rgbd_inpaint": 64,
    "joint_image_depth": 64,
}
SIDES |= {"intrinsic_cogeneration": 64, "intrinsic_sd21": 64, "intrinsic_sdxl": 64}
# the least of core's PixArt
SIDES |= {"core_sd21": 64, "core_sdxl": 64, "core_pixart": 320, "intrinsic_pixart": 320}
# else 1; what is done with a depth, a preview too, needs one that is not sky throughout, as those of one step
# now and then are
STEPS = dict.fromkeys(
    ("depth_to_blender", "depth_to_image", "joint_image_depth", "refine_depth", "rgbd_inpaint"), 6
)
SIZED = ("EmptyLatentImage", "SpatialWeave_EmptyJointLatent")
STEPPED = ("KSampler", "BasicScheduler")
# what else is smaller than as shipped
SMALLER = {
    "rgbd_inpaint": [
        "7.width=64", "7.height=64", "8.width=36", "8.height=48", "9.x=28", "9.y=12", "10.expand=4"
    ],
    "build_intrinsic_dataset": ["6.text=sky:1", "4.resolution_level=0"],
}
# a run without a sampler is made long by its words, which are sought one after the other
LONGER = {
    "build_intrinsic_dataset": [
        "6.text=" + ", ".join(["sky:1", "ground:1", "person:1", "animal:1"] * 8),
        "4.resolution_level=0",
    ]
}
PICTURED = ("build_intrinsic_dataset", "image_to_depth")  # read a picture of the input folder
CONTROL = ("core_sd21", "core_sdxl", "core_pixart", "core_klein")


# joyai_*: they edit at one megapixel, which no setting makes small: a run takes as long as thirty others.
# move_object_*, spatial_fusion_*: no connector or adapter is published, and each has another small network.
# vggt_*: they have no seed, so that ComfyUI's cache answers from the second run on.
LEFT_OUT = ("joyai_", "move_object_", "spatial_fusion_", "vggt_")


def list_graphs(pack):
    """Names of the shipped workflows but those LEFT_OUT. Those that faults need come first,
    so that a short run has them.
    """
    first = ["image_to_depth", "depth_to_blender", "joint_klein_9b", "intrinsic_sd21", "joint_image_depth"]
    names = sorted(path.stem for path in (pack / "workflows" / "api").glob("*.json"))
    names = [name for name in names if not name.startswith(LEFT_OUT)]
    return [name for name in first if name in names] + [name for name in names if name not in first]


def core_graphs():
    """The core's part of our workflows, by name: the same small files, no node of ours."""
    unet = "PixArt-XL-2-1024-MS.safetensors"
    vae, t5 = "vae-ft-mse-840000-ema-pruned.safetensors", "t5xxl_fp16.safetensors"
    checkpoints = {"core_sd21": "v2-1_768-ema-pruned.safetensors", "core_sdxl": "sd_xl_base_1.0.safetensors"}
    graphs = {
        name: text_to_image(name, {"1": ("CheckpointLoaderSimple", {"ckpt_name": file})})
        for name, file in checkpoints.items()
    }
    loaders = {
        "1": ("UNETLoader", {"unet_name": unet, "weight_dtype": "default"}),
        "10": ("CLIPLoader", {"clip_name": t5, "type": "pixart", "device": "default"}),
        "11": ("VAELoader", {"vae_name": vae}),
    }  # fmt: skip
    graphs["core_pixart"] = text_to_image("core_pixart", loaders, clip=["10", 0], vae=["11", 0])
    loaders = {
        "10": (
            "CLIPLoader",
            {"clip_name": "qwen_3_8b_fp8mixed.safetensors", "type": "flux2", "device": "default"},
        ),
        "11": ("VAELoader", {"vae_name": "flux2-vae.safetensors"}),
        "2": ("CLIPTextEncode", {"text": "a rowing boat", "clip": ["10", 0]}),
        "4": ("EmptyFlux2LatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "6": ("VAEDecode", {"samples": ["4", 0], "vae": ["11", 0]}),
        "7": ("SaveImage", {"filename_prefix": "core_klein", "images": ["6", 0]}),
        "8": ("PreviewAny", {"source": ["2", 0]}),
    }  # fmt: skip
    graphs["core_klein"] = in_api_form(loaders)
    return graphs


def text_to_image(name, loaders, clip=("1", 1), vae=("1", 2)):
    nodes = {
        "2": ("CLIPTextEncode", {"text": "a rowing boat", "clip": [*clip]}),
        "3": ("CLIPTextEncode", {"text": "blurry", "clip": [*clip]}),
        "4": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "5": ("KSampler", {
            "seed": 0, "steps": 1, "cfg": 7.5, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
            "model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0],
        }),
        "6": ("VAEDecode", {"samples": ["5", 0], "vae": [*vae]}),
        "7": ("SaveImage", {"filename_prefix": name, "images": ["6", 0]}),
    }  # fmt: skip
    return in_api_form(loaders | nodes)


def in_api_form(nodes):
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}


class Graphs:
    """Workflows by name, each with another seed in every run."""

    def __init__(self, runner, pack, names):
        paths = {name: pack / "workflows" / "api" / f"{name}.json" for name in names if name not in CONTROL}
        self.runner, self.names = runner, list(names)
        self.whole = {name: runner.read_graph(path) for name, path in paths.items()}
        self.whole |= {name: graph for name, graph in core_graphs().items() if name in names}

    def make(self, name, seed, picture, *, steps=None):
        """A graph to queue; `picture` is a file of the input folder, for those that read one."""
        graph, side = json.loads(json.dumps(self.whole[name])), SIDES.get(name, SIDE)
        for node in graph.values():
            kind, inputs = node["class_type"], node["inputs"]
            if kind in STEPPED:
                inputs["steps"] = steps or STEPS.get(name, 1)
            if kind in SIZED:
                inputs |= {"width": side, "height": side}
            if "seed" in inputs:
                inputs["seed"] = seed
            if kind == "LoadImage":
                inputs["image"] = picture
            if kind == "ImageScaleToMaxDimension":
                inputs["largest_size"] = side
        changes = LONGER if steps == LONG and name in LONGER else SMALLER
        return self.runner.change_inputs(graph, changes.get(name, []))
