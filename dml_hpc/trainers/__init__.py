"""Where a gradient meets a communicator: one file an algorithm."""

ALGORITHMS = ("sync", "average")
