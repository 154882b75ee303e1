"""Nearest centroids on a GPU: float16 first, three TF32 products for what that cannot tell, float64 for the rest.

A row is certain of its nearest centroid where the second smallest score lies above the smallest by more than both can be off:
then exact arithmetic has the same one. The fused kernel (``tokenization.nearest_triton``) gives both. The rows that float16
leaves uncertain go through it again, and the few that are uncertain then are scored in float64. What even that cannot tell,
ties mostly, has no candidate: ``tokenization.assignment`` decides it by differences.

Tensor cores multiply float16 as fast as bfloat16, and it rounds by a quarter as much. Its range is the smaller: so each row,
and all centroids together, are first divided by a power of two.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from tokenization.candidates import Candidates
from tokenization.nearest_kernels import OVERFULL
from tokenization.scratch import Scratch
from tokenization.vectors import FloatArray

_CUT = 2.0**-22
"""Share by which a sum of float32 may be off at each term: a tensor core may cut where a processor rounds."""
_SPLIT = 2.0**-18
"""Share by which three TF32 products may be off: 2⁻²⁰ a term that they leave out, four times as much for safety."""
_CUT_WIDE = 2.0**-52
_ROUNDED = 2.0**-53
_WIDE_SCORES = 2**24
_ALIGNED = 16
"""Features that a kernel reads at once: it knows of a number that is a multiple, and reads any other one by one."""


class FusedFinder:
    """Certain nearest centroids; ``centroids`` (k, dim) float32, ``squares`` (k,) their squared norms, ``device`` a GPU."""

    rows = 2**16

    def __init__(
        self, centroids: FloatArray | torch.Tensor, squares: npt.NDArray[np.float64] | torch.Tensor, device: str = "cuda"
    ) -> None:
        # Threads of a pool have a current device of their own.
        self._device = torch.device(device if device != "cuda" else f"cuda:{torch.cuda.current_device()}")
        self._centroids = torch.as_tensor(centroids).to(self._device)
        self._wide_squares = torch.as_tensor(squares).to(self._device)
        self._squares = self._wide_squares.float()
        self._scale = _power_above(self._centroids.abs().max())
        self._aligned = _padded(self._centroids)
        self._narrow = _padded((self._centroids / self._scale).half())
        self._largest = float(self._wide_squares.max().sqrt())
        whole = self._narrow[:, : self._centroids.shape[1]].float() * self._scale
        self._coarsest = float(_norms(self._centroids - whole).max())

    def __call__(self, block: FloatArray, norms: npt.NDArray[np.float64], memory: Scratch) -> Candidates:  # noqa: ARG002
        """See ``candidates.Finder``: one candidate a row, or OVERFULL where none is certain."""
        rows = torch.from_numpy(block).to(self._device)
        labels = self.certain(NarrowedRows.of(rows, torch.from_numpy(norms).to(self._device)))
        kept = labels.cpu().numpy().astype(np.int32)
        counts = np.where(kept < 0, OVERFULL, 1).astype(np.int32)
        zeros = np.zeros(len(kept), np.float32)
        return Candidates(kept[:, None], zeros[:, None], counts, zeros)

    def certain(self, rows: "NarrowedRows") -> torch.Tensor:
        """Labels (n,) int64 of rows on the device; −1 where not certain."""
        labels = self._by_float16(rows)
        for search in (self._by_float32, self._by_float64):
            unsure = torch.nonzero(labels < 0)[:, 0]
            if len(unsure):
                labels[unsure] = search(rows.rows[unsure], rows.norms[unsure])
        return labels

    def _by_float16(self, rows: "NarrowedRows") -> torch.Tensor:
        from tokenization.nearest_triton import nearest_two

        longest = self._largest + self._coarsest
        off = rows.lost * longest + rows.norms * self._coarsest + self._summed(_CUT, rows.norms + rows.lost, longest)
        found = nearest_two(rows.narrow, self._narrow, self._squares, 2 * rows.scales * self._scale)
        return self._told(*found, rows.norms, off, 4 * _CUT)

    def _by_float32(self, rows: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        from tokenization.nearest_triton import nearest_two

        twice = torch.full_like(norms, 2, dtype=torch.float32)
        off = _SPLIT * norms * self._largest + self._summed(_CUT, norms, self._largest)
        found = nearest_two(_padded(rows), self._aligned, self._squares, twice)
        return self._told(*found, norms, off, 4 * _CUT)

    def _by_float64(self, rows: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        step = max(1, _WIDE_SCORES // len(self._centroids))
        parts = zip(rows.split(step), norms.split(step), strict=True)
        squared = (self._centroids.shape[1] + 4) * _CUT_WIDE  # here |c|² is no better than the sum it is
        return torch.cat(
            [
                self._told(*self._scored(part), sizes, self._summed(_CUT_WIDE, sizes, self._largest), squared)
                for part, sizes in parts
            ]
        )

    def _scored(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What ``nearest_two`` gives, in float64; of two centroids at least, since one is always certain."""
        scores = torch.addmm(self._wide_squares, rows.double(), self._centroids.double().T, alpha=-2)
        values, places = scores.topk(2, dim=1, largest=False)
        return values[:, 0], places[:, 0], values[:, 1]

    def _told(
        self,
        least: torch.Tensor,
        label: torch.Tensor,
        second: torch.Tensor,
        norms: torch.Tensor,
        off: torch.Tensor,
        squared: float,
    ) -> torch.Tensor:
        """Labels, −1 where two scores may be in the wrong order: products are off by at most ``off`` (n,), |c|² by ``squared``
        of it. Nor is a row certain whose distances float64 differences would not tell apart, which decide elsewhere."""
        each = 2 * off + squared * self._largest * self._largest
        differences = (self._centroids.shape[1] / 8 + 8) * _ROUNDED * (norms + self._largest) ** 2
        return torch.where(second.double() - least.double() > 2 * (each + differences), label.long(), -1)

    def _summed(self, cut: float, norms: torch.Tensor, largest: float) -> torch.Tensor:
        """What summing may add to the error of a product."""
        return cut * (self._centroids.shape[1] + 8) * norms * largest


@dataclass(frozen=True)
class NarrowedRows:
    """What the search needs of rows, whatever the centroids: ``rows`` (n, dim) float32, their ``norms`` (n,) float64, ``narrow``
    (n, dim, and zeros) float16, which times ``scales`` (n,) float32 is off by vectors of norm ``lost`` (n,) float64."""

    rows: torch.Tensor
    norms: torch.Tensor
    narrow: torch.Tensor
    scales: torch.Tensor
    lost: torch.Tensor

    @classmethod
    def of(cls, rows: torch.Tensor, norms: torch.Tensor | None = None) -> "NarrowedRows":
        """Of contiguous float32 rows; ``norms`` may be known already."""
        scales = _power_above(rows.abs().amax(dim=1))
        narrow = (rows / scales[:, None]).half()
        lost = _norms(rows - narrow.float() * scales[:, None])
        return cls(rows, _norms(rows) if norms is None else norms, _padded(narrow), scales, lost)

    def __len__(self) -> int:
        return len(self.rows)


def _padded(matrix: torch.Tensor) -> torch.Tensor:
    """With columns of zeros, which change no product, up to a multiple of _ALIGNED."""
    missing = -matrix.shape[1] % _ALIGNED
    return torch.nn.functional.pad(matrix, (0, missing)) if missing else matrix


def _power_above(sizes: torch.Tensor) -> torch.Tensor:
    """Powers of two above some sizes (not negative), 1 of zero; divisions by them lose nothing."""
    return torch.ldexp(torch.ones_like(sizes), torch.frexp(sizes).exponent)


def _norms(rows: torch.Tensor) -> torch.Tensor:
    """Norms (n,) float64 of rows, a little more than they are."""
    return torch.linalg.vector_norm(rows.double(), dim=1) * (1 + 1e-9)
