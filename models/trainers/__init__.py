"""Builders of training runs by the `system` of a recipe.

Only here and in benchmarks/ do systems meet the world.
"""
