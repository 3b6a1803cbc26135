"""The instances of each CUDA kernel that the project launches: what `test_compile` builds for every architecture.

Names are in namespace dml. HOT are those that must not spill a register.
"""

VARIANTS: dict[str, list[str]] = {
}
HOT: dict[str, list[str]] = {
}
