"""What launches the CUDA kernels: each ``foo.py`` here launches those of ``kernels/foo.cu``, on a `Device`."""
