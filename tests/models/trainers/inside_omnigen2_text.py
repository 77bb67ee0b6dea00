"""Called by test_omnigen2_encoding.py in ComfyUI: core's text encoder of OmniGen2 on given weights."""

from pathlib import Path

import comfy.sd
import comfy.supported_models_base
import comfy.text_encoders.omnigen2
import torch
from safetensors.torch import load_file, save_file

SIZES = {
    "vocab_size": 151936, "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 1, "num_key_value_heads": 1,
}  # fmt: skip


def run(folder):
    """Reads text.safetensors in the folder, writes context.safetensors."""
    omnigen2 = comfy.text_encoders.omnigen2
    target = comfy.supported_models_base.ClipTarget(
        omnigen2.Omnigen2Tokenizer, omnigen2.te(dtype_llama=torch.float32)
    )
    clip = comfy.sd.CLIP(target, model_options={"qwen25_3b_model_config": SIZES, "dtype": torch.float32})
    transformer = clip.cond_stage_model.qwen25_3b.transformer
    transformer.load_state_dict(load_file(Path(folder) / "text.safetensors"), strict=True)
    with torch.inference_mode():
        found = {
            name: clip.encode_from_tokens(clip.tokenize(prompt)).clone()
            for name, prompt in (("caption", "move the red ball left"), ("empty", ""))
        }
    save_file(found, Path(folder) / "context.safetensors")
