"""Experiments of papers, redone; see each file."""
