"""The errors that a user can cause, with the exit code each one ends in (DESIGN: commands).

Anything else that escapes a command is a fault of ours and exits 1.
"""


class OnerecError(Exception):
    """Base of the errors that end a command with one line on standard error.

    The message names what was found, where, and what to do next; it holds no line break.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class BadInput(OnerecError):
    """A file, row, column, option or lake that cannot be used as it is (exit 2)."""

    exit_code = 2


class GateFailed(OnerecError):
    """A quality gate said no: nothing was published (exit 3)."""

    exit_code = 3
