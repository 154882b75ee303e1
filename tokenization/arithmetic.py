"""Which arithmetic the processor does fast: 8-bit integer products (VNNI, AMX), else float32."""

import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Literal

Arithmetic = Literal["int8", "float32"]

_INTEGER_UNITS = {"avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX VNNI", "amx_int8": "AMX", "i8mm": "I8MM"}
WORTH_INTEGERS = 2**32
"""Fewest products for which ``auto`` tries 8-bit ones."""
_TRIAL = (512, 256, 2048)
_TRIALS = 3


@lru_cache(maxsize=1)
def integer_unit() -> str | None:
    """The unit of this processor that multiplies 8-bit integers in one instruction, by name; None without one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    flags = {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()}
    return next((name for flag, name in reversed(_INTEGER_UNITS.items()) if flag in flags), None)


@lru_cache(maxsize=1)
def fastest() -> Arithmetic:
    """``int8`` where the processor has a unit for it, PyTorch is there and a small product is faster by it, else ``float32``."""
    if integer_unit() is None:
        return "float32"
    try:
        import torch
    except ImportError:
        return "float32"
    rows, dim, columns = _TRIAL
    left, right = torch.ones(rows, dim, dtype=torch.int8), torch.ones(columns, dim, dtype=torch.int8)
    wide, wider = left.float().numpy(), right.float().numpy()

    def seconds(work: Callable[[], object]) -> float:
        clock = time.perf_counter()
        work()
        return time.perf_counter() - clock

    by_integers = min(seconds(lambda: torch._int_mm(left, right.T)) for _ in range(_TRIALS))
    by_floats = min(seconds(lambda: wide @ wider.T) for _ in range(_TRIALS))
    return "int8" if by_integers < by_floats else "float32"


def chosen(backend: str, products: int) -> str:
    """The backend that scores so many products: ``auto`` is ``int8`` where that is fastest and the work is worth it, else
    ``float32``; others are themselves."""
    if backend != "auto":
        return backend
    return fastest() if products >= WORTH_INTEGERS else "float32"  # small work is not worth PyTorch's import


def described(backend: str, products: int) -> str:
    """The path that the assignment of so many products (rows × centroids × dimension) takes here, for logs and reports."""
    kind = chosen(backend, products)
    named = {
        "int8": f"8-bit candidates ({integer_unit() or 'no unit for them'})",
        "float32": "float32 candidates",
        "torch": f"candidates by PyTorch{' on a GPU' if kind == 'torch' and _has_card() else ''}",
        "faiss": "candidates by faiss",
    }
    return f"{named[kind]}, decided in float64"


def _has_card() -> bool:
    import torch

    return bool(torch.cuda.is_available())
