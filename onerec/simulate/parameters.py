"""What a simulated world is made of, and the checks on what a person may ask for."""

import datetime as dt
from dataclasses import asdict, dataclass
from typing import Any

from schemas.errors import BadInput

TOPICS = 12
SUBTOPICS_PER_TOPIC = 6
SUBTOPICS = TOPICS * SUBTOPICS_PER_TOPIC
DAY_MS = 86_400_000
FORMATS = ("jsonl", "parquet")
BIRTH_SHARE = 0.04
"""New items a day, as a share of the first day's catalogue."""
MAX_LATE_DAYS = 2


@dataclass(frozen=True)
class Parameters:
    """Arguments of a world. ``items`` is the catalogue before the first day; more are born every day.

    A world's first days do not depend on ``days``: a longer run of the same arguments begins with the same landings.
    """

    users: int = 300
    items: int = 600
    days: int = 3
    start: dt.date = dt.date(2026, 1, 1)
    seed: int = 0
    media: bool = True
    broken_share: float = 0.005
    late_share: float = 0.015
    duplicate_share: float = 0.01
    events_per_day: float = 45.0
    format: str = "jsonl"

    def check(self) -> None:
        """Raise BadInput, naming the option, for an argument out of range."""
        limits = {"users": 1_000_000_000, "items": 50_000_000, "days": 1000}
        for name, largest in limits.items():
            if not 1 <= getattr(self, name) <= largest:
                raise BadInput(f"--{name} {getattr(self, name)}: must be from 1 to {largest:,}")
        for name in ("broken_share", "late_share", "duplicate_share"):
            if not 0 <= getattr(self, name) < 1:
                raise BadInput(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 0 and below 1")
        if self.broken_share + self.late_share + self.duplicate_share >= 1:
            raise BadInput("--broken-share, --late-share and --duplicate-share add up to 1 or more: leave some rows sound")
        if not 1 <= self.events_per_day <= 500:
            raise BadInput(f"--events-per-day {self.events_per_day}: must be from 1 to 500")
        if self.format not in FORMATS:
            raise BadInput(f"--format {self.format}: must be {' or '.join(FORMATS)}")
        if not dt.date(1980, 1, 1) <= self.start <= dt.date(2200, 1, 1):
            raise BadInput(f"--start {self.start}: must be from 1980-01-01 to 2200-01-01")
        if not -(2**63) <= self.seed < 2**63:
            raise BadInput(f"--seed {self.seed}: must fit in 64 bits")

    @property
    def births_per_day(self) -> int:
        """Items born on each day."""
        return max(1, round(self.items * BIRTH_SHARE))

    @property
    def all_items(self) -> int:
        """Items that ever exist by the end of the last day."""
        return self.items + self.births_per_day * self.days

    @property
    def users_per_file(self) -> int:
        """Users whose events share a file; by the arguments alone, so that files do not depend on the machine."""
        return max(100, min(int(180_000 / self.events_per_day), -(-self.users // 4)))

    @property
    def items_per_file(self) -> int:
        """Items whose rows share a file and whose media share a task."""
        return max(100, min(5000, -(-self.items // 8)))

    def date(self, day: int) -> dt.date:
        """Calendar day of a day's number (0 is the first)."""
        return self.start + dt.timedelta(days=day)

    def midnight_ms(self, day: int) -> int:
        """Milliseconds since 1970 (UTC) at which a day begins."""
        return (self.date(day) - dt.date(1970, 1, 1)).days * DAY_MS

    @property
    def dates(self) -> list[dt.date]:
        """All landing days."""
        return [self.date(day) for day in range(self.days)]

    def to_json(self) -> dict[str, Any]:
        """The arguments as ``landing.json`` keeps them."""
        return asdict(self) | {"start": self.start.isoformat()}


def parse_start(text: str) -> dt.date:
    """The day in ``--start``. Raises BadInput if it is no date."""
    try:
        return dt.date.fromisoformat(text)
    except ValueError as error:
        raise BadInput(f"--start {text!r}: not a date; write it as YYYY-MM-DD") from error
