"""Matrix factorisation of ratings, one file an algorithm."""

ALGORITHMS = ("sgd", "als")
SCHEDULES = ("constant", "inverse-time", "cosine", "bold-driver", "adagrad")
"""How the step size of ``sgd`` changes; see `dml_hpc.decomposition.mf.steps`."""
SOLVERS = ("cholesky", "cg")
"""How ``als`` solves for a row; see `dml_hpc.kernels.normal_equations`."""
EPOCHS = {"sgd": 20, "als": 10}
"""So many passes over the ratings when nothing is said."""
L2: dict[str, float | str] = {"sgd": 0.02, "als": "auto", "implicit": 0.1}
"""The penalty when nothing is said: a rating, or, of implicit ones, a row; see `dml_hpc.decomposition.mf.penalties`."""
ALPHA = 40.0
"""What a rating of 1 adds to the confidence of an implicit one (Hu, Koren and Volinsky, ICDM 2008)."""
