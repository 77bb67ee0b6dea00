"""The menu name of the weights that ship with the pack."""

TINY = "tiny (shipped with the pack)"
