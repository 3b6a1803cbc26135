"""dml-hpc: distributed machine learning over MPI. Importing it starts nothing: no MPI, no CUDA, no NumPy."""

__version__ = "0.1.0"
