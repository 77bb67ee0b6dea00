"""What a node changed about its inputs: shown once, under the node in the browser and in ComfyUI's log."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from comfy_execution.utils import get_executing_context

logger = logging.getLogger("spatialweave.inputs")
_shown: set[tuple[str, str]] = set()  # (client, node) with a text under the node: a later run clears it


def tell(notes: Sequence[str], hidden) -> str:
    """The notes as one text, a line each, shown under the node of `hidden`; no notes clear the last run's."""
    text = "\n".join(notes)
    if notes:
        logger.info(text)
    show(text, getattr(hidden, "unique_id", None))
    return text


def running_node() -> str | None:
    """The id of the node that runs, also one of core's that calls our code; None outside a run."""
    context = get_executing_context()
    return context and context.node_id


def show(text: str, node_id: str | None) -> None:
    """Set the text under a node in the page whose run this is; an empty text only clears an earlier one."""
    if node_id is None:
        return
    # late: it is the whole web server, and importing this pack must stay cheap
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    client = getattr(server, "client_id", None)  # without one, core would send it to every open page
    if client is None or not (text or (client, node_id) in _shown):
        return
    (_shown.add if text else _shown.discard)((client, node_id))
    server.send_progress_text(text, node_id, sid=client)
