"""Run by test_omnigen2_encoding.py in a process of its own: core's text encoder of OmniGen2 on given weights.

inside_omnigen2_text.py COMFYUI FOLDER. Reads text.safetensors there, writes context.safetensors.
"""

import sys
from pathlib import Path

comfyui, folder = sys.argv[1], Path(sys.argv[2])
sys.path.insert(0, comfyui)
sys.argv[1:] = ["--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.sd  # noqa: E402
import comfy.supported_models_base  # noqa: E402
import comfy.text_encoders.omnigen2  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

SIZES = {
    "vocab_size": 151936, "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 1, "num_key_value_heads": 1,
}  # fmt: skip
omnigen2 = comfy.text_encoders.omnigen2
target = comfy.supported_models_base.ClipTarget(
    omnigen2.Omnigen2Tokenizer, omnigen2.te(dtype_llama=torch.float32)
)
clip = comfy.sd.CLIP(target, model_options={"qwen25_3b_model_config": SIZES, "dtype": torch.float32})
transformer = clip.cond_stage_model.qwen25_3b.transformer
transformer.load_state_dict(load_file(folder / "text.safetensors"), strict=True)
with torch.inference_mode():
    found = {
        name: clip.encode_from_tokens(clip.tokenize(prompt)).clone()
        for name, prompt in (("caption", "move the red ball left"), ("empty", ""))
    }
save_file(found, folder / "context.safetensors")
