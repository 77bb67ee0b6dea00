"""Weights files: reading, checking, converting, quantizing.

The registry of published ones, and their download.
"""
