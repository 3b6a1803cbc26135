"""Truncated singular value decompositions, one file a method."""
