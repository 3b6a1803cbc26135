"""Batch jobs of Slurm: scripts made from templates, checked against the cluster, submitted and followed."""
