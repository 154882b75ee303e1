"""A bucket's refreshes, one after another: who is clustered, and what representatives hold."""

import datetime as dt
import random

import pytest

from schemas.tables import HISTORY
from tests.feature_jobs.lifelong_lake import (
    DAY,
    ITEM_IDS,
    MakeLake,
    after,
    bases,
    behaviour,
    check,
    clustered,
    end_of,
    made,
    pathways,
    publish_fusion,
    refresh,
    total,
    waiting_days,
    write_days,
)
from tests.lake_rows import write_rows


def test_the_first_refresh_clusters_every_long_history(make_lake: MakeLake) -> None:
    lake = made(make_lake)
    rows = write_days(lake, -3, 0)
    fusion = publish_fusion(lake, 0)
    reports = refresh(lake, DAY, fusion)
    check(lake, DAY, fusion)
    assert waiting_days(lake) == []
    samples = {one["sample_id"] for row in rows for one in row["behaviours"]}
    assert {one["sample_id"] for row in bases(lake).values() for one in row["entries"]} == samples
    assert total(reports, "from_scratch") == len(clustered(lake)) > 5
    assert total(reports, "behaviours_out") == len(samples)
    assert total(reports, "without_vectors") == sum(
        one["item_id"] not in ITEM_IDS[:50] and one["leaf"] >= 0 for row in bases(lake).values() for one in row["entries"]
    )


@pytest.mark.slow
def test_only_users_who_grew_are_clustered_again(make_lake: MakeLake) -> None:
    """Grown by a fifth: updated. Less: their representatives are those of the refresh before, and the new behaviours wait."""
    lake = made(make_lake, rebuild_share=10)
    write_days(lake, -3, 0, most=30)
    fusion = publish_fusion(lake, 0)
    refresh(lake, DAY, fusion)
    before, first = bases(lake), pathways(lake, DAY)
    rng = random.Random(0)
    long = sorted(user for user in clustered(lake) if len(before[user]["entries"]) > 18 + 10)
    little, much = long[:3], long[3:6]
    brought = dict.fromkeys(little, 2) | dict.fromkeys(much, 20)
    write_rows(
        lake,
        HISTORY,
        [
            {"user_id": user, "date": after(3), "behaviours": [behaviour(rng, after(3)) for _ in range(count)]}
            for user, count in brought.items()
        ],
    )
    reports = refresh(lake, after(7), fusion)
    found, held = pathways(lake, after(7)), bases(lake)
    still = {user for user in clustered(lake) if user not in much}
    waited = {user for user, row in before.items() if any(one["leaf"] < 0 for one in row["entries"])} & clustered(lake)
    check(lake, after(7), fusion, kept=still)
    assert total(reports, "updated") == 3
    assert total(reports, "kept") == len(still)
    for user in still - waited:
        assert found[user]["representatives"] == first[user]["representatives"]
        assert [one["leaf"] for one in held[user]["entries"]].count(-1) == brought.get(user, 0)
    for user in much:
        assert {one["leaf"] for one in held[user]["entries"]} == set(range(12))
        assert held[user]["joined"] == 20 + sum(one["leaf"] < 0 for one in before[user]["entries"])
    assert {user: row["representatives"] for user, row in found.items() if user not in brought and user not in waited} == {
        user: row["representatives"] for user, row in first.items() if user not in brought and user not in waited
    }


@pytest.mark.slow
def test_once_enough_has_joined_a_user_is_clustered_from_scratch(make_lake: MakeLake) -> None:
    lake = made(make_lake, rebuild_share=0.5, grown_share=0.01)
    write_days(lake, 0, 0, most=2)
    rng = random.Random(1)
    write_rows(lake, HISTORY, [{"user_id": "long", "date": DAY, "behaviours": [behaviour(rng, DAY) for _ in range(60)]}])
    fusion = publish_fusion(lake, 0)
    refresh(lake, after(1), fusion)
    done = []
    for week in range(1, 12):
        day = after(7 * week)
        brought = [behaviour(rng, day - dt.timedelta(days=1)) for _ in range(10)]
        write_rows(lake, HISTORY, [{"user_id": "long", "date": day, "behaviours": brought}])
        reports = refresh(lake, day, fusion)
        check(lake, day, fusion)
        done.append("scratch" if total(reports, "from_scratch") else "update")
        assert bases(lake)["long"]["joined"] == (0 if done[-1] == "scratch" else 10 * (len(done) - _last(done)))
    assert done.index("scratch") == 6  # 70 of 130 is the first that is more than half
    assert done.count("scratch") == 1


def _last(done: list[str]) -> int:
    return len(done) - done[::-1].index("scratch") if "scratch" in done else 0


@pytest.mark.slow
def test_the_audit_puts_a_user_right_whose_error_left_the_limit(make_lake: MakeLake) -> None:
    """With a limit of 1 every update that is worse than from scratch is replaced, and the report says how far off they were."""
    lake = made(make_lake, audit_one_in=1, error_limit=1.0, rebuild_share=10)
    write_days(lake, -8, 0, most=20)
    fusion = publish_fusion(lake, 0, ITEM_IDS)
    refresh(lake, DAY, fusion)
    write_days(lake, 1, 7, most=8)
    reports = refresh(lake, after(7), fusion)
    check(lake, after(7), fusion, kept=clustered(lake))
    ratios = [ratio for report in reports.values() for ratio in report["audits"]]
    assert len(ratios) == total(reports, "updated") > 3
    rebuilt = sum(row["joined"] == 0 for user, row in bases(lake).items() if user in clustered(lake))
    assert rebuilt >= sum(ratio > 1 for ratio in ratios) > 0


@pytest.mark.slow
def test_a_history_over_the_limit_is_trimmed_and_its_leaves_shrink(make_lake: MakeLake) -> None:
    lake = made(make_lake, max_history=40, rebuild_share=10)
    rng = random.Random(2)
    publish = publish_fusion(lake, 0)
    for week in range(5):
        day = after(7 * week)
        write_rows(lake, HISTORY, [{"user_id": "long", "date": day, "behaviours": [behaviour(rng, day) for _ in range(25)]}])
        reports = refresh(lake, day + dt.timedelta(days=1), publish)
        entries = bases(lake)["long"]["entries"]
        assert len(entries) == min(40, 25 * (week + 1))
        assert sum(report["dropped"]["over_max_history"] for report in reports.values() if report["dropped"]) == (
            0 if week == 0 else 10 if week == 1 else 25
        )
        check(lake, day + dt.timedelta(days=1), publish)
        assert pathways(lake, day + dt.timedelta(days=1))["long"]["history_length"] == len(entries)


@pytest.mark.slow
def test_a_user_with_a_hundred_thousand_behaviours(make_lake: MakeLake) -> None:
    lake = make_lake()
    rng = random.Random(3)
    one = behaviour(rng, DAY)
    long = [one | {"sample_id": number, "item_id": rng.choice(ITEM_IDS)} for number in range(100_500)]
    write_rows(lake, HISTORY, [{"user_id": "long", "date": DAY, "behaviours": long}])
    fusion = publish_fusion(lake, 0, ITEM_IDS)
    reports = refresh(lake, after(1), fusion)
    found = pathways(lake, after(1))["long"]
    assert found["history_length"] == 100_000
    assert sum(report["dropped"].get("over_max_history", 0) for report in reports.values()) == 500
    assert sorted(row["item_id"] for row in found["representatives"]) == sorted(ITEM_IDS)  # equal vectors are one cluster
    write_rows(
        lake, HISTORY, [{"user_id": "long", "date": after(2), "behaviours": [behaviour(rng, after(2)) for _ in range(1200)]}]
    )
    assert total(refresh(lake, after(8), fusion), "updated") == 1
    assert pathways(lake, after(8))["long"]["history_length"] == 100_000


@pytest.mark.slow
def test_a_new_fusion_version_clusters_everyone_from_scratch(make_lake: MakeLake) -> None:
    lake = made(make_lake)
    write_days(lake, 0, 6, most=8)
    refresh(lake, after(6), publish_fusion(lake, 0))
    second = publish_fusion(lake, 1)
    reports = refresh(lake, after(7), second)
    assert total(reports, "from_scratch") == len(clustered(lake)) > 5
    assert total(reports, "kept") == total(reports, "updated") == 0
    check(lake, after(7), second)


def test_behaviours_not_observed_by_the_end_wait_in_the_base(make_lake: MakeLake) -> None:
    lake = made(make_lake)
    rng = random.Random(5)
    seen = [behaviour(rng, DAY) for _ in range(20)]
    waiting = behaviour(rng, DAY) | {"observed_ts": end_of(DAY)}
    write_rows(lake, HISTORY, [{"user_id": "a", "date": DAY, "behaviours": [*seen, waiting]}])
    write_rows(lake, HISTORY, [{"user_id": "b", "date": DAY, "behaviours": [waiting | {"sample_id": 5}]}])
    fusion = publish_fusion(lake, 0)
    refresh(lake, DAY, fusion)
    observed = sum(one["observed_ts"] < end_of(DAY) for one in seen)
    assert {user: row["history_length"] for user, row in pathways(lake, DAY).items()} == {"a": observed}
    assert {user: len(row["entries"]) for user, row in bases(lake).items()} == {"a": 21, "b": 1}
    refresh(lake, after(1), fusion)
    assert pathways(lake, after(1))["b"]["history_length"] == 1
