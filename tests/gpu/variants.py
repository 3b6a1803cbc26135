"""The instances of each CUDA kernel that the project launches: what `test_compile` builds for every architecture.

Names are in namespace dml. HOT are those that must not spill a register.
"""

from dml_hpc.kernels.cuda import normal_equations, rating_sgd
from dml_hpc.kernels.cuda.products import SHAPES

_FLAGS = ("true", "false")
_STORED = [(stored, kind) for kind in ("float", "double") for stored in ("half", "bfloat16", "float", "double")
           if (stored, kind) != ("bfloat16", "double")]

_SPARSE = [f"{stored}, {kind}, {index}" for kind in ("float", "double") for stored in ("float", "double")
           for index in ("int", "long long")]

_ENTRIES = [f"{stored}, {index}, {kind}" for stored in ("float", "double") for index in ("int", "long long")
            for kind in ("float", "double")]
_PACKED = {"half": 8, "float": 4, "double": 2}

VARIANTS: dict[str, list[str]] = {
    "blocks.cu": [*(f"prepared<{stored}, {kind}, {pack}>" for stored, packed in _PACKED.items() for pack in (1, packed)
                    for kind in ("float", "double")),
                  *(f"sum_of_squares<{stored}, {pack}>" for stored, packed in _PACKED.items() for pack in (1, packed)),
                  "add_parts", "add_fixed<float>", "add_fixed<double>"],
    "csr_products.cu": [name for kinds in _ENTRIES for name in (
        *(f"sweep<{kinds}, {pack}, {cut}>" for pack in (1, 2 if kinds.endswith("double") else 4) for cut in _FLAGS),
        f"dense<{kinds}>")],
    "csr_fixed.cu": [*(f"scatter_fixed<{kinds}>" for kinds in _ENTRIES), "settle_shifted"],
    "glm.cu": [name for stored, kind in _STORED for name in (
        *(f"gradient_of_rows<{stored}, {kind}, {vector}, {wide}>" for vector in _FLAGS for wide in _FLAGS),
        *(f"fixed_point_of_rows<{stored}, {kind}, {wide}>" for wide in _FLAGS),
        *(f"scores<{stored}, {kind}, {vector}>" for vector in _FLAGS),
        *(f"gradient_of_columns<{stored}, {kind}, {sums}>" for sums in (kind, "long long")),
        f"fixed_point_steps<{stored}, {kind}>", f"sequential_sgd<{stored}, {kind}>")]
    + [f"add_partials<{kind}, {kind}>" for kind in ("float", "double", "long long")] + ["add_partials<double, float>"],
    "glm_sparse.cu": [f"{kernel}<{stored}, {index}, {kind}>" for stored in ("float", "double")
                      for index in ("int", "long long") for kind in ("float", "double")
                      for kernel in ("gradient_of_sparse", "fixed_point_of_sparse", "scores_of_sparse",
                                     "sequential_sparse", "sums_of_parts")]
    + [f"add_parts<{kinds}, {out}>" for kinds in _ENTRIES for out in (kinds.split(", ")[-1], "long long")]
    + ["settle<float>", "settle<double>", "worth_again<double>"],
    "long_rows.cu": ["find_parts"],
    "network.cu": [*(f"gather<{stored}, {kind}>" for stored, kind in _STORED),
                   *(name for kind in ("float", "double") for name in (
                       *(f"{kernel}<{kind}, {activation}>" for kernel in ("activate", "through")
                         for activation in range(3)),
                       f"softmax_slopes<{kind}>", f"softmax_slopes_wide<{kind}>", f"squared_slopes<{kind}>",
                       f"add_partials<{kind}>")),
                   *(name for kinds in _SPARSE for name in (
                       f"sparse_products<{kinds}, 1>", f"sparse_products<{kinds}, 4>", f"scatter_slopes<{kinds}>"))],
    "network_rows.cu": [*(name for stored, kind in _STORED for name in (
                            f"row_products<{stored}, {kind}, false>", f"row_squares<{stored}, {kind}>",
                            f"fixed_products<{stored}, {kind}>")),
                        *(name for kind in ("float", "double") for name in (
                            f"row_products<{kind}, {kind}, true>", f"row_losses<{kind}>", f"row_masses<{kind}>",
                            f"row_decisions<{kind}>")),
                        *(name for kinds in _SPARSE for name in (
                            f"sparse_row_squares<{kinds}>", f"sparse_fixed_products<{kinds}>"))],
    "normal_equations.cu": [f"solve<{tile}>" for tile in sorted({tile for tile, _ in normal_equations.SHAPES})],
    "products.cu": ["add_products", *(f"fused<{stored}, {', '.join(map(str, shape))}, {sums}>"
                                      for sums in ("double", "long long") for stored in ("half", "float")
                                      for shape in SHAPES)],
    "rating_sgd.cu": [f"{kernel}<{stored}, {lanes}, {packs}>" for lanes, packs in rating_sgd.SHAPES
                      for stored in ("float", "half") for kernel in ("sgd", "predict")],
    "scaling.cu": [f"{kernel}<{kind}>" for kernel in ("fold", "fold_biases", "pull_back")
                   for kind in ("float", "double")],
    "softmax_steps.cu": [*(f"steps<{stored}, {kind}>" for stored, kind in _STORED),
                         *(f"sparse_steps<{kinds}>" for kinds in _SPARSE)],
    "compression.cu": ["encode_bfloat16", "encode_float16", "widen_float16",
                       *(f"{kernel}<{kind}>" for kernel in ("write_exact", "read_exact")
                         for kind in ("half", "bfloat16"))],
    "sums.cu": [*(f"add_up<{pair}>" for pair in (
                    "float,float", "double,double", "long long,long long", "half,half", "bfloat16,bfloat16",
                    "long long,float", "long long,double", "half,float", "bfloat16,float", "float,half",
                    "float,bfloat16", "double,float")),
                "average<float>", "average<double>",
                *(f"add<{kind}>" for kind in ("float", "double", "long long", "half", "bfloat16")),
                *(f"gather<unsigned {word}>" for word in ("short", "int", "long long"))],
    "updates.cu": [f"take_step<{weights},{summed}>" for weights in ("float", "double")
                   for summed in (weights, "long long")],
}
HOT: dict[str, list[str]] = {
    "blocks.cu": VARIANTS["blocks.cu"],
    "csr_products.cu": VARIANTS["csr_products.cu"],
    "csr_fixed.cu": VARIANTS["csr_fixed.cu"],
    "normal_equations.cu": VARIANTS["normal_equations.cu"],
    "products.cu": VARIANTS["products.cu"],
    "glm.cu": [name for name in VARIANTS["glm.cu"] if not name.startswith("sequential_sgd")],
    "glm_sparse.cu": [name for name in VARIANTS["glm_sparse.cu"] if not name.startswith("sequential_sparse")],
    "network.cu": VARIANTS["network.cu"],
    "rating_sgd.cu": VARIANTS["rating_sgd.cu"],
    "network_rows.cu": VARIANTS["network_rows.cu"],
    "compression.cu": ["encode_bfloat16", "encode_float16", "widen_float16"],
    "sums.cu": ["add_up<float,float>", "add_up<double,double>", "add_up<long long,long long>", "add_up<half,half>",
                "add_up<bfloat16,bfloat16>", "average<float>", "average<double>"],
    "updates.cu": ["take_step<float,float>", "take_step<double,double>", "take_step<float,long long>",
                   "take_step<double,long long>"],
}
