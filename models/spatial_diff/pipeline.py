"""An image and an instruction in, the edited image out: the tiny editor in plain torch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.padding import crop_to, pad_to
from ..core.pictures import read_pictures
from ..core.protocols import ImageCodec, OnStep
from ..tiny.text import TinyTextEncoder
from ..vggt.pipeline import VggtPipeline
from .config import DEFAULTS, EditDefaults
from .editor_files import EDITOR_FILE, LORA_FILE, TEXT_FILE, load_editor, load_text
from .flux import PRESETS, ExtraTokens, Flux, sequence_ids
from .grammar import explain_instruction, tokenize_instructions
from .lora import merge_lora
from .network import GeometryConnector
from .sampling import draw_latent_noise, guide_velocity, make_times, sample
from .seen_colors import explain_absent
from .tokens import spread_ids
from .weights import TINY_CONNECTOR, load_connector

STRIDE = 16  # pixels a latent pixel of the tiny codec


@dataclass(frozen=True)
class Result:
    """The edited images of one batch."""

    image: Tensor  # (b, h, w, 3) in [0, 1]
    latent: Tensor  # (b, c, H / 16, W / 16), of the padded size
    notes: tuple[str, ...]  # a sentence for everything that was changed or ignored
    seed: int
    seconds: float


@dataclass(frozen=True)
class Parts:
    """The files of a tiny system; the editor alone edits, LoRA and connector join it."""

    editor: Path
    text: Path
    lora: Path | None = None
    connector: Path | None = None

    @classmethod
    def of_folder(cls, folder: str | os.PathLike) -> Parts:
        """The files of a folder under their shipped names. ValueError if the editor is not there."""
        paths = [Path(folder) / file.name for file in (EDITOR_FILE, TEXT_FILE, LORA_FILE, TINY_CONNECTOR)]
        for path in paths[:2]:
            if not path.is_file():
                raise ValueError(
                    f"Expected {path.name} in {folder}, got none. Give the folder of a tiny editor."
                )
        return cls(*paths[:2], *(path if path.is_file() else None for path in paths[2:]))


class SpatialDiffPipeline:
    """An editor with its codec and text encoder; with a connector, geometry tokens join its sequence."""

    def __init__(
        self,
        editor: Flux,
        codec: ImageCodec,
        text_encoder: TinyTextEncoder,
        *,
        connector: GeometryConnector | None = None,
        geometry: VggtPipeline | None = None,
        explain: Callable[[str], str | None] = explain_instruction,
        defaults: EditDefaults = DEFAULTS,
    ):
        if (connector is None) != (geometry is None):
            raise ValueError(
                "Expected a connector and a geometry encoder together, got one of them. Give both, or "
                "neither."
            )
        self.editor, self.codec, self.text_encoder = editor.train(False), codec, text_encoder
        self.connector, self.geometry = connector, geometry
        self.explain, self.defaults = explain, defaults

    @classmethod
    def from_preset(
        cls,
        name: str = "tiny",
        *,
        weights: str | os.PathLike | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        """The tiny editor with its shipped files, or with those of the folder `weights`.

        ValueError for presets that ship no weights.
        """
        if name != "tiny":
            known = ", ".join(PRESETS)
            raise ValueError(
                f"Expected the preset tiny, which ships with the pack, got {name!r} (presets: {known}). "
                "Use the nodes in ComfyUI for Flux-Kontext."
            )
        return cls.from_parts(Parts.of_folder(weights or EDITOR_FILE.parent), device=device, dtype=dtype)

    @classmethod
    def from_parts(
        cls, parts: Parts, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ):
        """The tiny editor from its files."""
        from ..tiny.weights import load_codec  # late: the pipeline takes any codec

        editor = load_editor(parts.editor, config=PRESETS["tiny"], device=device, dtype=dtype)
        text = load_text(parts.text, PRESETS["tiny"].context_in_dim, device=device).train(False)
        if parts.lora:
            merge_lora(editor, parts.lora)
        geometry: dict[str, Any] = {}
        if parts.connector:
            connector = load_connector(parts.connector, device=device, dtype=torch.float32).train(False)
            geometry = {"connector": connector, "geometry": VggtPipeline.from_preset("tiny", device=device)}
        return cls(editor, load_codec(device=device).train(False), text, **geometry)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        image: Any,
        height: int | None = None,
        width: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        on_step: OnStep | None = None,
    ) -> Result:
        """Edit a batch: one instruction for all images, or one for each. None takes the default.

        The image keeps its size; `height` and `width` resize_pictures it before.
        """
        started = time.perf_counter()
        pictures = read_pictures(image)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        rgb, prompts = match_prompts(pictures.rgb, prompts)
        self.check_prompts(prompts)
        rgb = resize_pictures(rgb, height, width)
        size = tuple(rgb.shape[1:3])
        padded = tuple(-(-side // STRIDE) * STRIDE for side in size)
        reference = self.codec.encode(pad_to(rgb.movedim(-1, 1) * 2 - 1, padded).to(self.device)).float()

        steps = self.defaults.steps if steps is None else steps
        scale = self.defaults.guidance if guidance is None else guidance
        extra = self.geometry_tokens(rgb, reference)
        predict = guide_velocity(
            self.predictor(prompts, reference, extra),
            self.predictor([""] * len(rgb), reference, extra),
            scale,
        )
        noise = draw_latent_noise(seed, tuple(reference.shape)).to(self.device)
        latent = sample(predict, noise, make_times(steps, mu=self.defaults.mu), on_step=on_step)
        out = crop_to((self.codec.decode(latent).float() * 0.5 + 0.5).clamp(0, 1), size).movedim(1, -1).cpu()
        notes = pictures.notes + (() if size == padded else (describe_padding(size, padded),))
        absent = (explain_absent(text, each) for text, each in zip(prompts, rgb, strict=True))
        notes += tuple(dict.fromkeys(note for note in absent if note))
        return Result(out, latent, notes, seed, time.perf_counter() - started)

    def predictor(self, prompts: Sequence[str], reference: Tensor, extra: ExtraTokens | None):
        """The velocity of a noisy latent, with these instructions and references."""
        ids = tokenize_instructions(list(prompts)).to(self.device)
        context, dtype = self.text_encoder(ids).float(), self.editor.img_in.weight.dtype

        def predict(x: Tensor, t: Tensor) -> Tensor:
            out = self.editor(x.to(dtype), t, context.to(dtype), [reference.to(dtype)], extra=extra)
            return out.velocity.float()

        return predict

    def geometry_tokens(self, rgb: Tensor, reference: Tensor) -> ExtraTokens | None:
        """The connector's tokens of the references, with ids over the target's grid."""
        if self.connector is None:
            return None
        encoded = [self.geometry.encode(each[None]).tokens for each in rgb]
        tokens = self.connector(torch.cat(encoded).to(self.device))
        config = self.connector.config
        target = sequence_ids([tuple(reference.shape[-2:])], self.editor.config.patch_size)
        return ExtraTokens(tokens, spread_ids(target, config.grid, config.first_axis))

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """ValueError for an instruction that the editor cannot read."""
        for text in prompts:
            fault = self.explain(text)
            if fault:
                raise ValueError(fault)

    @property
    def device(self) -> torch.device:
        return self.editor.img_in.weight.device


def match_prompts(rgb: Tensor, prompts: Sequence[str]) -> tuple[Tensor, list[str]]:
    """Images and instructions of one number; one of either serves all of the other."""
    count = max(len(rgb), len(prompts))
    if len(rgb) not in (1, count) or len(prompts) not in (1, count):
        raise ValueError(
            f"Expected one instruction, or one for each image, got {len(prompts)} for {len(rgb)} images. "
            "Give equal numbers."
        )
    return rgb.expand(count, -1, -1, -1), list(prompts) * (count // len(prompts))


def resize_pictures(rgb: Tensor, height: int | None, width: int | None) -> Tensor:
    """Images (b, h, w, 3) at another size, if one is asked for."""
    size = (height or rgb.shape[1], width or rgb.shape[2])
    if min(size) < STRIDE:
        raise ValueError(
            f"Expected a size of at least {STRIDE} pixels, got {size[1]} x {size[0]}. Enlarge it."
        )
    if size == tuple(rgb.shape[1:3]):
        return rgb
    planes = rgb.movedim(-1, 1)
    planes = torch.nn.functional.interpolate(planes, size, mode="bilinear", antialias=True)
    return planes.movedim(1, -1).clamp(0, 1)


def describe_padding(size: tuple[int, ...], padded: tuple[int, ...]) -> str:
    return (
        f"The image of {size[1]} x {size[0]} pixels was padded to {padded[1]} x {padded[0]}, whole latent "
        "pixels, and cropped back."
    )
