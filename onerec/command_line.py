"""Runs one ``onerec`` command: checks the installation, dispatches, and turns errors into exit codes.

Exit 0 done, 2 bad input or usage and 3 a gate said no (one line on standard error that starts with ``error: ``), 1 a
fault of ours (with its trace, since it is ours to mend).
"""

import errno
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from typing import Any

OWN_PACKAGES = ("schemas", "tokenization", "feature_jobs", "pipelines", "trainer")

OF_THE_MACHINE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})
"""Errors of the operating system that the machine's owner mends, not we: a full disk, missing permissions."""


def run(arguments: list[str]) -> int:
    """Run a command and return its exit code; never raises for a user's error."""
    shadow = find_shadow()
    if shadow:
        print(f"error: {shadow}", file=sys.stderr)
        return 2
    from schemas.errors import OnerecError

    try:
        return _dispatch(arguments)
    except OnerecError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted; run the same command again to finish", file=sys.stderr)
        return 2
    except Exception as error:
        if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
            where = error.filename or "a file"
            said = " ".join((error.strerror or str(error)).split())
            print(f"error: {where}: {said}; free some space or mend the permissions, then run again", file=sys.stderr)
            return 2
        traceback.print_exc()
        print("fault: this is ours, not your input's; please report it with the lines above", file=sys.stderr)
        return 1


def find_shadow() -> str | None:
    """One line that names a foreign package hiding one of ours, or None. Our package names are common words."""
    home = Path(__file__).resolve().parent.parent
    for name in OWN_PACKAGES:
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin != home / name / "__init__.py":
            found = origin or (next(iter(spec.submodule_search_locations)) if spec and spec.submodule_search_locations else None)
            if found is None:
                return f"package {name} is not installed beside {home}/onerec; reinstall onerec-factory"
            return (
                f"{found} shadows onerec-factory's own package {name}; rename it, or run from another folder "
                f"(PYTHONPATH is {os.environ.get('PYTHONPATH', '')!r})"
            )
    return None


def _dispatch(arguments: list[str]) -> int:
    import typer

    from onerec.commands import build_command

    # Typer carries its own copy of click and exports only its leaf exceptions: the base is found through one of them.
    usage_error: type[Exception] = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")
    try:
        result = build_command().main(args=arguments, prog_name="onerec", standalone_mode=False)
    except typer.Exit as stop:
        return stop.exit_code
    except typer.Abort:
        print("error: interrupted; run the same command again to finish", file=sys.stderr)
        return 2
    except usage_error as error:
        print(_usage_line(error), file=sys.stderr)
        return 2
    return result if isinstance(result, int) else 0


def _usage_line(error: Any) -> str:
    """Click's usage error as one line that says where help is."""
    if type(error).__name__ == "NoArgsIsHelpError":
        return "error: no command given; see `onerec --help`"
    path = error.ctx.command_path if getattr(error, "ctx", None) else "onerec"
    message = " ".join(error.format_message().split()).rstrip(".")
    return f"error: {message}; see `{path} --help`"
