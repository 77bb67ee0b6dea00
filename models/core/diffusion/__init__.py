"""Noise schedules and guidance: functions of numbers, no network."""
