"""How a Beam pipeline is run: here by FnApiRunner, elsewhere by the runner that is named, the same code in both.

FnApiRunner is named in full because ``DirectRunner`` would first try to download Prism. Options for other runners are passed
through as they are, for example ``--runner PortableRunner --runner-option job_endpoint=localhost:8099``.
"""

import re
from collections.abc import Sequence
from typing import Any

from apache_beam import Pipeline
from apache_beam.options.pipeline_options import PipelineOptions

from schemas.errors import BadInput

LOCAL = "local"
LOCAL_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


def open_pipeline(runner: str = LOCAL, options: Sequence[str] = ()) -> Any:
    """A pipeline that runs when its ``with`` block ends; ``options`` are ``name=value`` or ``name``.

    Raises BadInput for an option of another form and for a runner that Beam does not know.
    """
    flags = []
    for option in options:
        name, equals, value = option.partition("=")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise BadInput(f"--runner-option {option!r}: write name=value, like job_endpoint=localhost:8099")
        flags.append(f"--{name}={value}" if equals else f"--{name}")
    chosen = LOCAL_RUNNER if runner == LOCAL else runner
    try:
        return Pipeline(runner=chosen, options=PipelineOptions(flags, pickle_library="cloudpickle"))
    except (ValueError, ImportError, AttributeError) as error:
        raise BadInput(f"--runner {runner!r}: Beam knows no such runner or refuses its options ({error})") from error
