"""Metrics of a depth or normal map against the truth."""
