"""Entry point of ``onerec``: hands the command to a warm worker if one is named, else runs it here.

Kept free of heavy imports, so that a command sent to a worker costs a bare interpreter.
"""

import os
import sys


def main() -> None:
    """Run one command and exit with its code (0 done, 1 our fault, 2 bad input, 3 a gate said no)."""
    arguments = sys.argv[1:]
    socket_path = os.environ.get("ONEREC_WORKER")
    if socket_path and arguments[:1] not in (["worker"], ["demo"], ["rollout-service"]):
        from onerec.worker_client import run_in_worker

        sys.exit(run_in_worker(socket_path, arguments))
    from onerec.command_line import run

    sys.exit(run(arguments))


if __name__ == "__main__":
    main()
