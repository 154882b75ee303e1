"""Commits of what was computed from the newest version of a table, where another process may commit at the same time."""

from collections.abc import Callable
from typing import TypeVar

from deltalake import CommitProperties
from deltalake.exceptions import CommitFailedError

from schemas.errors import BadInput
from schemas.lake import Lake, first_line
from schemas.tables import Table

T = TypeVar("T")
COMMIT_ATTEMPTS = 5
ON_THIS_VERSION = CommitProperties(max_commit_retries=0)
"""Commit on the version that the table was opened at and on no other. (By default delta-rs takes the next free one where it
sees no conflict; an append never has any, though its rows may be there twice then.)"""


def commit_on_newest(lake: Lake, table: Table, commit: Callable[[], T]) -> T:
    """Call ``commit`` until no other process commits between its look at the table and its own commit; what it returns.

    ``commit`` opens the table, computes what to write from what it finds, and commits with ON_THIS_VERSION's
    ``max_commit_retries``, 0. Raises BadInput if other processes commit without end.
    """
    refused: CommitFailedError | None = None
    for _ in range(COMMIT_ATTEMPTS):
        try:
            return commit()
        except CommitFailedError as error:
            refused = error
    raise BadInput(
        f"{lake.table_uri(table)}: other processes keep writing it ({first_line(refused) if refused else 'not tried'}); run this "
        "again when they have ended"
    ) from refused
