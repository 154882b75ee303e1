"""What Spark writes, the trainer reads: every request's windows and targets against the lake's own tables."""

import datetime as dt

import pyarrow.dataset as pads
import pytest

from schemas.shards import stable_key
from schemas.tables import DAILY_SAMPLES, FEEDBACK, ITEM_TOKENS, PATHWAY_LIFELONG, PATHWAY_POSITIVE, PATHWAY_SHORT, POSITIVE_BIT
from tests.feature_jobs import shard_lake
from tests.feature_jobs.shard_lake import DAY, USERS
from trainer.features import Lengths
from trainer.shard_reader import ShardReader

LENGTHS = Lengths(5, 9, 4)


def micros(moment: dt.datetime) -> int:
    return (moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)


def entry(row):
    """A behaviour, or a sample of the day, as (observed, sample id, item, positive)."""
    feedback = row["feedback"] if "feedback" in row else _bits(row)
    return micros(row["observed_ts"]), row["sample_id"], stable_key(row["item_id"]), bool(feedback >> POSITIVE_BIT & 1)


def _bits(row) -> int:
    return sum(1 << bit for bit, flag in enumerate((*FEEDBACK, "positive")) if row[flag])


@pytest.mark.slow
def test_windows_and_targets_of_every_request(spark, make_lake):
    from feature_jobs import shards as job

    lake = make_lake()
    shard_lake.fill_items(lake)
    shard_lake.fill(lake, seed=5)
    version = shard_lake.publish_tokens(lake, shard_lake.ITEM_IDS[:6])
    shard_lake.fill_lifelong(lake, DAY - dt.timedelta(days=1), USERS[:6], seed=2)
    job.run(spark, lake, DAY)

    samples = lake.read(DAILY_SAMPLES).to_pylist()
    past = {
        table.name: {row["user_id"]: row["behaviours"] + row["pending"] for row in lake.read(table).to_pylist()}
        for table in (PATHWAY_SHORT, PATHWAY_POSITIVE)
    }
    lifelong = {row["user_id"]: row["representatives"] for row in lake.read(PATHWAY_LIFELONG).to_pylist()}
    codes = {
        stable_key(row["item_id"]): row["tokens"]
        for row in lake.read(ITEM_TOKENS, filter=pads.field("codebook_version") == version).to_pylist()
    }
    reader = ShardReader(lake.local_path("shards"), [DAY], seed=0, batch_requests=7, split="all", lengths=LENGTHS)
    read = {}
    for batch in reader:
        for row, request in enumerate(zip(batch.user_ids, batch.request_ids, strict=True)):
            read[request] = (batch, row)

    expected = set()
    for user, request in sorted({(sample["user_id"], sample["request_id"]) for sample in samples}):
        mine = [sample for sample in samples if sample["user_id"] == user]
        shown = [sample for sample in mine if sample["request_id"] == request]
        shown.sort(key=lambda sample: (sample["ts"], sample["sample_id"]))
        targets = [s for s in shown if not s["dislike"] and stable_key(s["item_id"]) in codes][:5]
        if not targets:
            continue
        expected.add((user, request))
        batch, row = read[user, request]
        asked = micros(shown[0]["request_ts"])
        assert batch.request_ts_B[row] == asked
        assert bool(batch.holdout_B[row]) == (shown[0]["split"] == "holdout")
        today = [entry(sample) for sample in mine]
        for window, table, length in (
            (batch.short, PATHWAY_SHORT, LENGTHS.short),
            (batch.positive, PATHWAY_POSITIVE, LENGTHS.positive),
        ):
            known_before = [entry(behaviour) for behaviour in past[table.name][user]]
            everything = sorted(known_before + [one for one in today if one[3] or table is PATHWAY_SHORT])
            visible = [one for one in everything if one[0] < asked][-length:]
            assert window.item_key_BS[row][window.mask_BS[row]].tolist() == [one[2] for one in visible]
        window = batch.lifelong
        representatives = sorted((micros(one["ts"]), stable_key(one["item_id"])) for one in lifelong.get(user, []))
        assert window.item_key_BS[row][window.mask_BS[row]].tolist() == [key for _, key in representatives][-LENGTHS.lifelong :]
        there = batch.target_mask_BT[row]
        assert batch.item_key_BT[row][there].tolist() == [stable_key(target["item_id"]) for target in targets]
        assert batch.tokens_BTL[row][there].tolist() == [codes[stable_key(target["item_id"])] for target in targets]
        assert batch.feedback_BT[row][there].tolist() == [_bits(target) for target in targets]
    assert set(read) == expected
    assert len(expected) > len(USERS)
