"""Depth to look at: colors with a legend, a relief, an orbit, a contact sheet."""
