"""The best of a batch of candidates, by any score."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..models.core.evaluation.candidates import Ranking, rank_by_agreement, rank_scores
from .host.shared.nested_latents import take_row
from .host.shared.progress import each_picture
from .sockets import View

ORDERS = ["larger is better", "smaller is better"]


class PickBest(io.ComfyNode):
    """One candidate of several, with its image, depth and latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_PickBest",
            display_name="Pick Best",
            category="SpatialWeave/Evaluation",
            description="Keeps the best of a batch of candidates: the one whose depth agrees most with a "
            "second estimate of its image, or the one of the best score of any other node.",
            search_aliases=[
                "best of n", "rerank", "choose", "candidates", "select best", "depth consistency", "index",
            ],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                View.Input(
                    "view", optional=True, tooltip="The candidates' depth maps, one batch.",
                ),
                View.Input(
                    "reference", optional=True,
                    tooltip="A second estimate of the candidates' depth, in the same order: for example from "
                    "View from MoGe, View from DA3, or Image to Depth Latent. The smallest AbsRel after "
                    "alignment by scale wins.",
                ),
                io.Float.Input(
                    "scores", optional=True, force_input=True,
                    tooltip="Instead of a reference: one number for each candidate, as a list.",
                ),
                io.Combo.Input(
                    "order", options=ORDERS, default=ORDERS[0],
                    tooltip="Which of the scores is the best. Does not matter with a reference.",
                ),
                io.Image.Input("image", optional=True, tooltip="The candidates' images, one batch."),
                io.Latent.Input(
                    "latent", optional=True, tooltip="The candidates' latent, plain or joint, one batch.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "image", display_name="IMAGE",
                    tooltip="The best one's image: of image, else the VIEW's own.",
                ),
                View.Output("view", display_name="VIEW", tooltip="The best one's depth map."),
                io.Latent.Output("latent", display_name="LATENT", tooltip="The best one's latent."),
                io.Int.Output("index", display_name="index", tooltip="Its place in the batch, from 0."),
                io.String.Output(
                    "text", display_name="STRING", tooltip="The score of every candidate, a line each.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, view=None, reference=None, scores=None, order=(ORDERS[0],), image=None, latent=None
    ) -> io.NodeOutput:
        view, reference, image, latent = map(take_single, (view, reference, image, latent))
        ranking = rank(view, reference, scores, order[0] == ORDERS[0])
        check_batches(len(ranking.scores), view=view, image=image, latent=latent)
        best, text = ranking.best, ranking.describe()
        view = None if view is None else view[best]
        if image is not None:
            image = image[best : best + 1]
        elif view is not None:
            image = view.image
        latent = None if latent is None else take_row(latent, best)
        return io.NodeOutput(image, view, latent, best, text, ui=ui.PreviewText(text))


def take_single(values: list | None):
    """The one value of an input, which arrives as a list; None if it is not connected."""
    if not values:
        return None
    if len(values) > 1:
        raise ValueError(
            f"Expected one batch of candidates at each input but scores, got a list of {len(values)}. Join "
            "them into one batch."
        )
    return values[0]


def rank(view, reference, scores: list[float] | None, larger_is_better: bool) -> Ranking:
    """By the one of reference and scores that is connected."""
    if (reference is None) == (not scores):
        got = "both" if scores else "neither"
        raise ValueError(f"Expected a reference or scores, got {got}. Connect one of them.")
    if scores:
        return rank_scores(scores, larger_is_better=larger_is_better)
    if view is None:
        raise ValueError("Expected a view to compare the reference with, got none. Connect the candidates'.")
    return rank_by_agreement(view, reference, each=each_picture)


def check_batches(count: int, *, view, image, latent) -> None:
    """As many candidates at every input as there are scores."""
    sizes = {} if view is None else {"view": len(view)}
    sizes |= {} if image is None else {"image": len(image)}
    sizes |= {} if latent is None else {"latent": latent["samples"].shape[0]}
    wrong = [f"{size} at {name}" for name, size in sizes.items() if size != count]
    if wrong or not sizes:
        raise ValueError(
            f"Expected {count} candidates, one for each score, got {', '.join(wrong) or 'none'}. Connect the "
            "batch that was scored."
        )
