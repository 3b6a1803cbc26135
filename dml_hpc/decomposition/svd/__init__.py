"""Truncated singular value decompositions, one file a method."""

METHODS = ("gram", "tsqr", "randomized", "incremental")
