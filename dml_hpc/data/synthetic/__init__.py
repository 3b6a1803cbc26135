"""Synthetic rows whose answers are known."""
