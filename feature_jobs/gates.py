"""Quality gates of a day's samples: figures that must lie in their ranges before anything is published."""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.samples_notes import COVERED, newest_notes
from schemas.config import GatesSection
from schemas.errors import BadInput, GateFailed
from schemas.lake import Lake
from schemas.tables import DAILY_SAMPLES, FEEDBACK

LABELS = (*FEEDBACK, "positive")
COLUMNS = tuple(name for name in DAILY_SAMPLES.schema.names if name != "watch_quantile_day")
"""Columns whose nulls are counted; the day's quantile is null exactly where the length is."""


@dataclass(frozen=True)
class DayFigures:
    """Figures of a day's samples: ``rows``, distinct users and items, nulls by column, true labels by name, and the trailing
    days (None without any)."""

    rows: int
    users: int
    items: int
    nulls: Mapping[str, int]
    labels: Mapping[str, int]
    trailing: "Trailing | None"


@dataclass(frozen=True)
class Trailing:
    """Published days before: how many, mean rows a day, and the share of nulls of each column whose nulls Delta counts;
    mean distinct users and items a day (``coverage``), and of how many days they are known."""

    days: int
    rows: float
    null_share: Mapping[str, float]
    coverage_days: int
    coverage: Mapping[str, float]


def check_gate_names(gates: GatesSection) -> None:
    """Raise BadInput for a gate on a column or label that samples do not have."""
    for setting, names, known in (
        ("max_null_share", gates.max_null_share, COLUMNS),
        ("label_rate", gates.label_rate, LABELS),
    ):
        unknown = sorted(set(names) - set(known))
        if unknown:
            raise BadInput(f"samples.gates.{setting}: {', '.join(unknown)} unknown; choose among {', '.join(known)}")


def trailing_figures(lake: Lake, date: dt.date, days: int, version: int) -> Trailing | None:
    """Figures of the published days among the ``days`` before ``date``, from the table's log: its files' statistics, and what
    each day's commit noted of users and items."""
    opened = lake.open_table(DAILY_SAMPLES, version)
    actions = pa.table(opened.get_add_actions(flatten=True))
    if not len(actions):
        return None
    day = actions["partition.date"]
    trailing = actions.filter(
        pc.and_(pc.greater_equal(day, pa.scalar(date - dt.timedelta(days=days))), pc.less(day, pa.scalar(date)))
    )
    published, rows = set(trailing["partition.date"].to_pylist()), pc.sum(trailing["num_records"]).as_py()
    if not rows:
        return None
    counted = [name for name in COLUMNS if f"null_count.{name}" in trailing.column_names]
    nulls = {name: pc.sum(trailing[f"null_count.{name}"]).as_py() for name in counted}
    shares = {name: count / rows for name, count in nulls.items() if count is not None}
    noted = [note.coverage for day, note in newest_notes(opened).items() if day in published and note.coverage]
    means = {name: sum(coverage[name] for coverage in noted) / len(noted) for name in COVERED} if noted else {}
    return Trailing(len(published), rows / len(published), shares, len(noted), means)


def check_gates(figures: DayFigures, gates: GatesSection, date: dt.date) -> None:
    """Raise GateFailed naming every figure that left its range. Shares and rates are not judged on a day without rows, nor is
    anything else where ``min_rows`` 0 says that a day may be empty."""
    if not figures.rows and not gates.min_rows:
        return
    failures = []

    def judge(name: str, value: float, low: float, high: float) -> None:
        if not low <= value <= high:
            failures.append(f"{name} is {value:.6g}, outside {low:g} … {high:g}")

    if figures.rows < gates.min_rows:
        failures.append(f"rows is {figures.rows}, below min_rows {gates.min_rows}")
    before = figures.trailing if figures.trailing and figures.trailing.days >= gates.volume_min_days else None
    if before:
        judge("volume_ratio", figures.rows / before.rows, *gates.volume_ratio)
    if figures.trailing and figures.trailing.coverage_days >= gates.volume_min_days:
        for name, ratio in (("users", gates.user_ratio), ("items", gates.item_ratio)):
            judge(f"{name[:-1]}_ratio", getattr(figures, name) / figures.trailing.coverage[name], *ratio)
    if figures.rows:
        for column, share in before.null_share.items() if before else ():
            rise = figures.nulls[column] / figures.rows - share
            judge(f"rise of the null share of {column}", rise, -1.0, gates.max_null_rise)
        for column, limit in gates.max_null_share.items():
            judge(f"null share of {column}", figures.nulls[column] / figures.rows, 0.0, limit)
        for label, (low, high) in gates.label_rate.items():
            judge(f"label rate of {label}", figures.labels[label] / figures.rows, low, high)
    if failures:
        raise GateFailed(
            f"daily_samples {date}: {'; '.join(failures)}; nothing published: mend the landing and ingest it again, "
            "or widen samples.gates if the day is right"
        )
