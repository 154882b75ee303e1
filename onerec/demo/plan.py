"""What the demo runs: the size of its world, its lake's configuration and the order of its DAG runs.

The order of the first day is the one that needs no vectors first (DESIGN: tokens); training and post-training come once,
on what the days left.
"""

import datetime as dt
from dataclasses import dataclass

from schemas.config import Config, parse_config

LAKE_SETTINGS = """
lake: {user_buckets: 4}
samples: {holdout_share: 0.05}
lifelong: {max_representatives: 96, rotation: 2}
co_interaction: {window_days: 3, max_items_per_user: 60}
fusion: {dim: 64, queries: 4, layers: 2, steps: 300, batch_size: 256}
codebook: {sizes: [32, 32, 32]}
train: {preset: tiny, epochs: 4}
evaluate: {beam: 32, max_requests: 1000}
reward: {steps: 150}
reinforce: {steps: 10, users_per_step: 8, group_size: 32, push_every: 2}
"""


@dataclass(frozen=True)
class DagRun:
    """One run of a DAG for one date."""

    dag: str
    date: dt.date


@dataclass(frozen=True)
class DemoPlan:
    """The demo's world and what happens in it."""

    users: int = 300
    items: int = 600
    days: int = 3
    start: dt.date = dt.date(2026, 1, 1)
    seed: int = 7

    @property
    def dates(self) -> list[dt.date]:
        """The simulated days."""
        return [self.start + dt.timedelta(days=day) for day in range(self.days)]

    def config(self) -> Config:
        """The lake's configuration, sized for two cores and a few minutes."""
        return parse_config(LAKE_SETTINGS, "the demo's settings")

    def runs(self) -> list[DagRun]:
        """DAG runs in order."""
        runs = []
        for date in self.dates:
            tokens = "tokenizer_refresh" if date == self.start else "tokenize_items"
            runs += [DagRun(dag, date) for dag in ("daily_samples", tokens, "lifelong_refresh")]
        return [*runs, DagRun("train_daily", self.dates[-1]), DagRun("post_train", self.dates[-1])]
