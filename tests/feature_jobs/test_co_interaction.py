"""Co-interaction pairs equal a brute-force reading of the formulas, caps and ties included."""

import datetime as dt
import math
import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest

from feature_jobs import co_interaction
from feature_jobs.stale import mark_stale, read_stale
from schemas.config import CoInteractionSection
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.shards import stable_key
from schemas.tables import CO_INTERACTION, DAILY_SAMPLES
from tests.lake_rows import write_rows

DAY = dt.date(2026, 1, 5)
pytestmark = pytest.mark.slow


def samples(seed: int, date: dt.date, users: int = 25, items: int = 12) -> list[dict[str, Any]]:
    """A day of positives and others, a few items far more popular, many requests at the same instant, items again and again."""
    rng = random.Random(seed)
    rows = []
    for number in range(users * 8):
        request_ts = dt.datetime.combine(date, dt.time(rng.randrange(4)), tzinfo=dt.UTC)
        user = f"u{rng.randrange(users)}"
        rows.append(
            {
                "sample_id": number,
                "impression_id": f"{date}-{number}",
                "request_id": f"r{number}",
                "user_id": user,
                "session_id": "s",
                "request_ts": request_ts,
                "ts": request_ts,
                "observed_ts": request_ts + dt.timedelta(minutes=rng.choice([0, 1, 90])),
                "item_id": f"i{min(rng.randrange(items), rng.randrange(items))}",
                "play_time_ms": 0,
                "positive": rng.random() < 0.7,
                "duration_bucket": -1,
                "split": "train",
                "date": date,
            }
        )
    return rows


def hash_order(item: str, user: str) -> tuple[int, str]:
    """The order in which an item's users are drawn: Spark chains the hash of two columns by seed."""
    import xxhash

    value = xxhash.xxh64_intdigest(user.encode(), seed=stable_key(item) % 2**64)
    return (value - 2**64 if value >= 2**63 else value, user)


def expected_pairs(
    rows: list[dict[str, Any]], settings: CoInteractionSection
) -> dict[str, dict[tuple[str, str], tuple[float, int]]]:
    """(score, support) of every pair by kind, by loops over users."""
    requested: dict[str, dict[str, dt.datetime]] = defaultdict(dict)
    observed: dict[str, dict[str, dt.datetime]] = defaultdict(dict)
    for row in rows:
        if row["positive"]:
            user, item = row["user_id"], row["item_id"]
            requested[user][item] = max(requested[user].get(item, row["request_ts"]), row["request_ts"])
            observed[user][item] = min(observed[user].get(item, row["observed_ts"]), row["observed_ts"])
    items_of = {
        user: set(sorted(times, key=lambda item: (-times[item].timestamp(), item))[: settings.max_items_per_user])
        for user, times in requested.items()
    }
    everyone = {item: [user for user in items_of if item in items_of[user]] for item in set().union(*items_of.values())}
    users_of = {
        item: set(sorted(users, key=lambda user: hash_order(item, user))[: settings.max_users_per_item])
        for item, users in everyone.items()
    }

    def swing(a: str, b: str) -> float:
        both = users_of[a] & users_of[b]
        return sum(
            len(items_of[u]) ** -0.5 * len(items_of[v]) ** -0.5 / (settings.swing_alpha + len(items_of[u] & items_of[v]))
            for u in both
            for v in both
            if u != v
        )

    kinds: dict[str, dict[tuple[str, str], tuple[float, int]]] = {"swing": {}, "co_occurrence": {}, "user_to_item": {}}
    for a in users_of:
        for b in users_of:
            support = len(users_of[a] & users_of[b])
            if a == b or not support:
                continue
            kinds["co_occurrence"][a, b] = (support / math.sqrt(len(users_of[a]) * len(users_of[b])), support)
            if swing(a, b) > 0:
                kinds["swing"][a, b] = (swing(a, b), support)
        chosen: dict[str, int] = defaultdict(int)
        for user in users_of[a]:
            earlier = [b for b in items_of[user] if b != a and observed[user][b] < requested[user][a] and swing(a, b) > 0]
            if earlier:
                # rounded, since two equal sums may differ in the last bit by the order of their terms
                chosen[min(earlier, key=lambda b: (-round(swing(a, b), 9), b))] += 1
        kinds["user_to_item"] |= {(a, b): (swing(a, b), count) for b, count in chosen.items()}
    return kinds


def written(lake: Lake) -> dict[str, dict[tuple[str, str], tuple[float, int]]]:
    kinds: dict[str, dict[tuple[str, str], tuple[float, int]]] = {"swing": {}, "co_occurrence": {}, "user_to_item": {}}
    for row in lake.read(CO_INTERACTION).to_pylist():
        assert (row["item_a"], row["item_b"]) not in kinds[row["kind"]]
        kinds[row["kind"]][row["item_a"], row["item_b"]] = (row["score"], row["support"])
    return kinds


@pytest.mark.parametrize(
    "caps",
    [
        {},
        {"max_items_per_user": 3, "max_users_per_item": 5, "swing_alpha": 0.5},
        {"max_items_per_user": 1},
    ],
)
def test_pairs_equal_the_formulas(spark: Any, make_lake: Callable[..., Lake], caps: dict[str, Any]) -> None:
    lake = make_lake(co_interaction={"window_days": 2, **caps})
    days = {back: samples(seed=back, date=DAY - dt.timedelta(days=back)) for back in range(3)}
    for rows in days.values():
        write_rows(lake, DAILY_SAMPLES, rows)
    report = co_interaction.run(spark, lake, DAY).to_json()
    expected = expected_pairs(days[0] + days[1], lake.config.co_interaction)
    found = written(lake)
    for kind, pairs in expected.items():
        assert found[kind].keys() == pairs.keys()
        for pair, (score, support) in pairs.items():
            assert found[kind][pair] == (pytest.approx(score), support)
    counts = report["tables"]["co_interaction"]
    assert counts["rows_in"] == counts["rows_out"] == sum(len(pairs) for pairs in expected.values())
    assert report["window"] == ["2026-01-04", "2026-01-05"]


def test_an_item_keeps_its_best_pairs_and_the_rest_are_counted(spark: Any, make_lake: Callable[..., Lake]) -> None:
    lake = make_lake(co_interaction={"max_pairs_per_item": 2})
    rows = samples(seed=7, date=DAY)
    write_rows(lake, DAILY_SAMPLES, rows)
    counts = co_interaction.run(spark, lake, DAY).to_json()["tables"]["co_interaction"]
    found = written(lake)
    dropped = 0
    for kind, pairs in expected_pairs(rows, lake.config.co_interaction).items():
        for item in {a for a, _ in pairs}:
            of_item = {b: score for (a, b), (score, _) in pairs.items() if a == item}
            best = sorted(of_item, key=lambda b: (-round(of_item[b], 9), b))[:2]
            assert {b for a, b in found[kind] if a == item} == set(best)
            dropped += len(of_item) - len(best)
    assert counts["rows_dropped"] == {"over_max_pairs_per_item": dropped}
    assert dropped > 0


def test_a_day_is_replaced_and_others_are_left(spark: Any, make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()
    write_rows(lake, DAILY_SAMPLES, samples(seed=1, date=DAY) + samples(seed=2, date=DAY - dt.timedelta(days=1)))
    co_interaction.run(spark, lake, DAY - dt.timedelta(days=1))
    co_interaction.run(spark, lake, DAY)
    once = sorted(map(str, lake.read(CO_INTERACTION).to_pylist()))
    co_interaction.run(spark, lake, DAY)
    assert sorted(map(str, lake.read(CO_INTERACTION).to_pylist())) == once
    assert {row["date"] for row in lake.read(CO_INTERACTION).to_pylist()} == {DAY, DAY - dt.timedelta(days=1)}


def test_a_day_without_samples_is_bad_input(spark: Any, make_lake: Callable[..., Lake]) -> None:
    with pytest.raises(BadInput, match="no samples of 2026-01-05"):
        co_interaction.run(spark, make_lake(), DAY)


def test_a_day_without_positives_leaves_no_pairs(spark: Any, make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()
    write_rows(lake, DAILY_SAMPLES, [row | {"positive": False} for row in samples(seed=1, date=DAY)])
    assert co_interaction.run(spark, lake, DAY).to_json()["tables"]["co_interaction"]["rows_out"] == 0


def test_pairs_of_samples_that_were_written_anew_meanwhile_are_not_published(
    spark: Any, make_lake: Callable[..., Lake], monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = make_lake()
    write_rows(lake, DAILY_SAMPLES, samples(seed=1, date=DAY))
    before = co_interaction.pairs

    def overtaken(*arguments: Any) -> Any:
        mark_stale(lake, {str(DAY): {"co-interaction": "it reads the samples"}})
        write_rows(lake, DAILY_SAMPLES, samples(seed=2, date=DAY - dt.timedelta(days=2)))
        return before(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(co_interaction, "pairs", overtaken)
        with pytest.raises(BadInput, match=r"daily_samples: another process wrote partitions .* run it again"):
            co_interaction.run(spark, lake, DAY)
    assert lake.read(CO_INTERACTION).num_rows == 0
    assert "co-interaction" in read_stale(lake)[str(DAY)]
    co_interaction.run(spark, lake, DAY)
    assert read_stale(lake) == {}
