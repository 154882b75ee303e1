"""The reader as a whole: every request's context and targets against brute force, order, resumption, refusals."""

import datetime as dt
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import BadInput
from schemas.shards import stable_key
from schemas.tables import POSITIVE_BIT
from tests.trainer.made_shards import (
    Request,
    UserDay,
    behaviour,
    instant,
    made_log,
    write_day,
    write_items,
    write_lifelong,
    write_mask,
    write_tokens,
)
from trainer.batches import NO_TOKEN
from trainer.features import Lengths
from trainer.shard_reader import ShardReader

DATE = dt.date(2026, 1, 1)
LENGTHS = Lengths(4, 6, 5)
POSITIVE = 1 << POSITIVE_BIT


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return made_log(tmp_path_factory.mktemp("shards"), users=16, days=2, requests=3)


def reader(log, **options):
    options = {"seed": 3, "batch_requests": 8, "lengths": LENGTHS} | options
    return ShardReader(log.shards, options.pop("dates", log.dates), **options)


def request_ids(batches):
    return [request for batch in batches for request in batch.request_ids]


EVENT = st.tuples(st.integers(0, 9), st.integers(0, 8), st.sampled_from([1, 1 | POSITIVE]), st.booleans())
"""Item, seconds from its being shown to its being observed, feedback, target."""
DAY_OF_A_USER = st.lists(st.tuples(st.integers(0, 5), st.lists(EVENT, min_size=1, max_size=4)), min_size=1, max_size=4)
HISTORY = st.lists(st.tuples(st.integers(0, 9), st.integers(-20, 4), st.sampled_from([1, 1 | POSITIVE])), max_size=12)


def _user_day(number, requests, history):
    """A user's record, its short and positive lists and pending behaviours cut from one history."""
    base = instant(DATE)
    past = [behaviour(1000 * number + n, f"i{i}", base + 10**6 * (o - 9), base + 10**6 * o, feedback=f)
            for n, (i, o, f) in enumerate(history)]  # fmt: skip
    past.sort(key=lambda row: (row["observed_ts"], row["sample_id"]))
    seen = [row for row in past if row["observed_ts"] < base]
    asked = []
    sample_id = 1000 * number + 500
    for n, (second, events) in enumerate(sorted(requests, key=lambda entry: entry[0])):
        at = base + second * 10**6
        rows = []
        for item, delay, feedback, target in events:
            rows.append(behaviour(sample_id, f"i{item}", at, at + delay * 10**6, feedback=feedback) | {"target": target})
            sample_id += 1
        asked.append(Request(f"u{number}r{n}", at, rows))
    return UserDay(
        f"u{number}", asked, seen[-20:], [r for r in seen if r["feedback"] & POSITIVE][-256:], past[len(seen) :]
    ), past  # fmt: skip


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(DAY_OF_A_USER, HISTORY), min_size=1, max_size=5), st.integers(1, 3))
def test_every_window_and_target_is_what_brute_force_says(tmp_path_factory, days, max_targets):
    shards = tmp_path_factory.mktemp("oracle")
    made = [_user_day(number, *day) for number, day in enumerate(days)]
    codes = {f"i{n}": (n, n % 4) for n in range(9)}  # i9 has no tokens
    versions = [(f"i{n}", instant(DATE) + s * 10**6, f"author{n} of {s}") for n in range(10) for s in (-100, 2)]
    items = write_items(shards, [{"item_id": i, "valid_from": at, "author_id": author} for i, at, author in versions])
    write_day(shards, DATE, [day for day, _ in made], items, write_tokens(shards, codes), sizes=(9, 4), rows_per_batch=2)

    found = {}
    whole = ShardReader(shards, [DATE], seed=0, batch_requests=3, lengths=LENGTHS, max_targets=max_targets)
    for batch in whole:
        for row, request in enumerate(batch.request_ids):
            found[request] = (batch, row)

    expected = set()
    for day, past in made:
        everything = past + [event for request in day.requests for event in request.events]
        everything.sort(key=lambda row: (row["observed_ts"], row["sample_id"]))
        for request in day.requests:
            targets = [e for e in request.events if e["target"] and e["item_key"] != stable_key("i9")][:max_targets]
            if not targets:
                continue
            expected.add(request.request_id)
            batch, row = found[request.request_id]
            visible = [event for event in everything if event["observed_ts"] < request.request_ts]
            for window, rows, length in (
                (batch.short, visible, 4),
                (batch.positive, [event for event in visible if event["feedback"] & POSITIVE], 6),
            ):
                mask = window.mask_BS[row]
                assert window.item_key_BS[row][mask].tolist() == [event["item_key"] for event in rows[-length:]]
                authors = [_author(versions, event["item_key"], request.request_ts) for event in rows[-length:]]
                assert window.author_key_BS[row][mask].tolist() == authors
            mask = batch.target_mask_BT[row]
            assert batch.item_key_BT[row][mask].tolist() == [event["item_key"] for event in targets]
            assert batch.feedback_BT[row][mask].tolist() == [event["feedback"] for event in targets]
            assert mask.tolist() == [n < len(targets) for n in range(max_targets)]
    assert set(found) == expected


def _author(versions, item_key, moment):
    valid = [(at, author) for item, at, author in versions if stable_key(item) == item_key and at < moment]
    return stable_key(max(valid)[1]) if valid else 0


class TestOrder:
    def test_an_epoch_holds_every_request_once(self, log):
        ids = request_ids(reader(log, split="all"))
        assert sorted(ids) == sorted(r.request_id for days in log.user_days.values() for day in days for r in day.requests)

    def test_order_is_decided_by_seed_and_epoch(self, log):
        first, again, other = reader(log), reader(log), reader(log, seed=4)
        epoch_0 = request_ids(first)
        assert epoch_0 == request_ids(again)
        assert epoch_0 != request_ids(other)
        assert first.epoch == 1
        epoch_1 = request_ids(first)
        assert epoch_1 != epoch_0
        assert sorted(epoch_1) == sorted(epoch_0)

    @pytest.mark.slow
    @pytest.mark.parametrize("world", [2, 4])
    def test_ranks_share_the_same_global_batches(self, log, world):
        alone = [batch.request_ids for batch in reader(log)]
        ranks = [[batch.request_ids for batch in reader(log, rank=rank, world=world)] for rank in range(world)]
        for number, ids in enumerate(alone):
            together = [""] * len(ids)
            for rank in range(world):
                mine = ranks[rank][number] if number < len(ranks[rank]) else ()
                together[rank::world] = mine
            assert tuple(together) == ids

    def test_batches_do_not_depend_on_the_cache(self, log):
        small, large = reader(log, cache_bytes=1), reader(log)
        for left, right in zip(small, large, strict=True):
            assert left.request_ids == right.request_ids
            assert left.positive.item_key_BS.equal(right.positive.item_key_BS)

    @pytest.mark.slow
    def test_resumes_at_the_exact_request(self, log):
        whole = reader(log)
        expected = request_ids(whole) + request_ids(whole)
        for stop in (1, 3, 9, 11, 12):
            first = reader(log)
            got = []
            while len(got) < 8 * stop and first.epoch < 2:
                for batch in first:
                    got += batch.request_ids
                    if len(got) >= 8 * stop:
                        break
            second = reader(log)
            second.load_state_dict(json.loads(json.dumps(first.state_dict())))
            while second.epoch < 2:
                got += request_ids(second)
            assert got == expected

    def test_a_state_of_other_shards_is_refused(self, log):
        state = reader(log).state_dict()
        with pytest.raises(BadInput, match="not those"):
            reader(log, dates=log.dates[:1]).load_state_dict(state)
        with pytest.raises(BadInput, match="not those"):
            reader(log, seed=9).load_state_dict(state)


class TestSelection:
    def test_held_out_users_are_never_trained_on(self, log):
        held_out = {day.user_id for days in log.user_days.values() for day in days if day.holdout}
        trained = {user for batch in reader(log) for user in batch.user_ids}
        kept = {user for batch in reader(log, split="holdout") for user in batch.user_ids}
        assert held_out
        assert kept == held_out
        assert not trained & held_out

    def test_counts_say_what_was_left_out(self, tmp_path):
        events = [behaviour(n, f"i{n}", instant(DATE), instant(DATE) + 10) for n in range(4)]
        days = [
            UserDay("a", [Request("r1", instant(DATE), events), Request("r2", instant(DATE) + 5, events[3:])]),
            UserDay("b", [Request("r3", instant(DATE), events[:1])], holdout=True),
        ]
        write_day(tmp_path, DATE, days, write_items(tmp_path, []), write_tokens(tmp_path, {f"i{n}": (n, 0, 0) for n in range(3)}))
        counts = ShardReader(tmp_path, [DATE], seed=0, batch_requests=1, lengths=LENGTHS, max_targets=2).counts
        assert counts.__dict__ == {
            "requests": 1,
            "targets": 2,
            "requests_other_split": 1,
            "requests_without_targets": 1,
            "targets_without_tokens": 2,
            "targets_over_cap": 1,
        }

    def test_the_mask_rsft_chooses_other_targets(self, log):
        date = log.dates[0]
        manifest = json.loads((log.shards / f"date={date}" / "manifest.json").read_text())
        write_mask(log.shards, date, manifest, log.user_days[date], lambda event: event["sample_id"] % 2)
        expected = sorted(
            event["item_key"]
            for day in log.user_days[date]
            if not day.holdout
            for request in day.requests
            for event in request.events
            if event["sample_id"] % 2
        )
        found = reader(log, dates=[date], targets="rsft")
        assert sorted(key for b in found for key in b.item_key_BT[b.target_mask_BT].tolist()) == expected

    def test_a_mask_that_is_missing_is_named(self, log):
        with pytest.raises(BadInput, match=r"targets-rsft.json: no such manifest; run `onerec shards .* --targets rsft`"):
            reader(log, dates=log.dates[1:], targets="rsft")

    def test_lifelong_representatives_belong_to_their_user(self, tmp_path):
        at = instant(DATE)
        days = [UserDay(user, [Request(f"{user}r", at, [behaviour(1, "i0", at, at + 1)])]) for user in ("a", "b", "c")]
        rows = [
            {
                "user_id": user,
                "item_key": [stable_key(f"i{n}") for n in range(count)],
                "ts": [at - 10 - n for n in range(count)],  # newest first: the reader puts the oldest first
                "play_time_ms": [1000.4] * count,
                "duration_ms": [-1.0] * count,
                "feedback": [1] * count,
                "count": [1] * count,
            }
            for user, count in (("a", 2), ("c", 7))
        ]
        sidecars = {bucket: write_lifelong(tmp_path, DATE, bucket, rows) for bucket in range(2)}
        tokens = write_tokens(tmp_path, {"i0": (1, 2, 3)})
        write_day(tmp_path, DATE, days, write_items(tmp_path, []), tokens, lifelong=sidecars)
        for batch in ShardReader(tmp_path, [DATE], seed=0, batch_requests=1, lengths=LENGTHS):
            window, count = batch.lifelong, {"a": 2, "b": 0, "c": 7}[batch.user_ids[0]]
            expected = [stable_key(f"i{n}") for n in range(count)][::-1][-LENGTHS.lifelong :]
            assert window.item_key_BS[0][window.mask_BS[0]].tolist() == expected
            if count:
                assert window.tokens_BSL[0, -1].tolist() == [1, 2, 3]
                assert window.tokens_BSL[0, -2].tolist() == [NO_TOKEN] * 3

    def test_labels_of_targets(self, tmp_path):
        at = instant(DATE)
        events = [
            behaviour(1, "i0", at, at + 1, play=3000, duration=1500, feedback=0b11) | {"quantile": 0.25},
            behaviour(2, "i1", at, at + 1, play=10, duration=-1, feedback=POSITIVE),
        ]
        tokens = write_tokens(tmp_path, {"i0": (1, 2, 3), "i1": (4, 5, 6)})
        write_day(tmp_path, DATE, [UserDay("a", [Request("r", at, events)])], write_items(tmp_path, []), tokens)
        (batch,) = ShardReader(tmp_path, [DATE], seed=0, batch_requests=2, lengths=LENGTHS, max_targets=3)
        assert batch.tokens_BTL.tolist() == [[[1, 2, 3], [4, 5, 6], [0, 0, 0]]]
        assert batch.flag("click").tolist() == [[True, False, False]]
        assert batch.flag("like").tolist() == [[True, False, False]]
        assert batch.flag("positive").tolist() == [[False, True, False]]
        np.testing.assert_array_equal(batch.play_ratio_BT, [[2, np.nan, np.nan]])
        np.testing.assert_array_equal(batch.watch_quantile_day_BT, [[0.25, 0.5, np.nan]])
        assert batch.duration_ms_BT.tolist() == [[1500, -1, -1]]


class TestRefusals:
    @pytest.fixture
    def fresh(self, tmp_path):
        return made_log(tmp_path, users=6, days=1, requests=1)

    @pytest.fixture
    def folder(self, fresh):
        return fresh.shards / f"date={fresh.dates[0]}"

    def edit(self, folder: Path, **changes):
        path = folder / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    def entry(self, folder: Path):
        return json.loads((folder / "manifest.json").read_text())["files"][0]

    def test_missing_day(self, fresh):
        with pytest.raises(BadInput, match=r"date=2030-01-01/manifest.json: no such manifest; run `onerec shards"):
            reader(fresh, dates=[dt.date(2030, 1, 1)])

    @pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"format": "onerec-shards"}', "[" * 100000, "\xff"])
    def test_manifest_that_is_none(self, fresh, folder, content):
        (folder / "manifest.json").write_text(content)
        with pytest.raises(BadInput, match=r"manifest.json"):
            reader(fresh)

    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            ({"format": "other"}, "format 'other'"),
            ({"version": 2}, "shard version 2"),
            ({"date": "2026-01-02"}, "is of 2026-01-02"),
            ({"codebook_sizes": ["8"]}, "codebook_sizes"),
            ({"lifelong": {"first": {}}}, r"lifelong\.first"),
            ({"lifelong": [7]}, "lifelong: Input should be a valid dictionary"),
            ({"codebook_sizes": [2, 8, 8]}, "outside the codebook"),
        ],
    )
    def test_foreign_manifest(self, fresh, folder, changes, complaint):
        self.edit(folder, **changes)
        with pytest.raises(BadInput, match=complaint):
            reader(fresh)

    @pytest.mark.parametrize("path", ["../../../../etc/passwd", "/etc/passwd", "../date=9/x.arrow/../../..", "..", "\0"])
    def test_no_path_leaves_the_root(self, fresh, folder, path):
        self.edit(folder, files=[self.entry(folder) | {"path": path}])
        with pytest.raises(BadInput, match="lies outside"):
            reader(fresh)

    @pytest.mark.parametrize("path", ["../elsewhere/tokens.arrow", "/etc/passwd", "items/../../x"])
    def test_no_path_of_a_shared_file_leaves_the_root(self, fresh, folder, path):
        self.edit(folder, tokens=self.entry(folder) | {"path": path})
        with pytest.raises(BadInput, match=r"tokens\.path: .* lies outside the store"):
            reader(fresh)

    def test_links_that_lead_to_one_another(self, fresh, folder):
        (folder / "a.arrow").symlink_to("b.arrow")
        (folder / "b.arrow").symlink_to("a.arrow")
        self.edit(folder, files=[self.entry(folder) | {"path": "a.arrow"}])
        with pytest.raises(BadInput, match=r"a\.arrow: (lies outside|missing)"):
            reader(fresh)

    def test_a_link_out_of_the_root(self, fresh, folder, tmp_path_factory):
        elsewhere = tmp_path_factory.mktemp("elsewhere") / "secret"
        elsewhere.write_bytes(b"0" * self.entry(folder)["bytes"])
        (folder / "link.arrow").symlink_to(elsewhere)
        self.edit(folder, files=[self.entry(folder) | {"path": "link.arrow"}])
        with pytest.raises(BadInput, match="outside"):
            reader(fresh)

    def test_missing_file(self, fresh, folder):
        (folder / self.entry(folder)["path"]).unlink()
        with pytest.raises(BadInput, match="missing, though its manifest names it"):
            reader(fresh)

    def test_truncated_file(self, fresh, folder):
        path = folder / self.entry(folder)["path"]
        path.write_bytes(path.read_bytes()[:-7])
        with pytest.raises(BadInput, match="truncated or altered"):
            reader(fresh)

    def test_altered_file(self, fresh, folder):
        path = folder / self.entry(folder)["path"]
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
        with pytest.raises(BadInput, match="sha256"):
            reader(fresh)

    def test_a_file_that_is_no_arrow(self, fresh, folder):
        import hashlib

        content = b"not an arrow file, whatever its manifest says"
        (folder / "x.arrow").write_bytes(content)
        file = {"path": "x.arrow", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "user_bucket": 0}
        self.edit(folder, files=[self.entry(folder) | file])
        with pytest.raises(BadInput, match="not an Arrow file"):
            reader(fresh)

    def test_a_file_of_other_columns(self, fresh, folder):
        tokens = json.loads((folder / "manifest.json").read_text())["tokens"]
        shutil.copy(fresh.shards / tokens["path"], folder / "tokens.arrow")
        self.edit(folder, files=[self.entry(folder) | tokens | {"path": "tokens.arrow"}])
        with pytest.raises(BadInput, match="column user_id is missing"):
            reader(fresh)

    def test_days_of_two_codebooks(self, tmp_path):
        log = made_log(tmp_path, users=6, days=2, requests=1)
        self.edit(tmp_path / f"date={log.dates[1]}", codebook_version="cb2")
        with pytest.raises(BadInput, match="01: codebook cb1, that of 2026-01-02 is cb2; run `onerec shards --date 2026-01-01"):
            reader(log)
        with pytest.raises(BadInput, match="codebook cb1, the model's is cb9"):
            reader(log, dates=log.dates[:1], codebook_version="cb9")

    @pytest.mark.slow
    def test_batches_that_ranks_cannot_share(self, log):
        with pytest.raises(BadInput, match="cannot be shared"):
            reader(log, batch_requests=7, rank=0, world=2)
