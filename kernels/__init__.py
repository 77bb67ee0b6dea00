"""Our public ops, one line each; none yet: every forward pass runs on torch's own attention."""
