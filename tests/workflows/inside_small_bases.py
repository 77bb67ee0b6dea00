"""Laid into the test server's custom_nodes: SD2.1, SDXL and PixArt of core's own classes,
so small that a test can run them.

Text encoders become 32 wide, core's descriptions of the three bases name the smaller sizes, and files of
random weights take the names that the I-LDM graphs ask for. Loaders, networks and samplers are core's.
Nothing else of ComfyUI is changed.
"""

from pathlib import Path

import comfy.clip_model
import comfy.model_detection
import comfy.sd
import comfy.sdxl_clip
import comfy.supported_models as bases
import comfy.text_encoders.pixart_t5
import comfy.text_encoders.sd2_clip
import comfy.text_encoders.t5
import comfy.utils
import folder_paths
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from safetensors.torch import save_file

NODE_CLASS_MAPPINGS = {}
TEXT, T5_INSIDE = 32, 64
RANK = 4

# what core reads off a checkpoint's shapes; heads are 64 wide in both
SD21 = {"model_channels": 64, "context_dim": TEXT}
SDXL = {
    "model_channels": 64, "context_dim": 2 * TEXT, "adm_in_channels": TEXT + 6 * 256,
    "transformer_depth": [0, 0, 1, 1, 2, 2],
}
PIXART = {"hidden_size": 48, "num_heads": 4, "caption_channels": TEXT}
SHARED = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "legacy": False, "use_temporal_attention": False, "use_temporal_resblock": False, "dtype": torch.float32,
}  # fmt: skip
UNETS = {
    "sd21": SHARED | SD21 | {
        "adm_in_channels": None, "channel_mult": [1, 2, 2, 2], "num_res_blocks": [2, 2, 2, 2],
        "transformer_depth_middle": 1,
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    },
    "sdxl": SHARED | SDXL | {
        "num_classes": "sequential", "channel_mult": [1, 2, 2], "num_res_blocks": [2, 2, 2],
        "transformer_depth_middle": 2,
        "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
    },
}  # fmt: skip


def shrink(kind, **small):
    """Core builds this text encoder from a JSON file; the sizes given here take the place of the file's.
    One that is small is left so.
    """
    build = kind.__init__

    def build_small(self, config, *args, **kwargs):
        is_small = all(config.get(name, 0) <= 2 * value for name, value in small.items())
        build(self, config if is_small else config | small, *args, **kwargs)

    kind.__init__ = build_small


def read_small():
    """Core recognises the small networks as what they are."""
    network, encoder = comfy.model_detection.detect_unet_config, comfy.sd.detect_te_model
    t5 = "encoder.block.23.layer.1.DenseReluDense.wi_1.weight"

    def detect_network(*args, **kwargs):
        found = network(*args, **kwargs)
        return found | PIXART if found and str(found.get("image_model")).startswith("pixart") else found

    def detect_encoder(state):
        return comfy.sd.TEModel.T5_XXL if t5 in state and len(state[t5]) == T5_INSIDE else encoder(state)

    comfy.model_detection.detect_unet_config, comfy.sd.detect_te_model = detect_network, detect_encoder
    bases.SD20.unet_config, bases.SDXL.unet_config = (
        bases.SD20.unet_config | SD21, bases.SDXL.unet_config | SDXL,
    )


def random_weights(module, seed):
    """Outputs of about unit size. Biases spread as SD2.1's do, by which core sees that it predicts v."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, value in module.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        found[name] = (
            noise * value[0].numel() ** -0.5 if value.ndim > 1 else noise * 0.2 + name.endswith("weight")
        )
    return found


def write(folder, name, state):
    place = Path(folder_paths.get_folder_paths(folder)[0])
    place.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in state.items()}, place / name)


def autoencoder(channels, multiples, blocks, seed):
    """Of core's class, 32 wide."""
    sizes = {
        "double_z": True, "z_channels": 4, "resolution": 256, "ch": 32, "attn_resolutions": [],
        "dropout": 0.0,
    }
    sizes |= {"in_channels": channels, "out_ch": channels, "ch_mult": multiples, "num_res_blocks": blocks}
    return random_weights(AutoencoderKL(ddconfig=sizes, embed_dim=4), seed)


def image_decoder():
    """An image VAE's half that these graphs use; core builds the other half from the same file's shapes."""
    state = autoencoder(3, [1, 2, 4, 4], 2, seed=3)
    return {name: value for name, value in state.items() if not name.startswith("encoder.")}


def write_checkpoint(name, config, encoder):
    """Network, text encoders and VAE in one file, in the form that core saves."""
    model = config.get_model({}, device=torch.device("cpu"))
    network = random_weights(model.diffusion_model, 1)
    write(
        "checkpoints",
        name,
        model.state_dict_for_saving(dict(network), random_weights(encoder, 2), image_decoder()),
    )
    return network


def write_lora(name, part, projections):
    """An intrinsic LoRA as our trainer names it; `projections` are weights by diffusers' path."""
    generator, tensors = torch.Generator().manual_seed(4), {}
    for path, weight in projections.items():
        outputs, inputs = weight.shape
        tensors[f"{part}.{path}.lora_A.weight"] = (
            torch.randn(RANK, inputs, generator=generator) * inputs**-0.5
        )
        tensors[f"{part}.{path}.lora_B.weight"] = torch.randn(outputs, RANK, generator=generator) * 0.3
    write("loras", name, tensors)


def self_attention(state, names):
    """The weights of every attn1 projection, by diffusers' path; core keeps PixArt's q,
    k and v in one matrix.
    """
    found = {}
    for theirs, ours in names.items():
        if ".attn1." in theirs and theirs.endswith(".weight"):
            whole = state[ours] if isinstance(ours, str) else state[ours[0]].narrow(*ours[1])
            found[theirs.removesuffix(".weight")] = whole
    return found


def write_sd21():
    encoder = comfy.text_encoders.sd2_clip.SD2ClipModel(dtype=torch.float32)
    config = bases.SD20(UNETS["sd21"])
    state = write_checkpoint("v2-1_768-ema-pruned.safetensors", config, encoder)
    write_lora(
        "intrinsic_lora_sd21.safetensors",
        "unet",
        self_attention(state, comfy.utils.unet_to_diffusers(config.unet_config)),
    )


def write_sdxl():
    encoder = comfy.sdxl_clip.SDXLClipModel(dtype=torch.float32)
    config = bases.SDXL(UNETS["sdxl"])
    state = write_checkpoint("sd_xl_base_1.0.safetensors", config, encoder)
    write_lora(
        "intrinsic_lora_sdxl.safetensors",
        "unet",
        self_attention(state, comfy.utils.unet_to_diffusers(config.unet_config)),
    )


def write_pixart():
    sizes = PIXART | {
        "depth": 3, "in_channels": 4, "patch_size": 2, "micro_condition": True, "dtype": torch.float32,
    }
    state = random_weights(
        bases.PixArtAlpha(sizes).get_model({}, device=torch.device("cpu")).diffusion_model, 1
    )
    write("diffusion_models", "PixArt-XL-2-1024-MS.safetensors", state)
    write_lora(
        "intrinsic_lora_pixart.safetensors",
        "transformer",
        self_attention(state, comfy.utils.pixart_to_diffusers(sizes)),
    )
    encoder = comfy.text_encoders.pixart_t5.PixArtT5XXL(dtype=torch.float32).t5xxl.transformer
    write("text_encoders", "t5xxl_fp16.safetensors", random_weights(encoder, 2))
    write("vae", "vae-ft-mse-840000-ema-pruned.safetensors", image_decoder())


def write_intrinsic_vaes():
    """Of 8 channels, without metadata: their layout is in their shapes."""
    for name in ("intrinsic_vae.safetensors", "intrinsic_vae_sdxl.safetensors"):
        write("vae", name, autoencoder(8, [1, 1, 2, 2], 1, seed=5))


shrink(comfy.clip_model.CLIPTextModel, hidden_size=TEXT, intermediate_size=2 * TEXT, num_attention_heads=2)
shrink(comfy.text_encoders.t5.T5, d_model=TEXT, d_ff=T5_INSIDE, d_kv=TEXT // 2, num_heads=2)
read_small()
write_sd21()
write_sdxl()
write_pixart()
write_intrinsic_vaes()
