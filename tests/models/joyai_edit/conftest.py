"""JoyImage networks of the released shape family, random and so small that they train on a CPU in no time, and encoded edits."""

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
            hidden_size=HIDDEN, num_attention_heads=1, text_dim=text, num_layers=LAYERS, rope_dim_list=[16, 56, 56], theta=10000
        )
        for parameter in network.parameters():
            if parameter.ndim > 1:  # far from the quiet start that libraries choose, so that every part of the input matters
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return network.train(False)


@pytest.fixture
def write_network():
    """write_network(path, text, dtype): one file as ComfyUI has it, or a pipeline folder of diffusers."""
    pytest.importorskip("diffusers", reason="the trainer's extra is not installed")

    def write(path, text=TEXT, dtype=torch.float32):
        network = small_network(text)
        if path.suffix == ".safetensors":
            save_file({name: value.to(dtype).contiguous() for name, value in network.state_dict().items()}, path)
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
        lines = [{"shard": "shard-00000.safetensors", "row": row, "caption": f"edit {row}"} for row in range(count)]
        (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    return write
