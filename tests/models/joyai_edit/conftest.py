"""JoyImage networks of the released shape family,
random and so small that they train on a CPU in no time, and encoded edits.
"""

import json

import pytest
import torch
from safetensors.torch import save_file

HIDDEN, TEXT, LAYERS = 128, 24, 2  # one head of the released width
CONTEXT = (9, 6, 7, 9)  # tokens of each sample's encoding
PREFIX, TAIL = 4, 2


def small_network(text=TEXT, seed=3):
    import diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = diffusers.JoyImageEditTransformer3DModel(
            hidden_size=HIDDEN, num_attention_heads=1, text_dim=text, num_layers=LAYERS,
            rope_dim_list=[16, 56, 56], theta=10000,
        )
        for parameter in network.parameters():
            # far from the quiet start that libraries choose, so that every part of the input matters
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return network.train(False)


@pytest.fixture
def write_network():
    """write_network(path, text, dtype): one file as ComfyUI has it, or a pipeline folder of diffusers."""
    pytest.importorskip("diffusers", reason="the trainer's extra is not installed")

    def write(path, text=TEXT, dtype=torch.float32):
        network = small_network(text)
        if path.suffix == ".safetensors":
            save_file(
                {name: value.to(dtype).contiguous() for name, value in network.state_dict().items()}, path
            )
        else:
            network.to(dtype).save_pretrained(path / "transformer", max_shard_size="1MB")
        return path

    return write


@pytest.fixture
def write_edits():
    """write_edits(folder): a dataset folder as `spatialweave joyai encode` writes it."""

    def write(folder, text=TEXT, side=8):
        folder.mkdir(parents=True)
        generator = torch.Generator().manual_seed(1)
        count, longest = len(CONTEXT), max(CONTEXT)
        tensors = {
            "latent": torch.randn(count, 16, side, side, generator=generator).half(),
            "reference": torch.randn(count, 16, side, side, generator=generator).half(),
            "context": torch.randn(count, longest, text, generator=generator).bfloat16(),
            "context_tokens": torch.tensor(CONTEXT, dtype=torch.int32),
            "prefix_tokens": torch.full((count,), PREFIX, dtype=torch.int32),
            "empty_tail": torch.randn(count, TAIL, text, generator=generator).bfloat16(),
        }
        save_file(tensors, folder / "shard-00000.safetensors")
        lines = [
            {"shard": "shard-00000.safetensors", "row": row, "caption": f"edit {row}"} for row in range(count)
        ]
        (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    return write


SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)


def small_tokenizer():
    """Bytes as tokens, and the special tokens of Qwen3-VL."""
    import transformers

    # bytes that stand for themselves; GPT-2 shifts the others
    letters = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters += range(256, 256 + 256 - len(letters))
    vocabulary = {chr(letter): number for number, letter in enumerate(letters)}
    tokenizer = transformers.Qwen2Tokenizer(vocab=vocabulary, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    return tokenizer


@pytest.fixture
def write_pipeline():
    """write_pipeline(folder): all of JoyImage-Edit in diffusers' form, small and random."""
    diffusers = pytest.importorskip("diffusers", reason="the trainer's extra is not installed")
    pytest.importorskip(
        "torchvision", reason="transformers' image processor needs it, so nothing was encoded"
    )
    import transformers

    def write(folder):
        tokenizer = small_tokenizer()
        ids = dict(zip(SPECIAL, tokenizer.convert_tokens_to_ids(list(SPECIAL))))
        text = {
            "hidden_size": TEXT, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16, "vocab_size": len(tokenizer),
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 5000000,
                "mrope_section": [4, 2, 2], "mrope_interleaved": True,
            },
        }  # fmt: skip
        vision = {
            "hidden_size": 16, "intermediate_size": 24, "depth": 3, "num_heads": 2, "patch_size": 16,
            "out_hidden_size": TEXT,
            "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
        }  # fmt: skip
        tokens = {"image_token_id": ids["<|image_pad|>"], "video_token_id": ids["<|video_pad|>"]}
        tokens |= {
            "vision_start_token_id": ids["<|vision_start|>"],
            "vision_end_token_id": ids["<|vision_end|>"],
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            encoder = transformers.Qwen3VLForConditionalGeneration(
                transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **tokens)
            )
            for parameter in encoder.parameters():
                if parameter.ndim > 1:
                    torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
            vae = diffusers.AutoencoderKLWan(base_dim=8, z_dim=16, num_res_blocks=1)
        pixels = {"size": {"longest_edge": 16777216, "shortest_edge": 65536}, "patch_size": 16}
        processor = transformers.Qwen3VLProcessor(
            transformers.Qwen2VLImageProcessor(**pixels), tokenizer, transformers.Qwen3VLVideoProcessor()
        )
        pipeline = diffusers.JoyImageEditPipeline(
            diffusers.FlowMatchEulerDiscreteScheduler(shift=1.5),
            vae.train(False),
            encoder.train(False),
            tokenizer,
            small_network(),
            processor,
        )
        pipeline.save_pretrained(folder)
        return folder

    return write
