"""Running a pipeline: bad options are named, and what a worker finds wrong with the input ends in one line."""

import apache_beam as beam
import pytest

from pipelines.runner import LOCAL, open_pipeline, worker_failures_named
from schemas.errors import BadInput
from tokenization.vectors import BadVectors

OF_BUNDLES = "apache_beam.runners.direct.direct_runner.BundleBasedDirectRunner"
LINE = "registry/codebook/1: row 7 holds NaN; publish it again"
kinds = pytest.mark.parametrize("kind", [BadInput, BadVectors])


@pytest.mark.parametrize("option", ["--job_endpoint=x", "Bad=1", "a b=c", "=x"])
def test_an_option_that_is_none(option: str) -> None:
    with pytest.raises(BadInput, match="write name=value"):
        open_pipeline("local", [option])


def test_a_runner_that_is_none() -> None:
    with pytest.raises(BadInput, match=r"--runner 'no\.such\.Runner'"):
        open_pipeline("no.such.Runner")


@kinds
@pytest.mark.parametrize("runner", [LOCAL, OF_BUNDLES])
def test_what_a_worker_finds_wrong_is_one_line_and_no_trace(
    runner: str, kind: type[BadInput], caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: int) -> None:
        raise kind(LINE)

    with pytest.raises(BadInput) as raised, open_pipeline(runner) as pipeline:
        pipeline | beam.Create([1]) | beam.Map(refuse)
    assert str(raised.value) == LINE
    assert "row 7" not in caplog.text


@kinds
def test_what_a_worker_elsewhere_finds_wrong_is_found_in_its_trace(kind: type[BadInput]) -> None:
    name = f"{kind.__module__}.{kind.__qualname__}"
    trace = f"""Traceback (most recent call last):
  File "common.py", line 1495, in process
schemas.errors.BadInput: what led to it

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "common.py", line 1495, in process
{name}: {LINE}

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "sdk_worker.py", line 311, in _execute
{name}: {LINE} [while running 'work-ptransform-12']
"""
    with pytest.raises(BadInput) as raised, worker_failures_named():
        raise RuntimeError(f"Pipeline job-1 failed in state FAILED: bundle inst001 failed: {trace}")
    assert str(raised.value) == LINE


def test_other_failures_stay_as_they_are() -> None:
    for error in (RuntimeError("no disk [while running 'work']"), KeyError("BadInput"), BadInput(LINE), BadVectors(LINE)):
        with pytest.raises(type(error)) as raised, worker_failures_named():
            raise error
        assert raised.value is error
