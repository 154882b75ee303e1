"""The two smallest scores of each row: products and their minimum in one kernel, so that the n × k scores are never written.

Packages' kernels of this kind (flash-kmeans, fastkmeans) give the smallest score alone, in whatever precision the tensor cores
have. The runner-up is what says whether that precision was enough (``tokenization.device_nearest``).
"""

from contextlib import nullcontext

import torch
import triton
import triton.language as tl

_ROWS, _TOKENS, _FEATURES = 128, 128, 64
"""A program's tile: 64 KiB of float32 products in the registers of eight warps, _STAGE bytes a stage in shared memory."""
_STAGE = (_ROWS + _TOKENS) * _FEATURES * 2
LAUNCH = {"num_warps": 8, "num_stages": 3}


@triton.jit(do_not_specialize=["n"])  # a call has any number of rows, and none is worth a kernel of its own
def two_smallest(  # type: ignore[no-untyped-def]  # Triton reads the annotations, and knows none of typing's
    rows,
    centroids,
    squares,
    factors,
    least,
    label,
    second,
    n,
    k,
    dim,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """Of rows (n, dim) and centroids (k, dim), both row-major and of one dtype: smallest score |c|² − factor x·c, its centroid
    (the lowest index on ties) and the next smallest score. float32 products are of three TF32 ones."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    in_rows = row < n
    factor = tl.load(factors + row, in_rows, other=0.0)
    smallest = tl.full((ROWS,), float("inf"), tl.float32)
    runner_up = tl.full((ROWS,), float("inf"), tl.float32)
    nearest = tl.zeros((ROWS,), tl.int32)
    for first in range(0, k, TOKENS):
        token = first + tl.arange(0, TOKENS)
        in_tokens = token < k
        products = tl.zeros((ROWS, TOKENS), tl.float32)
        for start in range(0, dim, FEATURES):
            feature = start + tl.arange(0, FEATURES)
            in_features = feature < dim
            left = tl.load(rows + row[:, None] * dim + feature[None, :], in_rows[:, None] & in_features[None, :], other=0.0)
            right = tl.load(
                centroids + token[None, :].to(tl.int64) * dim + feature[:, None],
                in_tokens[None, :] & in_features[:, None],
                other=0.0,
            )
            products = tl.dot(left, right, products, input_precision="tf32x3")
        square = tl.load(squares + token, in_tokens, other=float("inf"))
        scores = square[None, :] - factor[:, None] * products
        here = tl.min(scores, axis=1)
        place = tl.argmin(scores, axis=1)
        others = tl.where(tl.arange(0, TOKENS)[None, :] == place[:, None], float("inf"), scores)
        runner_up = tl.minimum(tl.maximum(smallest, here), tl.minimum(runner_up, tl.min(others, axis=1)))
        nearest = tl.where(here < smallest, first + place, nearest)
        smallest = tl.minimum(smallest, here)
    tl.store(least + row, smallest, in_rows)
    tl.store(label + row, nearest, in_rows)
    tl.store(second + row, runner_up, in_rows)


def nearest_two(
    rows: torch.Tensor, centroids: torch.Tensor, squares: torch.Tensor, factors: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``two_smallest`` of contiguous rows (n, dim) and centroids (k, dim), both float16 or both float32, with |c|² (k,) float32
    and factors (n,) float32: least score (n,) float32, label (n,) int32, second score (n,) float32 (infinite of one centroid)."""
    n, dim = rows.shape
    least = torch.empty(n, dtype=torch.float32, device=rows.device)
    label, second = torch.empty(n, dtype=torch.int32, device=rows.device), torch.empty_like(least)
    with torch.cuda.device(rows.device) if rows.is_cuda else nullcontext():  # a pool's threads have a current device of their own
        two_smallest[(triton.cdiv(n, _ROWS),)](
            *(rows, centroids, squares, factors, least, label, second, n, len(centroids), dim),
            **tile(rows.dtype),
            **LAUNCH | {"num_stages": _stages(rows.device)},
        )
    return least, label, second


def _stages(device: torch.device) -> int:
    """As many as LAUNCH says, or as the card has shared memory for."""
    most = LAUNCH["num_stages"]
    if device.type != "cuda":
        return most
    room: int = torch.cuda.get_device_properties(device).shared_memory_per_block_optin
    return max(1, min(most, room // _STAGE))


def tile(dtype: torch.dtype) -> dict[str, int]:
    """Sizes of a program's tile; float32 takes twice the bytes a feature."""
    return {"ROWS": _ROWS, "TOKENS": _TOKENS, "FEATURES": _FEATURES if dtype == torch.float16 else _FEATURES // 2}
