"""How a day's impressions reach the landing zone: most on their day, some late, twice or broken; with the true counts."""

import datetime as dt
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onerec.simulate.behaviour import SLOTS, Impressions
from onerec.simulate.catalogue import Ints
from onerec.simulate.draws import Draws
from onerec.simulate.parameters import MAX_LATE_DAYS, Parameters

BROKEN_KINDS = {
    "jsonl": (
        "negative_play_time",
        "time_no_timestamp",
        "unknown_item",
        "missing_user",
        "play_time_out_of_range",
        "play_time_no_number",
        "duration_zero",
        "not_json",
    ),
    "parquet": ("negative_play_time", "missing_time", "unknown_item", "missing_user", "play_time_out_of_range", "duration_zero"),
}
"""What can be wrong with a broken row, by the format of the file: typed columns cannot hold text that is no number."""


@dataclass(frozen=True)
class Arrival:
    """Rows that one block's day contributes to one landing.

    ``row`` are positions in the day's impressions, in file order; ``broken`` is, for each, a position in BROKEN_KINDS
    of the format, or −1; ``lag`` is in days.
    """

    lag: int
    row: Ints
    broken: Ints


@dataclass(frozen=True)
class Count:
    """A line of ``truth/landings``: rows of a kind in a landing (see ``docs/simulator.md`` for the kinds)."""

    landing_date: dt.date
    kind: str
    rows: int


def arrive(parameters: Parameters, impressions: Impressions, day: int) -> tuple[list[Arrival], list[Count]]:
    """Landings of a day's impressions, and their true counts.

    An impression is late, doubled, broken or none of these, never two at once. What would land after the last day is
    counted under its own day as ``not_arrived``.
    """
    draws = Draws(parameters.seed)
    key = (impressions.user, day, impressions.request * SLOTS + impressions.slot)
    fate = draws.uniform("fate", *key)
    detail = draws.uniform("detail of fate", *key)
    bounds = np.cumsum([parameters.broken_share, parameters.late_share, parameters.duplicate_share])
    is_broken = fate < bounds[0]
    is_late = ~is_broken & (fate < bounds[1])
    is_double = ~is_broken & ~is_late & (fate < bounds[2])
    kinds = BROKEN_KINDS[parameters.format]
    broken_kind = np.where(is_broken, np.floor(detail * len(kinds)).astype(np.int64), -1)
    lag = np.where(is_late, np.where(detail < 0.75, 1, 2), 0)
    double_lag = np.where(detail < 0.6, 0, np.where(detail < 0.9, 1, 2))

    arrivals: list[Arrival] = []
    counts: list[tuple[int, str, int]] = []
    for later in range(MAX_LATE_DAYS + 1):
        first, again = lag == later, is_double & (double_lag == later)
        if day + later >= parameters.days:
            counts.append((day, "not_arrived", int(np.count_nonzero(first) + np.count_nonzero(again))))
            continue
        row = np.concatenate([np.flatnonzero(first), np.flatnonzero(again)])
        row = row[np.lexsort((row, impressions.user[row], impressions.shown_ms[row]))]
        arrivals.append(Arrival(later, row, broken_kind[row]))
        doubled = "duplicate_same_landing" if later == 0 else "duplicate_later_landing"
        counts += [
            (day + later, "rows", len(row)),
            (day + later, "impressions", int(np.count_nonzero(first & ~is_broken))),
            (day + later, "late", int(np.count_nonzero(first & is_late))),
            (day + later, doubled, int(np.count_nonzero(again))),
        ]
        counts += [(day + later, f"broken_{kinds[kind]}", rows) for kind, rows in _tally(broken_kind[row]).items()]
    return arrivals, [Count(parameters.date(when), kind, rows) for when, kind, rows in counts if rows]


def _tally(broken: NDArray[np.int64]) -> dict[int, int]:
    return dict(sorted(Counter(broken[broken >= 0].tolist()).items()))
