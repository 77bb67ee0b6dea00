"""What encodes a dataset for OmniGen2: prompts as ComfyUI's text encoder reads them, images, references."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from spatialweave.models.trainers.depth_latents import DepthLatentsRequest
from spatialweave.models.trainers.spatial_fusion import DepthAdapterSettings, encode_for


def write_encoders(base, comfyui):
    """A small random Qwen2.5-VL, core's copy of its tokenizer, and a small VAE of 16 channels."""
    transformers, diffusers = pytest.importorskip("transformers"), pytest.importorskip("diffusers")
    text = {
        "vocab_size": 151936, "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 4096,
        "rope_theta": 1e6, "rope_scaling": {"type": "default", "mrope_section": [16, 24, 24]},
        "tie_word_embeddings": True, "rms_norm_eps": 1e-6,
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 128}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        model = transformers.Qwen2_5_VLForConditionalGeneration(config)
        for value in model.model.language_model.layers.parameters():
            torch.nn.init.normal_(value, std=0.1) if value.ndim > 1 else None
        vae = diffusers.AutoencoderKL(
            latent_channels=16, block_out_channels=(8, 8, 8, 8), norm_num_groups=4, scaling_factor=0.3611,
            shift_factor=0.1159, down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4, use_quant_conv=False, use_post_quant_conv=False,
        )  # fmt: skip
    model.save_pretrained(base / "mllm")
    vae.save_pretrained(base / "vae")
    shutil.copytree(comfyui / "comfy" / "text_encoders" / "qwen25_tokenizer", base / "processor")
    return model.model.language_model, vae


def write_source(folder):
    """Three images with depth, captions and a reference each, by Pillow and numpy."""
    folder.mkdir()
    rng, lines = np.random.default_rng(0), []
    for i in range(3):
        for name in (f"{i}.png", f"{i}_before.png"):
            Image.fromarray(rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)).save(folder / name)
        np.save(folder / f"{i}.npy", (rng.random((32, 48)) + 1).astype(np.float32))
        lines.append(
            {
                "image": f"{i}.png", "depth": f"{i}.npy", "caption": "move the red ball left",
                "references": [f"{i}_before.png"],
            }
        )  # fmt: skip
    del lines[2]["references"]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))


@pytest.mark.comfyui
def test_omnigen2_encodes_prompts_as_comfyui_and_references_as_images(inside, comfyui, tmp_path, caplog):
    base = tmp_path / "base"
    text, vae = write_encoders(base, comfyui)
    write_source(tmp_path / "source")
    request = DepthLatentsRequest(str(tmp_path / "made"), str(tmp_path / "source"), references=1)
    encode_for(request, DepthAdapterSettings(base=str(base)), "omnigen2")
    assert "Sample 2" in caplog.text and "Expected 1 image files as references, got none" in caplog.text
    shard = load_file(tmp_path / "made" / "shard-00000.safetensors")
    image = torch.from_numpy(np.array(Image.open(tmp_path / "source" / "1_before.png"))).movedim(-1, 0)
    with torch.no_grad():
        latent = vae.encode(image[None].float() / 127.5 - 1).latent_dist.mode()
    reference = (latent[0] - 0.1159) * 0.3611
    assert len(shard["latent"]) == 2
    assert (shard["reference_0"][1].float() - reference).abs().max() < 2e-3 * reference.abs().max()

    # core's encoder on the same weights
    weights = {f"model.{name}": value.contiguous() for name, value in text.state_dict().items()}
    save_file(weights, tmp_path / "text.safetensors")
    inside(Path(__file__).with_name("inside_omnigen2_text.py"), "run", folder=str(tmp_path))
    expected = load_file(tmp_path / "context.safetensors")
    empty = load_file(tmp_path / "made" / "empty_context.safetensors")
    for name, row, mask in (
        ("caption", shard["context"][0, 0], shard["context_mask"][0, 0]),
        ("empty", empty["context"], empty["context_mask"]),
    ):
        count = expected[name].shape[1]
        assert int(mask.sum()) == count and bool(mask[:count].all())
        size = float(expected[name].abs().max())
        assert (row[:count].float() - expected[name][0]).abs().max() < 1e-3 * size
        assert not row[count:].any()
