"""Where a gradient meets a communicator: one file an algorithm."""

ALGORITHMS = ("sync", "average", "local", "lbfgs")
EXCHANGES = ("auto", "dense", "sparse")
"""How ``sync`` sums the gradients of sparse rows: whole, or what is not zero; auto measures both."""
WEIGHTINGS = ("equal", "rows")
"""What each machine's model counts in ``average``: the same, or as many as its examples."""
