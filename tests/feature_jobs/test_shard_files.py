"""What lies in the shard store is believed only once it was looked at: what is not ours ends every command in one line."""

import datetime as dt
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from feature_jobs import rsft, shard_side_tables, shards
from feature_jobs.forget_files import Tasks
from feature_jobs.forget_shards import forget_in_shards, search_shards
from feature_jobs.shard_files import clean, read_ipc, shards_root, write_ipc
from schemas.config import Config
from schemas.errors import BadInput
from schemas.lake import Lake, create_lake, open_lake
from schemas.shards import TARGET_MASK
from tests.feature_jobs import shard_lake
from tests.feature_jobs.shard_lake import DAY, ITEM_IDS, USERS
from tests.lake_rows import user_bucket

NO_SPARK: Any = None
GONE = list({user_bucket(user, 4): user for user in USERS}.values())
"""One user of each bucket."""
COMMANDS: dict[str, Callable[[Lake], Any]] = {
    "clean": lambda lake: clean(shards_root(lake)),
    "verify": lambda lake: shards.verify(lake, DAY),
    "retokenise": lambda lake: shards.retokenise(NO_SPARK, lake, [DAY]),
    "mask": lambda lake: rsft.run(NO_SPARK, lake, DAY),
    "forget": lambda lake: forget_in_shards(lake, pa.array(GONE), Tasks(None)),
    "shards": lambda lake: shards.run(NO_SPARK, lake, DAY),
}


def assert_refused(lake: Lake, commands: tuple[str, ...], said: str) -> None:
    """Each of COMMANDS ends in a line like ``said``."""
    for command in commands:
        with pytest.raises(BadInput, match=said):
            COMMANDS[command](lake)


DEEP, NOT_UTF8 = b"[" * 100_000, b'{"files": "\xff"}'
Damage = Callable[[dict[str, Any]], Any]


def short(value: object) -> str | None:
    """The name of a test's case: the beginning of a text."""
    return repr(value[:12]) if isinstance(value, bytes | str) else None


def change(name: str, value: Any) -> Damage:
    """Give a manifest's field another value."""
    return lambda manifest: manifest | {name: value}


def change_file(name: str, value: Any) -> Damage:
    """Give a field of a manifest's first file another value."""
    return lambda manifest: manifest | {"files": [manifest["files"][0] | {name: value}, *manifest["files"][1:]]}


def without(name: str) -> Damage:
    """Leave a field out of a manifest."""
    return lambda manifest: {key: value for key, value in manifest.items() if key != name}


def run_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patch the jobs so that they run with NO_SPARK: their tasks one after another."""
    for module in (shards, shard_side_tables, rsft):
        monkeypatch.setattr(module, "run_by_bucket", lambda _, buckets, work: [work(bucket) for bucket in buckets])
    monkeypatch.setattr(rsft, "_session_cut", lambda *_: -1)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a lake with the shard of a day, its mask and a lifelong refresh."""
    made = create_lake(str(tmp_path_factory.mktemp("built") / "lake"), Config())
    shard_lake.fill(made, seed=1)
    shard_lake.fill_items(made)
    shard_lake.fill_lifelong(made, DAY - dt.timedelta(days=2), USERS, seed=1)
    shard_lake.publish_tokens(made, ITEM_IDS[:5])
    with pytest.MonkeyPatch.context() as patch:
        run_in_turn(patch)
        shards.run(NO_SPARK, made, DAY)
        rsft.run(NO_SPARK, made, DAY)
    return Path(made.root)


@pytest.fixture
def lake(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """A copy of it, for one test."""
    run_in_turn(monkeypatch)
    shutil.copytree(built, tmp_path / "lake")
    return open_lake(str(tmp_path / "lake"))


def manifest_of(lake: Lake, kind: str) -> Path:
    """Where the manifest of the day, of its mask or of the refresh lies."""
    root = shards_root(lake)
    refresh = f"lifelong/refresh_date={DAY - dt.timedelta(days=2)}/manifest.json"
    return root / {"day": f"date={DAY}/manifest.json", "mask": f"date={DAY}/targets-rsft.json", "refresh": refresh}[kind]


def damaged(path: Path, damage: Damage | bytes) -> None:
    """Damage a manifest."""
    content = damage if isinstance(damage, bytes) else json.dumps(damage(json.loads(path.read_text()))).encode()
    path.write_bytes(content)


def linked_elsewhere(lake: Lake, path: Path) -> Path:
    """Move a file out of the store and leave a link to it; where it is now."""
    target = Path(lake.root) / f"elsewhere-{path.name}"
    path.rename(target)
    path.symlink_to(target)
    return target


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_whole_is_taken(lake: Lake, command: str) -> None:
    COMMANDS[command](lake)
    assert shards.verify(lake, DAY) > 0
    assert clean(shards_root(lake)) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        DEEP,
        NOT_UTF8,
        b"[]",
        change_file("path", "/etc/passwd"),
        change_file("path", "../../onerec.yaml"),
        change_file("path", 7),
        change_file("user_bucket", "0"),
        change_file("events", None),
        change("tokens", {"path": "../tokens.arrow", "bytes": 1, "sha256": "0" * 64}),
        change("items", {"path": "items/items.arrow"}),
        change("lifelong", [1]),
        change("lifelong", {"first": {"path": "x", "bytes": 1, "sha256": "0" * 64}}),
        change("user_buckets", 0),
        change("counts", {"users": 1}),
        change("files", {}),
        without("tokens"),
        without("version"),
    ],
    ids=short,
)
def test_a_day_that_is_not_ours_is_named(lake: Lake, damage: Damage | bytes) -> None:
    damaged(manifest_of(lake, "day"), damage)
    said = rf"date={DAY}/manifest\.json: .*write it again with `onerec shards`"
    assert_refused(lake, ("clean", "verify", "retokenise", "mask", "forget"), said)
    shards.run(NO_SPARK, lake, DAY)
    assert shards.verify(lake, DAY) > 0, "as it says"


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [DEEP, change_file("path", "../x.arrow"), change_file("data_sha256", 7), change("files", 7), without("counts")],
    ids=short,
)
def test_a_mask_that_is_not_ours_is_named(lake: Lake, damage: Damage | bytes) -> None:
    damaged(manifest_of(lake, "mask"), damage)
    said = r"targets-rsft\.json: .*write it again with `onerec shards --targets rsft`"
    assert_refused(lake, ("clean", "verify", "forget", "shards"), said)
    rsft.run(NO_SPARK, lake, DAY)
    assert shards.verify(lake, DAY) > 0, "as it says"


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [DEEP, change_file("path", "/x"), change_file("source", None), change_file("user_bucket", -1), without("files")],
    ids=short,
)
def test_a_refresh_that_is_not_ours_is_named(lake: Lake, damage: Damage | bytes) -> None:
    path = manifest_of(lake, "refresh")
    damaged(path, damage)
    said = r"refresh_date=.*/manifest\.json: .*remove it, and `onerec shards` writes it again"
    assert_refused(lake, ("clean", "forget", "shards"), said)
    path.unlink()
    shards.run(NO_SPARK, lake, DAY)
    assert path.is_file(), "as it says"


@pytest.mark.parametrize("command", ["verify", "retokenise", "mask"])
def test_a_manifest_of_another_day_is_named(lake: Lake, command: str) -> None:
    damaged(manifest_of(lake, "day"), change("date", "../../elsewhere"))
    with pytest.raises(BadInput, match=r"manifest\.json: is of \.\./\.\./elsewhere, not 2026-01-05"):
        COMMANDS[command](lake)


@pytest.mark.parametrize("command", ["verify", "forget"])
def test_a_mask_of_other_data_is_named(lake: Lake, command: str) -> None:
    damaged(manifest_of(lake, "day"), lambda manifest: manifest | {"files": manifest["files"][1:]})
    with pytest.raises(BadInput, match="a mask of other data than the day's; run `onerec shards --targets rsft`"):
        COMMANDS[command](lake)


@pytest.mark.parametrize("command", ["verify", "retokenise", "mask", "forget"])
def test_a_link_out_of_the_store_is_named(lake: Lake, command: str) -> None:
    path = manifest_of(lake, "day")
    target = linked_elsewhere(lake, path.parent / json.loads(path.read_text())["files"][0]["path"])
    before = target.read_bytes()
    with pytest.raises(BadInput, match=r"bucket=.*\.arrow: lies outside"):
        COMMANDS[command](lake)
    assert target.read_bytes() == before


def test_a_link_to_a_file_of_many_days_is_named_and_a_sidecar_written_in_its_place(lake: Lake) -> None:
    manifest = json.loads(manifest_of(lake, "day").read_text())
    sidecar = shards_root(lake) / next(iter(manifest["lifelong"].values()))["path"]
    linked_elsewhere(lake, sidecar)
    with pytest.raises(BadInput, match=r"bucket=.*\.arrow: lies outside"):
        COMMANDS["forget"](lake)
    shards.run(NO_SPARK, lake, DAY)
    assert not sidecar.is_symlink()
    assert shards.verify(lake, DAY) > 0
    linked_elsewhere(lake, shards_root(lake) / manifest["tokens"]["path"])
    with pytest.raises(BadInput, match=r"tokens-.*\.arrow: lies outside"):
        COMMANDS["forget"](lake)


def test_a_lost_token_table_is_named(lake: Lake) -> None:
    path = manifest_of(lake, "day")
    manifest = json.loads(path.read_text())
    tokens = shards_root(lake) / manifest["tokens"]["path"]
    recount = shards._recount_task({0: path.parent / manifest["files"][0]["path"]}, tokens)
    assert recount(0).keys() == {"targets_without_tokens"}
    tokens.unlink()
    for look in (lambda: recount(0), lambda: shard_side_tables.keys_with_tokens(tokens), lambda: COMMANDS["forget"](lake)):
        with pytest.raises(BadInput, match=r"tokens-.*\.arrow: unreadable shard file \(.+\); run `onerec shards`"):
            look()


@pytest.mark.parametrize("command", ["retokenise", "mask", "forget"])
def test_a_file_of_other_columns_is_named(lake: Lake, command: str) -> None:
    path = manifest_of(lake, "day")
    data = path.parent / json.loads(path.read_text())["files"][0]["path"]
    other = write_ipc(pa.table({"user_id": [1], "event_target": [[True]]}), path.parent, "other", compressed=True)
    (path.parent / other["path"]).replace(data)
    with pytest.raises(BadInput, match=rf"{data.name}: column \w+ is (int64|missing), expected "):
        COMMANDS[command](lake)
    with pytest.raises(BadInput, match=rf"{data.name}: column user_id is int64, expected string"):
        search_shards(lake, pa.array(["anna"]), Tasks(None))


def test_days_of_other_tokens_are_found_in_what_is_ours(lake: Lake) -> None:
    after, path = DAY + dt.timedelta(days=1), manifest_of(lake, "day")
    assert shards.days_of_other_tokens(lake, after) == []
    shard_lake.publish_tokens(lake, ITEM_IDS, seed=1)
    assert shards.days_of_other_tokens(lake, after) == [DAY]
    damaged(path, change("version", 2))
    assert shards.days_of_other_tokens(lake, after) == [], "of another format: this code cannot give it tokens"
    for damage in (change("codebook_sizes", "4, 4"), without("codebook_version"), b"[]", DEEP):
        damaged(path, damage)
        with pytest.raises(BadInput, match=r"manifest\.json: "):
            shards.days_of_other_tokens(lake, after)
        path.write_text(json.dumps({"format": "onerec-shards", "version": 1, "codebook_version": "c", "codebook_sizes": []}))


def test_columns_are_read_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    table = pa.table({"user_id": ["a", "b"], "other": [1, 2], "event_target": [[True], [False, True]]})
    for compressed in (True, False):
        path = tmp_path / write_ipc(table, tmp_path, "x", compressed=compressed)["path"]
        assert read_ipc(path, TARGET_MASK).to_pydict() == table.select(["user_id", "event_target"]).to_pydict()
        turned = pa.schema([TARGET_MASK.field("event_target"), TARGET_MASK.field("user_id")])
        assert read_ipc(path, turned).column_names == ["event_target", "user_id"]
    empty = tmp_path / write_ipc(TARGET_MASK.empty_table(), tmp_path, "x", compressed=True)["path"]
    assert read_ipc(empty, TARGET_MASK).num_rows == 0


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    table = pa.table({"user_id": ["a"] * 1000, "event_target": [[True]] * 1000})
    path = tmp_path / write_ipc(table, tmp_path, "x", compressed=False)["path"]
    whole = path.read_bytes()
    for content in (b"", b"ARROW1", b"PAR1" * 100, whole[:-20], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(BadInput, match=rf"{path.name}: unreadable shard file \(.+\); run `onerec shards` for its day again"):
            read_ipc(path, TARGET_MASK)
    path.unlink()
    with pytest.raises(BadInput, match=rf"{path.name}: unreadable shard file"):
        read_ipc(path, TARGET_MASK)


def test_a_column_that_is_there_twice_is_missing(tmp_path: Path) -> None:
    table = pa.table([pa.array(["a"]), pa.array(["b"]), pa.array([[True]])], names=["user_id", "user_id", "event_target"])
    path = tmp_path / write_ipc(table, tmp_path, "x", compressed=True)["path"]
    with pytest.raises(BadInput, match="column user_id is missing, expected string"):
        read_ipc(path, TARGET_MASK)
