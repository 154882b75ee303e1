"""A small lake as it is before and after each step, made once by the commands themselves, for the tests that kill them."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onerec.command_line import run
from schemas.lake import Lake, open_lake
from schemas.registry import Registry
from schemas.tables import DAILY_SAMPLES, ITEM_VECTORS, ITEMS, QUARANTINE
from tests.feature_jobs import shard_lake
from tests.feature_jobs.killed_runs import contents
from tests.lake_rows import write_rows

DAYS = ("2026-01-01", "2026-01-02")
_WORLD = ["--users", "40", "--items", "60", "--days", "2", "--start", DAYS[0], "--seed", "5", "--no-media"]
_BADLY = ["--late-share", "0.1", "--duplicate-share", "0.1"]
_CONFIG = "lake.user_buckets=3 lifelong.max_representatives=20 lifelong.rotation=1 ingest.quarantine_limit=0.2"
_SETTINGS = [part for setting in _CONFIG.split() for part in ("--set", setting)]


@dataclass(frozen=True)
class Stage:
    """A step: its arguments (but for the lake), the lake before it, what the lake holds after it."""

    name: str
    arguments: list[str]
    before: Path
    clean: dict[str, Any]

    def of(self, lake: Lake) -> list[str]:
        """The command's arguments for a lake."""
        return [*self.arguments, "--lake", lake.root, "--json"]


def make_stages(folder: Path) -> dict[str, Stage]:
    """Run every step once; the last day's steps by name. Needs a Spark session."""
    landing, users = str(folder / "landing"), folder / "users.txt"
    assert run(["simulate", "--out", landing, *_WORLD, *_BADLY, "--json"]) == 0
    lake = str(folder / "lake")
    assert run(["lake", "create", "--lake", lake, *_SETTINGS]) == 0
    steps = [
        *[(step, arguments) for day in DAYS for step, arguments in _daily(landing, day)],
        ("co-interaction", ["co-interaction", "--date", DAYS[1]]),
        ("first lifelong", ["lifelong", "--date", DAYS[0]]),
        ("lifelong", ["lifelong", "--date", DAYS[1]]),
        ("shards", ["shards", "--date", DAYS[1]]),
        ("mask", ["shards", "--date", DAYS[1], "--targets", "rsft"]),
        ("backfill", ["backfill", "--from", DAYS[0], "--to", DAYS[1]]),
        ("forget", ["forget", "--users", str(users)]),
    ]
    stages = {}
    for number, (name, arguments) in enumerate(steps):
        if name == "first lifelong":
            _publish_vectors(open_lake(lake))
        if name == "forget":
            users.write_text("".join(f"{user}\n" for user in _some_users(open_lake(lake))))
        before = folder / f"before-{number}"
        shutil.copytree(lake, before)
        assert run([*arguments, "--lake", lake, "--json"]) == 0, name
        stages[name] = Stage(name, arguments, before, contents(open_lake(lake)))
    return stages


def _daily(landing: str, day: str) -> list[tuple[str, list[str]]]:
    ingest = ["ingest", "--landing", landing, "--date", day]
    return [("ingest", ingest), *[(step, [step, "--date", day]) for step in ("samples", "pathways")]]


def _some_users(lake: Lake) -> list[str]:
    """Users who have been active, and one who has a row in quarantine."""
    active = sorted(set(lake.read(DAILY_SAMPLES, columns=["user_id"])["user_id"].to_pylist()))
    rejected = [row for row in lake.read(QUARANTINE)["row_json"].to_pylist() if row.startswith("{") and row.endswith("}")]
    return sorted({*active[3:6], next(user for row in rejected if (user := json.loads(row).get("user_id")))})


def _publish_vectors(lake: Lake) -> None:
    """A fusion model, a vector for each item, and tokens."""
    items = sorted(set(lake.read(ITEMS, columns=["item_id"])["item_id"].to_pylist()))
    fusion = Registry.of(lake).publish("fusion", {"seed": 0}, {}).version
    vectors = np.random.default_rng(0).normal(size=(len(items), 6)).astype(np.float32)
    common = {"kind": "fused", "source": fusion, "content_hash": "c", "presence_mask": 1}
    rows = [common | {"item_id": item, "vector": vector.tolist()} for item, vector in zip(items, vectors, strict=True)]
    write_rows(lake, ITEM_VECTORS, rows)
    shard_lake.publish_tokens(lake, items)
