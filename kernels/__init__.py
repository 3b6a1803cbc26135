"""The innermost loops: each ``foo.py`` is the CPU kernel (Numba); its CUDA twin, where there is one, is ``foo.cu``."""
