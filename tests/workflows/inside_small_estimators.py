"""Laid into a test server's custom_nodes: MoGe-2 and SAM 3.1 of core's own classes,
so small that a test can run them.

Core's description of SAM 3.1 names smaller sizes, its text encoder and transformer become small, and files of
random weights take the names that build_intrinsic_dataset asks for. Loaders, networks and nodes are core's.
Nothing else of ComfyUI is changed.
"""

from pathlib import Path

import comfy.ldm.sam3.detector as sam3
import comfy.model_detection
import comfy.ops
import comfy.text_encoders.sam3_clip as sam3_text
import folder_paths
import torch
from comfy.ldm.moge.model import MoGeModelV2
from safetensors.torch import save_file

NODE_CLASS_MAPPINGS = {}
WIDTH = 64  # of the vision and the text tower, which SAM 3.1 has alike
SAM = {"d_model": 32, "embed_dim": WIDTH, "num_queries": 12, "depth": 1, "global_att_blocks": ()}
TEXT = {
    "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_attention_heads": 1, "num_hidden_layers": 1,
    "projection_dim": WIDTH,
}
MADE = {"dtype": torch.float32, "device": "cpu", "operations": comfy.ops.disable_weight_init}


def random_weights(module, seed):
    """Outputs of about unit size, the same every time."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, value in module.state_dict().items():
        if name.endswith(("image_mean", "image_std")):
            found[name] = value
            continue
        noise = torch.randn(value.shape, generator=generator)
        found[name] = (
            noise * value[0].numel() ** -0.5 if value.ndim > 1 else noise * 0.1 + name.endswith("weight")
        )
    return found


def write(folder, name, state):
    place = Path(folder_paths.get_folder_paths(folder)[0])
    place.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in state.items()}, place / name)


def stack(inputs, outputs):
    """A stack of convolutions that starts from `inputs` channels and may double its resolution four times."""
    widths = [16, 16, 8, 8, 8]
    return {
        "dim_in": [inputs[0], *inputs[1:]], "dim_res_blocks": widths, "dim_out": outputs,
        "num_res_blocks": [1] * 5,
        "resamplers": ["conv_transpose"] * 4, "res_block_in_norm": "none", "res_block_hidden_norm": "none",
    }  # fmt: skip


def write_moge():
    """Depth, mask, scale and normals, as the file that the graph names."""
    backbone = {
        "hidden_size": WIDTH, "num_attention_heads": 1, "num_hidden_layers": 4, "layer_norm_eps": 1e-6,
        "use_swiglu_ffn": False,
    }
    heads = {"points_head": 3, "mask_head": 1, "normal_head": 3}
    network = MoGeModelV2(
        encoder={"backbone": backbone, "intermediate_layers": [0, 1, 2, 3], "dim_out": 16},
        neck=stack([18, 2, 2, 2, 2], [16, 16, 8, 8, 8]), scale_head={"dims": [WIDTH, 16, 1]},
        **{name: stack([16, 16, 8, 8, 8], [None] * 4 + [width]) for name, width in heads.items()}, **MADE,
    )  # fmt: skip
    state = random_weights(network, 1)
    for name in heads:
        # random features hardly differ across a picture
        state[f"{name}.output_blocks.4.weight"] *= 3 if name == "points_head" else 10
    write("geometry_estimation", "moge_2_vitl_normal_fp16.safetensors", state)


def read_small():
    """Core recognises the small SAM 3.1 as what it is."""
    detect = comfy.model_detection.detect_unet_config

    def detect_network(*args, **kwargs):
        found = detect(*args, **kwargs)
        return found | SAM if found and found.get("image_model") == "SAM31" else found

    comfy.model_detection.detect_unet_config = detect_network
    sam3_text.SAM3_CLIP_CONFIG.update(TEXT)
    plain = sam3.Transformer.__init__

    def build(self, d_model, num_queries, **made):
        plain(self, d_model=d_model, num_queries=num_queries, dim_ff=32, enc_layers=1, dec_layers=1, **made)

    sam3.Transformer.__init__ = build


def write_sam():
    """Detector, tracker and text encoder in one checkpoint, under core's names."""
    network = sam3.SAM3Model(image_model="SAM31", **SAM, **MADE)
    text = sam3_text.SAM3ClipModel(dtype=torch.float32)
    state = random_weights(network, 2)
    state |= {
        f"detector.backbone.language_backbone.sam3_clip.{name}": value
        for name, value in random_weights(text, 3).items()
    }
    write("checkpoints", "sam3.1_multiplex_fp16.safetensors", state)


read_small()
write_moge()
write_sam()
