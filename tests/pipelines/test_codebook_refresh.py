"""What a matched training publishes is true of the codebook that it publishes."""

import numpy as np
import pytest

from pipelines.codebook_refresh import Previous, _match, new_model, train_from
from schemas.config import CodebookSection
from tests.tokenization.vector_cases import matrix
from tokenization import residual
from tokenization.vector_source import LocalVectors
from tokenization.vectors import ArrayRows


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["normal", "lattice"])
def test_codes_error_and_churn_of_a_matched_training_are_those_that_encoding_gives(kind: str, seed: int) -> None:
    """Hardly more rows than tokens, so that later layers have dead ones, which repeat a centroid."""
    vectors, random = matrix(kind, 70, 8, seed), np.random.default_rng(seed)
    section = CodebookSection(sizes=(16, 64, 64), iterations=3, refinements=2, start="scratch", report_cold_churn=True)
    before = random.integers(0, 16, (70, 3)).astype(np.uint16)
    known = random.random(70) < 0.8
    previous = Previous(None, {"version": "v", "rotation_error": None, "rotation_loss": None})
    model, told = train_from(section, LocalVectors(ArrayRows(vectors)), previous, (before, known), None)
    codes = residual.encode(vectors, model.codebooks_)
    np.testing.assert_array_equal(model.codes_, codes)
    changed = (codes[known] != before[known]).any(axis=1).mean()
    assert told["refresh"]["churn"]["changed"] == told["refresh"]["churn_cold"]["changed"] == pytest.approx(changed)
    error = ((vectors.astype(np.float64) - residual.decode(codes, model.codebooks_)) ** 2).sum()
    assert model.inertia_[-1] == pytest.approx(error, rel=1e-5, abs=1e-6)


def test_a_row_as_near_to_two_centroids_has_the_code_that_encoding_gives_after_their_numbers_were_exchanged() -> None:
    vectors = np.array([[-1], [1], [0], [-1], [1]], np.float32)
    model = new_model(CodebookSection(sizes=(2,))).fit(vectors)
    model.codebooks_ = [np.array([[-1], [1]], np.float32)]
    model.codes_ = residual.encode(vectors, model.codebooks_)
    assert model.codes_[:, 0].tolist() == [0, 1, 0, 0, 1]
    _match(model, LocalVectors(ArrayRows(vectors)), np.array([[1], [0], [1], [1], [0]], np.uint16), np.ones(5, bool))
    assert model.codebooks_[0].tolist() == [[1], [-1]]
    assert model.codes_[:, 0].tolist() == [1, 0, 0, 1, 0]
    assert model.inertia_ == [1.0]
