"""The menu name of the weights that ship with the pack, and what is said of a file that is not there."""

from collections.abc import Sequence

TINY = "tiny (shipped with the pack)"


def explain_missing(name: str | None, listed: Sequence[str], folder: str, remedy: str) -> str | None:
    """A sentence on a choice that is no longer in a loader's list; None for one that is, or for a link."""
    if name is None or name in listed:
        return None
    return f"Expected {name} in ComfyUI's models/{folder}, got no such file. {remedy}"
