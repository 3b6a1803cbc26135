"""Optimisers and step-size schedules: pure functions of state, gradient and time."""

SCHEDULES = ("constant", "step", "inverse-time", "inverse-sqrt", "cosine")
