"""What an engine prints while it starts is held back; of a start that fails the telling line is kept."""

import subprocess
import time

import pytest

from feature_jobs.quiet_start import quiet_start
from feature_jobs.session import spark_session
from schemas.errors import BadInput


def _words(capfd: pytest.CaptureFixture[str], expected: str) -> str:
    """What standard error says until it is what was expected, or for ten seconds."""
    said, deadline = "", time.monotonic() + 10
    while said != expected and time.monotonic() < deadline:
        said += capfd.readouterr().err
    return said


def test_a_start_that_succeeds_is_silent_and_later_words_come_through(capfd: pytest.CaptureFixture[str]) -> None:
    script = ["sh", "-c", "echo starting >&2; echo ready; read line; echo later >&2"]
    with quiet_start():
        child = subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
    assert capfd.readouterr().err == ""
    child.communicate(b"go\n", timeout=10)
    assert _words(capfd, "later\n") == "later\n"
    subprocess.run(["sh", "-c", "echo own >&2"], check=True)
    assert capfd.readouterr().err == "own\n", "standard error is what it was"


def test_of_a_start_that_fails_the_telling_line_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet_start() as held:
        subprocess.run(["sh", "-c", "echo WARN a >&2; echo java: not found >&2; echo at some.place >&2"], check=True)
    assert held.telling_line() == "java: not found"
    assert capfd.readouterr().err == ""
    with quiet_start() as silent:
        pass
    assert silent.telling_line() == "it said nothing"


@pytest.mark.parametrize("master", ["foo", "local[", "local[many]", "spark:host", "local[2]\n"])
def test_a_master_that_is_none_is_refused(master: str) -> None:
    with pytest.raises(BadInput, match="not a Spark master"):
        spark_session(master)
