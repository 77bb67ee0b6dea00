"""Weights files: reading, checking, converting, quantizing; the registry of published ones, and their download."""
