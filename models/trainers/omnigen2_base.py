"""OmniGen2 as the frozen base of a depth adapter: rectified flow, Qwen2.5-VL's text features, references."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..core.diffusion.flow import add_noise
from ..core.layers.blocks import RunBlock, run_block
from ..core.text_files import show_path
from ..core.weights.files import check_finite
from ..spatial_fusion.omnigen2 import OmniGen2
from ..spatial_fusion.omnigen2_files import load_omnigen2
from .depth_latents import name_reference

log = logging.getLogger("spatialweave.dataset")
CONDITIONS = ("context", "context_mask")
# the prompt as the network was trained on it
TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant that generates high-quality images based on user "
    "instructions.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
)
PROMPT_TOKENS = 256  # of a prompt with its template; shorter ones are padded, longer ones cut
ENCODER, TOKENIZER = "mllm", "processor"  # folders of the release
PARTS = (ENCODER, TOKENIZER, "vae")
ENCODER_FILES = (".json", ".txt", ".safetensors")


class OmniGen2Base:
    """The network at noise levels t in [0, 1): z_t = (1 - t) z_0 + t noise, target noise - z_0."""

    conditions = CONDITIONS

    def __init__(self, network: OmniGen2, references: tuple[str, ...] = (), run: RunBlock = run_block):
        self.network, self.references, self.run = network, references, run
        self.channels, self.dtype = network.config.in_channels, next(network.parameters()).dtype

    def add_noise(self, x0: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        return add_noise(x0, noise, level)

    def target(self, x0: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        return noise - x0

    def predict(self, x: Tensor, level: Tensor, prompt: Mapping[str, Tensor]) -> Tensor:
        """The velocity (b, c, h, w) in float32. `prompt` also has the clean latents of the references."""
        mask = prompt["context_mask"].bool()
        longest = int(mask.sum(dim=1).max())
        velocity = self.network(
            x.to(self.dtype),
            level,
            prompt["context"][:, :longest].to(self.dtype),
            [prompt[name].to(self.dtype) for name in self.references],
            mask=mask[:, :longest],
            run=self.run,
        )
        return velocity.float()


class OmniGen2Prompts:
    """The language model of Qwen2.5-VL, which reads the text alone, and its tokenizer."""

    def __init__(self, model: nn.Module, tokenizer):
        self.model, self.tokenizer, self.device = model, tokenizer, torch.device("cpu")

    def to(self, device: torch.device) -> OmniGen2Prompts:
        self.model.to(device)
        self.device = device
        return self

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        """context (b, PROMPT_TOKENS, c), the last hidden states; context_mask (b, PROMPT_TOKENS)."""
        rows = [self.tokenizer(TEMPLATE.format(prompt))["input_ids"] for prompt in prompts]
        for prompt, row in zip(prompts, rows, strict=True):
            if len(row) > PROMPT_TOKENS:
                log.warning(
                    "The prompt %r has %d tokens with its template; it is cut at %d.",
                    prompt[:60], len(row), PROMPT_TOKENS,
                )  # fmt: skip
        # causal attention: what is padded behind a prompt does not reach its own tokens
        ids = torch.zeros(len(rows), PROMPT_TOKENS, dtype=torch.long)
        mask = torch.zeros(len(rows), PROMPT_TOKENS, dtype=torch.uint8)
        for i, row in enumerate(rows):
            count = min(len(row), PROMPT_TOKENS)
            ids[i, :count], mask[i, :count] = torch.tensor(row[:count]), 1
        found = self.model(input_ids=ids.to(self.device), attention_mask=mask.long().to(self.device))
        context = found.last_hidden_state * mask[..., None].to(found.last_hidden_state)
        return {"context": context, "context_mask": mask}


def load_omnigen2_base(
    base: str | Path, dtype: torch.dtype, references: int, run: RunBlock = run_block
) -> OmniGen2Base:
    """The network of OmniGen2's folder, or ComfyUI's file of it; ValueError for anything else."""
    network = load_omnigen2(base, dtype=dtype)
    most = network.config.most_references
    if references > most:
        raise ValueError(
            f"Expected at most {most} references of OmniGen2 in the recipe's data, got {references}. "
            "Correct it."
        )
    return OmniGen2Base(network, tuple(map(name_reference, range(references))), run)


def check_prompts(sample: Mapping[str, Tensor], base: OmniGen2Base) -> None:
    """ValueError unless a sample was encoded for this network."""
    width, channels = sample["context"].shape[-1], [sample[name].shape[0] for name in base.references]
    config = base.network.config
    if width != config.context_in_dim or set(channels) - {config.in_channels}:
        raise ValueError(
            f"Expected contexts of width {config.context_in_dim} and references of {config.in_channels} "
            f"channels, got {width} and {channels}. Encode the folder for this base."
        )


def load_omnigen2_prompts(folder: Path, dtype: torch.dtype) -> OmniGen2Prompts:
    """The language model of OmniGen2's folder; ValueError if it does not load."""
    check_encoders(folder)
    transformers = import_transformers()
    try:
        whole = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder / ENCODER, dtype=dtype, local_files_only=True, use_safetensors=True
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder / TOKENIZER, local_files_only=True)
    except (OSError, RuntimeError, TypeError, ValueError, KeyError) as error:
        raise ValueError(
            f"Expected Qwen2.5-VL in {show_path(folder / ENCODER)} and its tokenizer in {TOKENIZER}, got an "
            f"error: {error} Fetch the folder again."
        ) from error
    model = whole.model.language_model.requires_grad_(False).train(False)
    check_finite(model.state_dict(), f"the {ENCODER} in {folder}")
    return OmniGen2Prompts(model, tokenizer)


def import_transformers():
    """The transformers module; an error explains how to install it."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "Expected transformers, which reads prompts for OmniGen2, got none installed. Run: pip install "
            '"spatialweave[train]"'
        ) from error
    return transformers


def check_encoders(folder: Path) -> None:
    """ValueError unless the folder has what encodes a dataset."""
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise ValueError(
            f"Expected OmniGen2's folder as base, with {', '.join(PARTS)}, which encode data.source, got "
            f"{show_path(folder)} without {', '.join(missing)}. Name the whole folder, or encode the data "
            "first and leave source out."
        )


def list_omnigen2_encoder_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files that decide what is encoded."""
    check_encoders(folder)
    for part in PARTS:
        for path in sorted((folder / part).glob("*")):
            if path.is_file() and path.suffix in ENCODER_FILES and not path.name.startswith("."):
                yield f"{path.relative_to(folder).as_posix()} of the base", path
