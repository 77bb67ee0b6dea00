"""Edits as data: published dataset layouts, and the encodings that training reads."""
