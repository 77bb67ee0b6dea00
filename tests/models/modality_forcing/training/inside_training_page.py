"""Runs docs/training.md's script in ComfyUI's process, with core's own FLUX.2 encoders made small,
on files of random weights.

python inside_training_page.py COMFYUI BASE SCRIPT SOURCE TARGET SIDE
"""

import importlib.util
import runpy
import sys
from pathlib import Path

SMALL_KLEIN = Path(__file__).resolve().parents[3] / "workflows" / "inside_small_klein.py"


def write_autoencoder(small, path):
    """With an encoder, which core makes in one width only."""
    import comfy.ldm.models.autoencoder
    from safetensors.torch import save_file

    model = comfy.ldm.models.autoencoder.AutoencoderKL(
        ddconfig=small.VAE | {"ch": 128}, decoder_ddconfig=small.VAE, embed_dim=32
    )
    save_file({name: value.contiguous() for name, value in small.random_weights(model).items()}, path)


if __name__ == "__main__":
    comfyui, base, script, *arguments = sys.argv[1:]
    sys.path.insert(0, comfyui)
    sys.argv[1:] = ["--cpu", "--base-directory", base]
    import comfy.options

    comfy.options.enable_args_parsing()
    import folder_paths

    spec = importlib.util.spec_from_file_location("small_klein", SMALL_KLEIN)
    small = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(small)
    vae = Path(folder_paths.get_folder_paths("vae")[0]) / small.FILES["vae"]
    text = Path(folder_paths.get_folder_paths("text_encoders")[0]) / small.FILES["text_encoders"]
    write_autoencoder(small, vae)
    source, target, side = arguments
    sys.argv[1:] = [source, target, str(vae), str(text), side]
    runpy.run_path(script, run_name="__main__")
