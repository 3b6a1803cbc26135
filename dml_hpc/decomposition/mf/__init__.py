"""Matrix factorisation of ratings, one file an algorithm."""

ALGORITHMS = ("sgd",)
SCHEDULES = ("constant", "inverse-time", "cosine", "bold-driver", "adagrad")
"""How the step size of ``sgd`` changes; see `dml_hpc.decomposition.mf.steps`."""
EPOCHS = 20
"""So many passes over the ratings when nothing is said."""
