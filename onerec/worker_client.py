"""Sends one command to a warm worker (``onerec worker``) over a Unix socket and waits for its exit code.

What the command prints goes to this process's own standard output and error: their descriptors travel with the request.
"""

import json
import os
import socket
import sys

MAX_MESSAGE_BYTES = 1 << 20


def run_in_worker(socket_path: str, arguments: list[str]) -> int:
    """Run a command in the worker that listens at ``socket_path``; returns its exit code.

    An unreachable worker is bad input (2): the variable that names it is the caller's.
    """
    request = json.dumps({"arguments": arguments, "directory": os.getcwd(), "lake": os.environ.get("ONEREC_LAKE")})
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(socket_path)
            socket.send_fds(connection, [request.encode() + b"\n"], [sys.stdout.fileno(), sys.stderr.fileno()])
            reply = connection.makefile().readline()
    except OSError as error:
        print(
            f"error: ONEREC_WORKER={socket_path}: no worker answers ({error.strerror}); start one with "
            f"`onerec worker --socket {socket_path}` or unset the variable",
            file=sys.stderr,
        )
        return 2
    if not reply:
        print(f"fault: the worker at {socket_path} died while it ran this command; see its log", file=sys.stderr)
        return 1
    return int(json.loads(reply)["exit_code"])
