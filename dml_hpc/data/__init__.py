"""Shards: write, open, partition, sample, import."""
