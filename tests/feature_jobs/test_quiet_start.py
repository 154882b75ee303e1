"""What an engine prints while it starts is held back, and shown only if the start fails."""

import subprocess
import time

import pytest

from feature_jobs.quiet_start import quiet_start


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


def _failing_start() -> None:
    with quiet_start():
        subprocess.run(["sh", "-c", "echo no jars >&2"], check=True)
        raise RuntimeError


def test_a_start_that_fails_shows_what_was_said(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError):
        _failing_start()
    assert capfd.readouterr().err == "no jars\n"
