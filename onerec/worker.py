"""A warm process that runs commands one after another, so that each need not start a JVM or import torch.

``ONEREC_WORKER=SOCKET onerec …`` sends its arguments here. Commands see the caller's directory, standard output and
error. One at a time: a second caller waits. What is kept between commands is what the engines keep themselves: the
Spark session and imported modules, nothing of ours.
"""

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator

from onerec.worker_client import MAX_MESSAGE_BYTES
from schemas.errors import BadInput


def serve(socket_path: str) -> None:
    """Listen at ``socket_path`` until SIGTERM or SIGINT. Raises BadInput if the address cannot be taken."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(socket_path)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        server.bind(socket_path)
    except OSError as error:
        raise BadInput(
            f"--socket {socket_path}: cannot listen there ({error.strerror}); a path has at most 100 characters"
        ) from error
    os.chmod(socket_path, 0o600)
    server.listen()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        while True:
            connection, _ = server.accept()
            with connection:
                _answer(connection)
    finally:
        server.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(socket_path)


def _answer(connection: socket.socket) -> None:
    message, descriptors, _, _ = socket.recv_fds(connection, MAX_MESSAGE_BYTES, 2)
    try:
        request = json.loads(message)
        output, errors = descriptors
        with _standing_in(request["directory"], output, errors, request["lake"]):
            from onerec.command_line import run

            exit_code = run(request["arguments"])
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    with contextlib.suppress(BrokenPipeError):  # the caller may have been killed meanwhile
        connection.sendall(json.dumps({"exit_code": exit_code}).encode() + b"\n")


@contextlib.contextmanager
def _standing_in(directory: str, output: int, errors: int, lake: str | None) -> Iterator[None]:
    """Take the caller's directory, output, error and lake for the time of one command.

    Python's streams are exchanged, not the descriptors 1 and 2: a JVM or daemon that the command starts would inherit
    those and keep the caller's pipes open for as long as it lives. What such a process prints goes to the worker's log.
    """
    own_directory, own_streams = os.getcwd(), (sys.stdout, sys.stderr)
    own_lake = os.environ.pop("ONEREC_LAKE", None)
    if lake is not None:
        os.environ["ONEREC_LAKE"] = lake
    for descriptor in (output, errors):
        os.set_inheritable(descriptor, False)
    with (
        open(output, "w", encoding="utf-8", closefd=False, buffering=1) as caller_output,
        open(errors, "w", encoding="utf-8", closefd=False, buffering=1) as caller_errors,
    ):
        try:
            os.chdir(directory)
            sys.stdout, sys.stderr = caller_output, caller_errors
            yield
        finally:
            sys.stdout, sys.stderr = own_streams
            with contextlib.suppress(FileNotFoundError):
                os.chdir(own_directory)
            os.environ.pop("ONEREC_LAKE", None)
            if own_lake is not None:
                os.environ["ONEREC_LAKE"] = own_lake
