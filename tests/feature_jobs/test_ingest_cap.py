"""The cap on a user's day at ingest: against a brute-force reference, in any division, and unseen by the samples."""

import datetime as dt
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_jobs.bucket_files import BucketFiles, bucket_files
from feature_jobs.ingest import cap as caps
from feature_jobs.ingest import job, shuffle
from feature_jobs.ingest.bucket import BucketTask, publish_bucket
from feature_jobs.ingest.cap import joined_within_the_cap, over_the_cap, within_the_cap
from feature_jobs.ingest.landing import open_landing
from feature_jobs.ingest.rules import Bounds
from feature_jobs.ingest.shuffle import LANDED, Dealing, unpacked
from feature_jobs.ingest.sources import look_at
from feature_jobs.partition_files import commit_files
from feature_jobs.samples import run_samples
from feature_jobs.samples_drops import OVER_THE_CAP
from schemas.config import Config
from schemas.lake import Lake, create_lake
from schemas.suppression import suppressed_users
from schemas.tables import DAILY_SAMPLES, EVENTS, FEEDBACK
from tests.feature_jobs.reference_pathways import text_hash
from tests.lake_rows import utc

Row = dict[str, Any]
DAYS = [dt.date(2026, 1, 10), dt.date(2026, 1, 11), dt.date(2026, 1, 12)]
START = utc("2026-01-10 00:00:00")


def landed(user: str, name: str, day: dt.date, second: int, number: int = 0) -> Row:
    """A good row, shown ``second`` seconds after midnight of the first day; ``number`` tells repetitions apart."""
    moment = START + dt.timedelta(seconds=second)
    return dict.fromkeys(FEEDBACK, False) | dict.fromkeys(("request_ts", "ts", "observed_ts"), moment) | {
        "impression_id": name, "request_id": name, "user_id": user, "item_id": "i", "play_time_ms": number, "date": day,
    }  # fmt: skip


def table(rows: list[Row]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=LANDED)


def over_by_brute_force(rows: list[Row], cap: int) -> list[bool]:
    """Row by row: is there as much as the cap before it?"""

    def place(row: Row) -> tuple[dt.datetime, int]:
        return row["ts"], text_hash(row["user_id"], row["impression_id"])

    def before(row: Row) -> set[str]:
        same = [other for other in rows if (other["user_id"], other["date"]) == (row["user_id"], row["date"])]
        return {other["impression_id"] for other in same if place(other) < place(row)}

    return [len(before(row)) >= cap for row in rows]


def multiset(rows: pa.Table | list[Row]) -> Counter[tuple[Any, ...]]:
    some = rows if isinstance(rows, list) else rows.to_pylist()
    return Counter(tuple(row[name] for name in ("user_id", "impression_id", "date", "ts", "play_time_ms")) for row in some)


@st.composite
def logs(draw: st.DrawFn) -> list[Row]:
    """Few users, days, impressions and instants, so that everything ties with everything and repeats at other times."""
    drawn = draw(
        st.lists(
            st.tuples(st.sampled_from("aab"), st.sampled_from("stuvwxyz"), st.sampled_from(DAYS[:2]), st.integers(0, 5)),
            max_size=40,
        )
    )
    return [landed(*entry, number) for number, entry in enumerate(drawn)]


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(logs(), st.integers(1, 5), st.integers(1, 9), st.randoms(use_true_random=False))
def test_cutting_in_any_division_cuts_what_the_rule_says(rows: list[Row], cap: int, held: int, rng: random.Random) -> None:
    expected = over_by_brute_force(rows, cap)
    whole = table(rows)
    assert over_the_cap(whole, whole["user_id"].combine_chunks().dictionary_encode(), cap).tolist() == expected
    kept = multiset([row for row, over in zip(rows, expected, strict=True) if not over])
    rng.shuffle(rows)
    bounds = sorted([0, len(rows), *(rng.randrange(len(rows) + 1) for _ in range(rng.randrange(6)))])
    parts = [table(rows[start:end]) for start, end in itertools.pairwise(bounds)]
    cut = [within_the_cap(part, cap) for part in parts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caps, "HELD_ROWS", held)
        for blocks, lost in ((parts, 0), ([part for part, *_ in cut], sum(lost for *_, lost in cut))):
            joined, dropped = joined_within_the_cap(blocks, cap)
            assert multiset(joined) == kept
            assert dropped + lost == sum(expected)


def test_a_robots_blocks_are_never_held_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caps, "HELD_ROWS", 1000)
    most = 0

    def blocks() -> Iterator[pa.Table]:
        for number in range(100):
            yield table([landed("robot", f"{number}-{place}", DAYS[0], number) for place in range(100)])

    def measured(rows: pa.Table, cap: int) -> tuple[pa.Table, pa.DictionaryArray, int]:
        nonlocal most
        most = max(most, len(rows))
        return within_the_cap(rows, cap)

    monkeypatch.setattr(caps, "within_the_cap", measured)
    rows, dropped = joined_within_the_cap(blocks(), 50)
    assert (len(rows), dropped) == (50, 9950)
    assert most <= 1100


def _zone(root: Path, landings: dict[dt.date, list[Row]], files: int) -> None:
    """A landing zone; each landing's events in several files."""
    for day, rows in landings.items():
        folder = root / "events" / f"date={day}"
        folder.mkdir(parents=True)
        for number in range(files):
            lines = [json.dumps(row, default=str) + "\n" for row in rows[number::files]]
            (folder / f"part-{number}.jsonl").write_text("".join(lines))
    (root / "items").mkdir()
    (root / "items" / "all.jsonl").write_text('{"item_id": "i", "valid_from": "2020-01-01T00:00:00Z"}\n')


def _delivered(row: Row) -> Row:
    """A row as a source delivers it."""
    return {name: row[name] for name in ("impression_id", "user_id", "item_id", "play_time_ms")} | {
        name: row[name].isoformat() for name in ("request_ts", "ts", "observed_ts")
    }


@pytest.mark.parametrize("rows_at_once", [1, 7, 1 << 20])
def test_a_task_deals_no_more_than_the_cap_whatever_it_sorts_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_at_once: int
) -> None:
    rows = [landed("robot" if number % 5 else f"u{number}", str(number), DAYS[0], number % 7) for number in range(100)]
    _zone(tmp_path, {DAYS[0]: [_delivered(row) for row in rows]}, files=3)
    monkeypatch.setattr(shuffle, "ROWS_AT_ONCE", rows_at_once)
    landing, config = open_landing(str(tmp_path)), Config()
    source = look_at(landing, EVENTS, landing.files(EVENTS, DAYS[0]), 1)
    known: Any = lambda items: np.ones(len(items), bool)  # noqa: E731
    dealing = Dealing(landing, source, known, Bounds.of(DAYS[0], config), 2, 4)
    blocks: dict[int, list[pa.Table]] = {}
    for number in range(len(source.tasks)):
        for group, block in unpacked(shuffle._deal(dealing, number)):
            blocks.setdefault(group, []).append(block)
    tally = pa.concat_tables(blocks.pop(dealing.tally))
    joined = [joined_within_the_cap(some, 4) for some in blocks.values()]
    expected = over_by_brute_force(rows, 4)
    assert sum(map(Counter.total, (multiset(some) for some, _ in joined))) == 100 - sum(expected)
    assert sum(tally[OVER_THE_CAP].to_pylist()) + sum(lost for _, lost in joined) == sum(expected) > 70
    assert sum(tally["read"].to_pylist()) == 100


def _robots(seed: int) -> dict[dt.date, list[Row]]:
    """Landings of robots and people, late rows, repetitions with other values in their landing and in later ones.

    An impression of a day is shown at one time, however often it is sent.
    """
    rng = random.Random(seed)
    landings: dict[dt.date, list[Row]] = {day: [] for day in DAYS}
    for number in range(240):
        place = rng.randrange(len(DAYS))
        second = 86400 * place + rng.choice([0, 10, 10, 20, rng.randrange(86400)])
        user = rng.choice(["robot", "robot", "robot", "second", *"abcdef"])
        row = landed(user, f"{number}", DAYS[place], second, number)
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            landings[DAYS[rng.randrange(place, len(DAYS))]].append(row | {"play_time_ms": rng.randrange(90_000)})
    return landings


def _publish(lake: Lake, landing: dt.date, blocks: list[pa.Table]) -> Counter[str]:
    """What ingest does with a landing's good rows, in a lake of one bucket."""
    others = bucket_files(lake, EVENTS, lake.table_version(EVENTS), pads.field("landing_date") != landing)
    task = BucketTask(lake, landing, utc("2026-02-01 00:00:00"), others, suppressed_users(lake), BucketFiles("", {}, {}))
    report = json.loads(publish_bucket(task, 0, blocks))
    commit_files(lake, EVENTS, report["files"], pads.field("landing_date") == landing)
    return Counter(report["dropped"] | {"kept": report["kept"]})


def _with_cap(lake: Lake, cap: int) -> Lake:
    values = lake.config.model_dump(mode="json")
    return Lake(lake.root, Config.model_validate(values | {"samples": values["samples"] | {"user_day_cap": cap}}))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_files_and_blocks_do_not_change_what_is_kept_and_counted(
    make_lake: Callable[..., Lake], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(caps, "HELD_ROWS", 20)
    rows = table(_robots(seed)[DAYS[2]])
    config = {"lake": {"user_buckets": 1}, "samples": {"user_day_cap": 6}}
    found = []
    for number, width in enumerate((1, 13, 1000)):
        lake = make_lake(f"lake-{number}", **config)
        counts = _publish(lake, DAYS[2], [rows.slice(start, width) for start in range(0, len(rows), width)])
        found.append((counts, multiset(lake.read(EVENTS))))
    assert found[0] == found[1] == found[2]
    assert found[0][0][OVER_THE_CAP] > 10


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_samples_are_what_they_were_without_the_cap_at_ingest(
    make_lake: Callable[..., Lake], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr("feature_jobs.samples.run_by_bucket", lambda _, buckets, work: [work(bucket) for bucket in buckets])
    gates = {"min_rows": 0, "label_rate": {}, "volume_min_days": 30}
    landings = _robots(seed)
    found = {}
    for name, cap in (("capped", 5), ("uncapped", 1_000_000)):
        lake = make_lake(name, lake={"user_buckets": 1}, samples={"user_day_cap": 5, "gates": gates})
        for day in DAYS:
            counts = _publish(_with_cap(lake, cap), day, [table(landings[day])])
            assert counts[OVER_THE_CAP] == sum(over_by_brute_force(landings[day], cap))
        for day in reversed(DAYS):  # every landing, as a backfill takes them
            run_samples(cast(Any, None), lake, day, every_landing=True)
        samples = lake.read(DAILY_SAMPLES).sort_by([(column, "ascending") for column in ("date", "user_id", "sample_id")])
        found[name] = lake.read(EVENTS).num_rows, samples
    assert found["capped"][0] < found["uncapped"][0] - 30
    assert found["capped"][1].num_rows > 30
    assert found["capped"][1].equals(found["uncapped"][1])


@pytest.mark.slow
def test_the_jobs_cap_a_robot_of_many_files_and_landings_and_account_for_it(spark: Any, tmp_path: Path) -> None:
    settings = {"user_day_cap": 5, "gates": {"min_rows": 0, "label_rate": {}, "volume_min_days": 30}}
    lake = create_lake(str(tmp_path / "lake"), Config.model_validate({"lake": {"user_buckets": 2}, "samples": settings}))
    landings = dict(list(_robots(4).items())[1:])
    _zone(tmp_path / "zone", {day: [_delivered(row) for row in rows] for day, rows in landings.items()}, files=3)
    for day, rows in landings.items():
        counts = job.run(spark, lake, open_landing(str(tmp_path / "zone")), day).tables["events"]
        assert counts.rows_in == len(rows)
        assert counts.rows_dropped[OVER_THE_CAP] == sum(over_by_brute_force(rows, 5)) > 10
    counts = run_samples(spark, lake, DAYS[0], every_landing=True)["tables"]["daily_samples"]
    shown = {row["impression_id"]: row for rows in landings.values() for row in rows if row["date"] == DAYS[0]}
    kept = [row for row, over in zip(shown.values(), over_by_brute_force([*shown.values()], 5), strict=True) if not over]
    assert sorted(lake.read(DAILY_SAMPLES)["sample_id"].to_pylist()) == sorted(
        text_hash(row["user_id"], row["impression_id"]) for row in kept
    )
    assert counts["rows_in"] == counts["rows_out"] + sum(counts["rows_dropped"].values())
