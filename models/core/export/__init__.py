"""Arrays to files that other programs read, one format each.

No writer squeezes a depth to 0-1 or bends it by a curve.
"""
