"""Ratings of items by users: imported, cut into a grid of blocks, opened block by block."""
