"""Model and factor files: HDF5, no pickle, written to a temporary file and renamed."""
