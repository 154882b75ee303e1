"""What a day costs from its landing files to the three daily pathways, against DuckDB doing the same work in the same run.

A typical day: 45 events a user, a full day and everybody's state behind it (``samples_pathways_lake``). Slopes over growing
sizes; a core-second is a second of wall time on one of two cores, idle or not; processor time is printed beside it. Ours is
what ``onerec ingest``, ``samples`` and ``pathways`` do on a warm session, JVM, Python workers and Delta's log included.
The full run takes an hour and a half on two cores, a third of it DuckDB's.

* 16 buckets: half a million events and 28,000 users of state in one at 8 million, so a task fits half a gigabyte, and both
  cores are busy until near the end. The skewed day takes 32: a bucket's own share is 3.1 % of the day then, less than the
  5 % of the heaviest user, whose bucket is 2.6 times the median without a cap. (With a bucket a user, no design that keeps a
  user's day in one task could pass; with 8, any would.)
* Each of our rounds goes over all sizes. The JVM compiles for minutes, and a size measured before all others would pay for it
  alone. The peer's come after all of ours: it takes most of the memory, and what ours reads would come from the disk again.
* The smallest size is nearly all fixed start (the driver's work, and opening and closing each bucket's files), so that this is
  measured: fitted from the large days alone, it and the growth exponent trade places.
* DuckDB gets Parquet only, two threads and memory for the whole day. Lakes and landings are made afresh from one seed.
"""

import argparse
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.parquet as pq

from benchmarks.harness import finish, growth_exponent, options, progress, slope
from benchmarks.samples_pathways_data import DAY, World, write_landing
from benchmarks.samples_pathways_duckdb import Before, Peer
from benchmarks.samples_pathways_lake import Past, clone, make_lake
from benchmarks.samples_pathways_runs import CORES, Cost, Product, measured, median_cost
from schemas.lake import Lake
from schemas.tables import DAILY_SAMPLES, HISTORY, PATHWAY_POSITIVE, PATHWAY_SHORT, PATHWAY_STATIC, USER_STATE, Table

EVENTS_A_DAY = 18e9
STEPS = ("ingest_parquet", "ingest_jsonl_gz", "samples", "pathways")
CHAINS = {kind: (f"ingest_{kind}", "samples", "pathways") for kind in ("parquet", "jsonl_gz")}
PEER = "duckdb"
PEER_REPEATED = 4_000_000
"""Above so many events DuckDB has one round: it takes minutes, and varies little then."""
NO_CAP = "samples.user_day_cap=1000000000"


@dataclass(frozen=True)
class Plan:
    """Sizes in events; ``side`` is the size of the day with a long history, and ``skew`` that of the skewed day: large enough
    that a task's time is its rows'. Ours is measured ``repeats`` times at each of the sizes, the peer once at the largest, all
    else ``others`` times."""

    sizes: tuple[int, ...]
    repeats: int
    side: int
    skew: int
    buckets: int = 16
    skew_buckets: int = 32
    memory: str = "4g"
    peer_memory: str = "8GB"
    others: int = 3

    def peer_rounds(self, events: int) -> int:
        """How often the peer is measured at a size."""
        return self.others if events <= PEER_REPEATED else 1


FULL = Plan((62_500, 1_000_000, 2_000_000, 4_000_000, 8_000_000), 5, 1_000_000, 4_000_000)
QUICK = Plan((12_500, 100_000, 200_000, 400_000), 1, 100_000, 400_000, memory="2g", peer_memory="4GB", others=1)


@contextmanager
def a_folder() -> Iterator[Path]:
    """A temporary folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="samples-pathways-") as name:
        yield Path(name)


class Benchmark:
    """Everything measured on one session."""

    def __init__(self, plan: Plan, seed: int, events: Path) -> None:
        self.plan, self.seed = plan, seed
        self.product = Product(events, plan.memory)

    def warm_up(self) -> None:
        """One day, not counted: classes are loaded and compiled, Python workers started."""
        with a_folder() as folder:
            before, zones = self._prepared(folder, World(self.plan.side, seed=self.seed))
            self._our_round(before, zones, folder)
            self._peer_round(before, zones, folder)

    def costs(self) -> tuple[dict[int, dict[str, Cost]], dict[str, float]]:
        """Median cost of each step, and of the peer's whole day, by size; bytes a row or user of the largest day's tables."""
        ours: dict[int, list[dict[str, Cost]]] = defaultdict(list)
        peer: dict[int, list[Cost]] = defaultdict(list)
        with a_folder() as root:
            folders = {events: root / str(events) for events in self.plan.sizes}
            prepared = {events: self._prepared(folder, World(events, seed=self.seed)) for events, folder in folders.items()}
            for _ in range(self.plan.repeats):
                for events, (before, zones) in prepared.items():
                    spent, stored = self._our_round(before, zones, folders[events])
                    ours[events].append(spent)
            for events, (before, zones) in prepared.items():
                for _ in range(self.plan.peer_rounds(events)):
                    peer[events].append(self._peer_round(before, zones, folders[events]))
        costs = {}
        for events in self.plan.sizes:
            costs[events] = {step: median_cost([spent[step] for spent in ours[events]]) for step in STEPS}
            costs[events][PEER] = median_cost(peer[events])
            for name, cost in costs[events].items():
                progress(f"{events:>9,} events  {name:16} {cost.wall:7.2f} s wall, {cost.processor:7.2f} s processor")
        return costs, stored

    def _prepared(self, folder: Path, world: World, buckets: int | None = None, times: int = 1) -> tuple[Lake, dict[str, Path]]:
        before = make_lake(Past(world, buckets or self.plan.buckets, times), folder / "before", CORES)
        return before, write_landing(world, folder / "landing", json_lines=True)

    def _our_round(self, before: Lake, zones: dict[str, Path], folder: Path) -> tuple[dict[str, Cost], dict[str, float]]:
        costs = {}
        self.product.wake()
        for kind, zone in zones.items():
            lake = clone(before, folder / kind)
            costs[f"ingest_{kind}"], _ = self.product.step("ingest", lake.root, DAY, "--landing", str(zone))
            if kind == "parquet":
                for step in ("samples", "pathways"):
                    costs[step], _ = self.product.step(step, lake.root, DAY)
                sizes = sizes_of(lake)
            shutil.rmtree(lake.root)
        return costs, sizes

    def _peer_round(self, before: Lake, zones: dict[str, Path], folder: Path) -> Cost:
        out = folder / "peer"
        out.mkdir()
        spent: list[Cost] = []
        with measured(spent):
            Peer(Before.of(before), zones["parquet"], out, threads=CORES, memory=self.plan.peer_memory).run()
        shutil.rmtree(out)
        return spent[0]

    def history_ratio(self) -> float:
        """Time of samples and pathways of one day where everybody's history, and its files, are ten times as long, over that of
        the usual history."""
        seconds: dict[int, list[float]] = defaultdict(list)
        with a_folder() as folder:
            world = World(self.plan.side, seed=self.seed)
            prepared = {times: self._prepared(folder / f"times{times}", world, times=times) for times in (1, 10)}
            for _ in range(self.plan.others):
                for times, (before, zones) in prepared.items():
                    lake = clone(before, folder / "lake")
                    self.product.step("ingest", lake.root, DAY, "--landing", str(zones["parquet"]))
                    seconds[times].append(
                        sum(self.product.step(step, lake.root, DAY)[0].wall for step in ("samples", "pathways"))
                    )
                    shutil.rmtree(lake.root)
        progress(f"samples and pathways by length of history: {dict(seconds)}")
        return median(seconds[10]) / median(seconds[1])

    def stragglers(self) -> dict[str, dict[str, float]]:
        """On the skewed day, with the cap for robots off and on: each step's longest task over the median, in its worst stage;
        the median of some runs, since a neighbour's burst makes any one task long."""
        ratios: dict[str, dict[str, list[float]]] = {"cap_off": defaultdict(list), "cap_on": defaultdict(list)}
        with a_folder() as folder:
            world = World(self.plan.skew, seed=self.seed, user_share=0.05, item_share=0.2)
            before, zones = self._prepared(folder, world, self.plan.skew_buckets)
            for case, cap in (("cap_off", ["--set", NO_CAP]), ("cap_on", [])) * self.plan.others:
                lake = clone(before, folder / case)
                for step in ("ingest", "samples", "pathways"):
                    self.product.wake()  # a worker's start is no skew
                    since = time.time()
                    landing = ["--landing", str(zones["parquet"])] if step == "ingest" else []
                    self.product.step(step, lake.root, DAY, *landing, *cap)
                    ratios[case][step].append(max(self.product.straggling(since).values(), default=1.0))
                shutil.rmtree(lake.root)
        worst = {case: {step: median(runs) for step, runs in by_step.items()} for case, by_step in ratios.items()}
        progress(f"longest task over the median: {worst}")
        return worst


def sizes_of(lake: Lake) -> dict[str, float]:
    """Bytes of the day's tables: a sample; a user-day (its pathways and its part of the history); a user of the state."""

    def measured_table(table: Table) -> tuple[int, int]:
        files = [Path(uri.removeprefix("file://")) for uri in lake.open_table(table).file_uris() if f"date={DAY}" in uri]
        return sum(file.stat().st_size for file in files), sum(pq.read_metadata(file).num_rows for file in files)

    totals = {table.name: measured_table(table) for table in (DAILY_SAMPLES, USER_STATE, HISTORY, *_PATHWAYS)}
    users = totals[PATHWAY_STATIC.name][1]
    return {
        "bytes_per_sample": totals[DAILY_SAMPLES.name][0] / totals[DAILY_SAMPLES.name][1],
        "bytes_per_user_day": sum(totals[table.name][0] for table in (HISTORY, *_PATHWAYS)) / users,
        "bytes_per_user_state": totals[USER_STATE.name][0] / totals[USER_STATE.name][1],
    }


_PATHWAYS = (PATHWAY_STATIC, PATHWAY_SHORT, PATHWAY_POSITIVE)


def figures_of(costs: dict[int, dict[str, Cost]]) -> dict[str, Any]:
    """The figures that are slopes: ``costs`` of each step by size in events."""

    def seconds(names: tuple[str, ...], processor: bool = False) -> list[float]:
        return [sum(by[name].processor if processor else by[name].wall for name in names) for by in costs.values()]

    sizes = list(costs)
    chains = {kind: slope(sizes, seconds(names)) for kind, names in CHAINS.items()}
    return {
        "events_per_s_per_core": {step: 1 / (CORES * slope(sizes, seconds((step,)))) for step in STEPS},
        "core_hours_18b": {kind: CORES * a_row * EVENTS_A_DAY / 3600 for kind, a_row in chains.items()},
        "processor_hours_18b": {
            kind: slope(sizes, seconds(names, processor=True)) * EVENTS_A_DAY / 3600 for kind, names in CHAINS.items()
        },
        "core_hours_18b_duckdb": CORES * slope(sizes, seconds((PEER,))) * EVENTS_A_DAY / 3600,
        "processor_hours_18b_duckdb": slope(sizes, seconds((PEER,), processor=True)) * EVENTS_A_DAY / 3600,
        "time_ratio_duckdb": chains["parquet"] / slope(sizes, seconds((PEER,))),
        "growth_exponent": growth_exponent(sizes, seconds(CHAINS["parquet"])),
        "seconds": {str(size): {name: cost.wall for name, cost in by.items()} for size, by in costs.items()},
    }


def measure(plan: Plan, chosen: argparse.Namespace) -> dict[str, Any]:
    """All figures of the plan."""
    from benchmarks.lifelong_rotation import core_hours_lifelong

    with a_folder() as events:
        benchmark = Benchmark(plan, chosen.seed, events)
        benchmark.warm_up()
        costs, stored = benchmark.costs()
        rounds = {str(size): plan.peer_rounds(size) for size in plan.sizes}
        figures = figures_of(costs) | stored | {"peer_rounds": rounds} | {"history_10x_ratio": benchmark.history_ratio()}
        tasks = benchmark.stragglers()
        benchmark.product.stop()
    lifelong = core_hours_lifelong(chosen.quick, chosen.seed)
    return figures | {
        "core_hours_lifelong": lifelong.pop("core_hours_lifelong"),
        "lifelong": lifelong,
        "max_task_over_median": max(ratio for case in tasks.values() for ratio in case.values()),
        "tasks": tasks,
    }


def main() -> None:
    """Measure and print."""
    chosen = options(__doc__ or "")
    figures = measure(QUICK if chosen.quick else FULL, chosen)
    finish("samples_pathways", figures, ["pyspark", "delta-spark", "deltalake", "pyarrow", "numpy", "duckdb"], keep=chosen.keep)


if __name__ == "__main__":
    main()
