"""What a node changed about its inputs: shown once, under the node in the browser and in ComfyUI's log."""

from __future__ import annotations

import logging
from collections.abc import Sequence

logger = logging.getLogger("spatialweave.inputs")
NOTHING = "Taken as it came."


def tell(notes: Sequence[str], hidden) -> str:
    """The notes as one text, a line each, shown under the node of `hidden`; no notes clear the last run's."""
    text = "\n".join(notes) or NOTHING
    if notes:
        logger.info(text)
    show(text, getattr(hidden, "unique_id", None))
    return text


def show(text: str, node_id: str | None) -> None:
    """Set the text under a node, if a page is open."""
    if node_id is None:
        return
    # late: it is the whole web server, and importing this pack must stay cheap
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_progress_text(text, node_id)
