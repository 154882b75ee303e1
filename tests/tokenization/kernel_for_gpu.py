"""Compiles the fused kernel for an H100 without one: ``python -m tests.tokenization.kernel_for_gpu float16`` says what it is."""

import json
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tokenization.nearest_triton import LAUNCH, tile, two_smallest

TYPES = {"float16": "fp16", "float32": "fp32"}
_WARP = 32


def described(kind: str) -> dict[str, object]:
    """Whether products are on tensor cores and tiles are fetched ahead, and the bytes of shared memory of a block."""
    sizes = tile(getattr(torch, kind))
    types = dict.fromkeys(["rows", "centroids"], f"*{TYPES[kind]}") | {"label": "*i32"}
    types |= dict.fromkeys(["squares", "factors", "least", "second"], "*fp32")
    types |= dict.fromkeys(["n", "k", "dim"], "i32") | dict.fromkeys(sizes, "constexpr")
    signature = {name: types[name] for name in two_smallest.arg_names}
    aligned = [place for place, name in enumerate(signature) if signature[name].startswith("*") or name == "dim"]
    divisible = {(place,): [["tt.divisibility", 16]] for place in aligned}  # as at a launch with a dimension of 64, say
    source = ASTSource(two_smallest, signature, constexprs=sizes, attrs=divisible)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, _WARP), options=LAUNCH)
    code = compiled.asm["ptx"]
    return {
        "tensor_cores": "wgmma.mma_async" in code,
        "fetches_ahead": "cp.async" in code,
        "shared_memory": compiled.metadata.shared,
    }


if __name__ == "__main__":
    print(json.dumps(described(sys.argv[1])))
