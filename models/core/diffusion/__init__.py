"""Time, noise and guidance: functions of numbers, no network."""
