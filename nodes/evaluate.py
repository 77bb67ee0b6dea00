"""Evaluation of a depth map against ground truth."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..models.core.evaluation.compare import compare_views
from .host.shared.progress import each_picture
from .sockets import View, fit_options, fov_input, quantity_input


class CompareViews(io.ComfyNode):
    """The metrics of the monocular depth papers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_CompareViews",
            display_name="Compare Views",
            category="SpatialWeave/Evaluation",
            description="Evaluates a depth map against ground truth: AbsRel, delta, RMSE, SILog and normal "
            "angle.",
            search_aliases=[
                "depth metrics", "absrel", "rmse", "delta1", "evaluate depth", "depth error", "ground truth",
                "score",
            ],
            is_output_node=True,
            inputs=[
                View.Input("view", tooltip="The depth map to evaluate."),
                View.Input("reference", tooltip="The ground truth, of the same size. RMSE is in its unit."),
                io.Combo.Input(
                    "alignment", options=["none", *fit_options()], default="scale",
                    tooltip="Alignment before the evaluation. none: both must have the same unit. scale: "
                    "equal medians. scale and shift: least squares. robust: least absolute error, the least "
                    "sensitive to outliers. State it with every score.",
                ),
                quantity_input(),
                fov_input(),
            ],
            outputs=[
                io.Float.Output(
                    "absrel", display_name="absrel", tooltip="Mean of |error| / true depth; 0 is perfect.",
                ),
                io.Float.Output(
                    "delta1", display_name="delta1",
                    tooltip="Fraction of pixels within a factor of 1.25; 1 is perfect.",
                ),
                io.Float.Output(
                    "delta2", display_name="delta2",
                    tooltip="Fraction of pixels within a factor of 1.25 squared.",
                ),
                io.Float.Output(
                    "delta3", display_name="delta3",
                    tooltip="Fraction of pixels within a factor of 1.25 cubed.",
                ),
                io.Float.Output(
                    "rmse", display_name="rmse", tooltip="Root mean squared error, in the reference's unit.",
                ),
                io.Float.Output(
                    "silog", display_name="silog",
                    tooltip="100 x the standard deviation of the log ratio; invariant to scale.",
                ),
                io.Float.Output(
                    "normal_angle", display_name="normal_angle",
                    tooltip="Mean angle between the normals, in degrees.",
                ),
                io.String.Output(
                    "text", display_name="STRING",
                    tooltip="All scores, the alignment, and the number of pixels evaluated.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, view, reference, alignment, quantity, fov_degrees) -> io.NodeOutput:
        options = {"alignment": alignment, "quantity": quantity, "fov_degrees": fov_degrees}
        comparison = compare_views(view, reference, **options, each=each_picture)
        names = ("absrel", "delta1", "delta2", "delta3", "rmse", "silog", "normal_angle")
        text = comparison.describe()
        return io.NodeOutput(*(comparison.scores[name] for name in names), text, ui=ui.PreviewText(text))
