"""Arrays to files that other programs read, one format each.

No writer normalizes a depth to 0-1 or applies a curve to it.
"""
