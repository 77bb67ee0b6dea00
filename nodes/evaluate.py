"""How near a depth comes to the truth."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..models.core.evaluation.compare import compare_views
from .host.shared.progress import each_picture
from .sockets import View, fit_options, fov_input, quantity_input


class CompareViews(io.ComfyNode):
    """The figures of the depth papers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_CompareViews",
            display_name="Compare Views",
            category="SpatialWeave/Evaluation",
            description="Scores a depth against a true one: AbsRel, delta, RMSE, SILog and the angle of the normals.",
            search_aliases=["depth metrics", "absrel", "rmse", "delta1", "evaluate depth", "depth error", "ground truth", "score"],
            is_output_node=True,
            inputs=[
                View.Input("view", tooltip="The depth to judge."),
                View.Input("reference", tooltip="The truth, of the same size. Its unit is the unit of RMSE."),
                io.Combo.Input(
                    "alignment", options=["none", *fit_options()], default="scale",
                    tooltip="What is fitted before scoring. none: nothing, both must have one unit. scale: the medians agree. scale and "
                    "shift: least squares. robust: by absolute error, which outliers move least. Name it beside every figure.",
                ),
                quantity_input(),
                fov_input(),
            ],
            outputs=[
                io.Float.Output("absrel", display_name="absrel", tooltip="Mean of error / true depth; 0 is perfect."),
                io.Float.Output("delta1", display_name="delta1", tooltip="Share of pixels within a factor of 1.25; 1 is perfect."),
                io.Float.Output("delta2", display_name="delta2", tooltip="Share of pixels within a factor of 1.25 squared."),
                io.Float.Output("delta3", display_name="delta3", tooltip="Share of pixels within a factor of 1.25 cubed."),
                io.Float.Output("rmse", display_name="rmse", tooltip="Root of the mean squared error, in the reference's unit."),
                io.Float.Output("silog", display_name="silog", tooltip="100 x the deviation of the log ratio; blind to one scale."),
                io.Float.Output("normal_angle", display_name="normal_angle", tooltip="Mean angle between the normals in degrees."),
                io.String.Output("text", display_name="STRING", tooltip="All figures, the alignment, and how many pixels count."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, view, reference, alignment, quantity, fov_degrees) -> io.NodeOutput:
        found = compare_views(view, reference, alignment=alignment, quantity=quantity, fov_degrees=fov_degrees, each=each_picture)
        names = ("absrel", "delta1", "delta2", "delta3", "rmse", "silog", "normal_angle")
        text = found.describe()
        return io.NodeOutput(*(found.scores[name] for name in names), text, ui=ui.PreviewText(text))
