"""How a Beam pipeline is run: here by FnApiRunner, elsewhere by the runner that is named, the same code in both.

FnApiRunner is named in full because ``DirectRunner`` would first try to download Prism. Options for other runners are passed
through as they are, for example ``--runner PortableRunner --runner-option job_endpoint=localhost:8099``.

What a worker finds wrong with the input ends as it does without a pipeline, in BadInput of one line.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from apache_beam import Pipeline
from apache_beam.options.pipeline_options import PipelineOptions

from schemas.errors import BadInput

LOCAL = "local"
LOCAL_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
_WHERE = r" \[while running '[^\n]*'\]"
"""What Beam adds to the message of a worker's error."""
_WORKER_SAID = re.compile(rf"(?:schemas\.errors\.BadInput|tokenization\.vectors\.BadVectors): (.*?)(?:{_WHERE})?$", re.MULTILINE)
_LATER_ERROR = re.compile(r"^\w[\w.]*(?:Error|Exception): ", re.MULTILINE)
"""In a trace: what went wrong while something else was dealt with."""
_LOGGERS = ("apache_beam.runners.common", "apache_beam.runners.direct.executor", "apache_beam.runners.worker.sdk_worker")
"""Those that log a worker's error, with its trace, before the runner raises it."""


def open_pipeline(runner: str = LOCAL, options: Sequence[str] = ()) -> AbstractContextManager[Any]:
    """A pipeline that runs when its ``with`` block ends; ``options`` are ``name=value`` or ``name``.

    Raises BadInput for an option of another form and for a runner that Beam does not know; the block raises it where a worker
    does.
    """
    flags = []
    for option in options:
        name, equals, value = option.partition("=")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise BadInput(f"--runner-option {option!r}: write name=value, like job_endpoint=localhost:8099")
        flags.append(f"--{name}={value}" if equals else f"--{name}")
    chosen = LOCAL_RUNNER if runner == LOCAL else runner
    try:
        pipeline = Pipeline(runner=chosen, options=PipelineOptions(flags, pickle_library="cloudpickle"))
    except (ValueError, ImportError, AttributeError) as error:
        raise BadInput(f"--runner {runner!r}: Beam knows no such runner or refuses its options ({error})") from error
    return _run_at_end(pipeline)


@contextmanager
def worker_failures_named() -> Iterator[None]:
    """Turn what a runner raises for a worker's BadInput into BadInput of that one line.

    Runners within this process raise an error of the same type, others a RuntimeError that holds the worker's trace.
    """
    try:
        yield
    except BadInput as error:
        said = re.sub(f"{_WHERE}$", "", str(error))
        if said == str(error):
            raise
        raise BadInput(said) from error
    except Exception as error:
        *_, said_last = (None, *_WORKER_SAID.finditer(str(error)))
        if said_last is None or _LATER_ERROR.search(str(error), said_last.end()):
            raise
        raise BadInput(said_last[1]) from error


@contextmanager
def _run_at_end(pipeline: Pipeline) -> Iterator[Pipeline]:
    with worker_failures_named(), pipeline:
        yield pipeline


def _is_wanted(record: logging.LogRecord) -> bool:
    """Whether a record is of something else than a worker's BadInput, which the command says in one line."""
    named = record.args if isinstance(record.args, tuple) else ()
    raised = record.exc_info[1] if record.exc_info else None
    said = any(isinstance(one, BadInput) for one in (record.msg, raised, *named))
    return not (said or _WORKER_SAID.search(record.getMessage()))


for _name in _LOGGERS:
    logging.getLogger(_name).addFilter(_is_wanted)
