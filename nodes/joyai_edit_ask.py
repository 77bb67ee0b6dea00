"""Questions about images and their novel views, answered by the language model of JoyImage's encoder."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..models.joyai_edit.question import FEWEST_TOKENS, MOST_TOKENS
from .host.joyai_edit.ask import ask_about
from .host.shared.notes import tell

VIEWS = 8  # sockets: the picture and a novel view for each other multiple of 45 degrees of yaw


def decoding_options() -> list[io.DynamicCombo.Option]:
    """How the next token is chosen, with the parameters that core's generation has."""
    return [
        io.DynamicCombo.Option("greedy", []),
        io.DynamicCombo.Option("sample", [
            io.Float.Input(
                "temperature", default=0.7, min=0.01, max=2.0, step=0.01,
                tooltip="Divides the logits: lower is closer to greedy.",
            ),
            io.Int.Input(
                "top_k", default=20, min=0, max=1000,
                tooltip="Only the k most probable tokens are drawn from; 0: all.",
            ),
            io.Float.Input(
                "top_p", default=0.8, min=0.0, max=1.0, step=0.01,
                tooltip="Only the most probable tokens whose probabilities sum to this are drawn from.",
            ),
            io.Int.Input(
                "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF,
                tooltip="The same seed draws the same answer.",
            ),
        ]),
    ]  # fmt: skip


class AskAboutViews(io.ComfyNode):
    """A spatial question about several views of a scene."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        views = io.Autogrow.TemplatePrefix(
            io.Image.Input("image", tooltip="An image, or a batch of views of one size."),
            prefix="image", min=0, max=VIEWS,
        )  # fmt: skip
        return io.Schema(
            node_id="SpatialWeave_AskAboutViews",
            display_name="Ask about Views",
            category="SpatialWeave/JoyAI-Image",
            description="Asks the language model inside JoyImage's text encoder a question about an image "
            "and novel views of it. Runs with M-RoPE positions and DeepStack features, which Generate Text "
            "leaves out for this encoder.",
            search_aliases=[
                "vqa", "qwen3-vl", "spatial question", "caption", "llm", "joyai", "visual question answering",
                "novel views",
            ],
            is_output_node=True,
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="JoyImage's encoder (Load CLIP, type joyimage), or another Qwen3-VL with its "
                    "vision tower and language head.",
                ),
                io.String.Input(
                    "question", multiline=True, default="",
                    tooltip="The question, in any language that Qwen3-VL reads.",
                ),
                io.DynamicCombo.Input(
                    "decoding", options=decoding_options(),
                    tooltip="greedy: always the most probable token, so the answer is reproducible. sample: "
                    "drawn at random from the most probable ones.",
                ),
                io.Int.Input(
                    "max_tokens", default=512, min=1, max=8192,
                    tooltip="The answer's length at most, in tokens, about 3/4 of a word each.",
                ),
                io.Int.Input(
                    "tokens_per_image", default=2048, min=FEWEST_TOKENS, max=MOST_TOKENS, advanced=True,
                    tooltip="Images of more tokens (32 x 32 pixels each) are scaled down to this. The cost "
                    "of the first token grows with the square of all images' tokens.",
                ),
                io.Autogrow.Input(
                    "images", template=views, optional=True,
                    tooltip="The image first, then views of it, for example from camera edits: one to four "
                    "answer most questions. A batch counts as several.",
                ),
            ],
            outputs=[io.String.Output("answer", display_name="STRING", tooltip="The answer.")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, clip, question, decoding, max_tokens, tokens_per_image, images=None) -> io.NodeOutput:
        limits = {"max_tokens": max_tokens, "per_image": tokens_per_image}
        answer, notes = ask_about(clip, images, question, sampling=decoding, **limits)
        tell(notes, cls.hidden)
        return io.NodeOutput(answer, ui=ui.PreviewText(answer))
