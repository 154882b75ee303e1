"""The six DAGs of the factory. Each task is one ``onerec`` command that a person could type.

The file imports nothing of the factory, so that it can be dropped into any Airflow 3 deployment. It is told where things
are by environment variables of the workers:

* ``ONEREC_LAKE``     root of the lake
* ``ONEREC_LANDING``  root of the landing zone
* ``ONEREC_COMMAND``  the command line (``onerec`` unless set), for a virtual environment or a wrapper
* ``ONEREC_TIMEZONE`` time zone in which days begin; the lake's ``day_timezone`` (UTC unless set)

DAGs hand over by assets whose partition key is the date, never by clock times; ``airflow dags test DAG DATE`` has no
partition key and uses its logical date. A command that exits 2 (bad input) or 3 (a quality gate) fails its task at once,
since trying again cannot help; 1 (a fault) is retried. The command's JSON report is the task's XCom.
"""

import os
import shlex
from datetime import datetime, timedelta
from typing import Any

from airflow.exceptions import AirflowException, AirflowFailException
from airflow.providers.standard.hooks.subprocess import SubprocessHook
from airflow.sdk import (
    DAG,
    Asset,
    BaseOperator,
    CronPartitionTimetable,
    PartitionedAssetTimetable,
    RollupMapper,
    StartOfWeekMapper,
    WeekWindow,
    chain,
)

TIMEZONE = os.environ.get("ONEREC_TIMEZONE", "UTC")
DATE = "{{ dag_run.partition_key or ds }}"
DAY_BEFORE = "{{ macros.ds_add(dag_run.partition_key or ds, -1) }}"
WEEK_END = "{{ macros.ds_add(dag_run.partition_key, 6) if dag_run.partition_key else ds }}"
"""A weekly run's partition key is the week's Monday; it takes what is known by the end of its Sunday."""
BAD_INPUT, GATE = 2, 3

SAMPLES = Asset(name="onerec_samples", uri="onerec://samples")
ITEMS = Asset(name="onerec_items", uri="onerec://items")
ITEM_TOKENS = Asset(name="onerec_item_tokens", uri="onerec://item_tokens")
TOKEN_SET = Asset(name="onerec_token_set", uri="onerec://token_set")
PRETRAINED = Asset(name="onerec_pretrained", uri="onerec://pretrained")
RELEASE = Asset(name="onerec_release", uri="onerec://release")


class OnerecOperator(BaseOperator):
    """Runs ``onerec ARGUMENTS --json`` and returns its last line, the step's report.

    ``arguments`` are templated. The lake comes from the worker's ``ONEREC_LAKE``.
    """

    template_fields = ("arguments",)
    ui_color = "#dce9f5"

    def __init__(self, arguments: list[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.arguments = arguments

    def execute(self, context: Any) -> str:  # noqa: ARG002 - Airflow's signature
        """Run the command; raises AirflowFailException (no retry) for bad input and for a gate that said no."""
        command = [*shlex.split(os.environ.get("ONEREC_COMMAND", "onerec")), *self.arguments, "--json"]
        self.log.info("Running %s", shlex.join(command))
        result = SubprocessHook().run_command(command)
        if result.exit_code in (BAD_INPUT, GATE):
            reason = "bad input" if result.exit_code == BAD_INPUT else "a quality gate said no"
            raise AirflowFailException(f"{reason} (exit {result.exit_code}): {result.output}")
        if result.exit_code != 0:
            raise AirflowException(f"exit {result.exit_code}: {result.output}")
        return result.output


def steps(*commands: str, outlets: dict[str, Asset] | None = None) -> None:
    """One task a command, one after another; ``outlets`` gives the asset that a task completes."""
    tasks = []
    for command in commands:
        name, _, arguments = command.partition(": ")
        asset = (outlets or {}).get(name)
        tasks.append(OnerecOperator(task_id=name, arguments=shlex.split(arguments), outlets=[asset] if asset is not None else []))
    chain(*tasks)


def every_day(cron: str) -> CronPartitionTimetable:
    """A daily timetable whose partition key is the day before the run."""
    return CronPartitionTimetable(cron, timezone=TIMEZONE, run_offset=-1, key_format="%Y-%m-%d")


def whole_week() -> RollupMapper:
    """Waits for every day of a week, Monday to Sunday; the partition key is the Monday."""
    monday = StartOfWeekMapper(timezone=TIMEZONE, input_format="%Y-%m-%d", output_format="%Y-%m-%d")
    return RollupMapper(upstream_mapper=monday, window=WeekWindow())


COMMON: dict[str, Any] = {
    "start_date": datetime(2020, 1, 1),
    "catchup": False,
    "max_active_runs": 1,  # a day starts from the state that the day before left
    "default_args": {"retries": 2, "retry_delay": timedelta(minutes=5), "depends_on_past": False},
    "tags": ["onerec"],
}
LANDING = os.environ.get("ONEREC_LANDING", "landing")

with DAG("daily_samples", schedule=every_day("0 2 * * *"), description="Landing zone to samples and pathways", **COMMON):
    steps(
        f"ingest: ingest --landing {shlex.quote(LANDING)} --date '{DATE}'",
        f"samples: samples --date '{DATE}'",
        f"pathways: pathways --date '{DATE}'",
        f"co_interaction: co-interaction --date '{DATE}'",
        outlets={"ingest": ITEMS, "co_interaction": SAMPLES},
    )

with DAG(
    "tokenizer_refresh",
    schedule=PartitionedAssetTimetable(assets=SAMPLES, default_partition_mapper=whole_week()),
    description="New items and a refreshed codebook: a token set",
    **COMMON,
):
    steps(
        f"embed: embed --date '{WEEK_END}'",
        f"train_fusion: train-fusion --date '{WEEK_END}'",
        f"fuse: fuse --refresh --date '{WEEK_END}'",
        f"train_codebook: train-codebook --date '{WEEK_END}'",
        "inspect: codebook inspect --gate",
        f"tokenize: tokenize --refresh --date '{WEEK_END}'",
        "publish: publish tokens",
        outlets={"publish": TOKEN_SET},
    )

with DAG(
    "tokenize_items",
    schedule=PartitionedAssetTimetable(assets=ITEMS),
    description="New and changed items, with the live token set's frozen codebook",
    **COMMON,
):
    steps(
        f"embed: embed --date '{DATE}'",
        f"fuse: fuse --date '{DATE}'",
        f"tokenize: tokenize --date '{DATE}'",
        outlets={"tokenize": ITEM_TOKENS},
    )

with DAG(
    "lifelong_refresh",
    schedule=PartitionedAssetTimetable(assets=SAMPLES),
    description="Lifelong pathways of the day's buckets in rotation",
    **COMMON,
):
    steps(f"lifelong: lifelong --date '{DATE}'")

with DAG(
    "train_daily",
    schedule=PartitionedAssetTimetable(assets=SAMPLES & ITEM_TOKENS),
    description="Shards of the day; train through the day before, evaluate on the day",
    **COMMON,
):
    steps(
        f"shards: shards --date '{DATE}' --catch-up 7",
        f"train: train --stage pretrain --to '{DAY_BEFORE}'",
        f"evaluate: evaluate --stage pretrain --date '{DATE}' --gate",
        "publish: publish pretrained",
        outlets={"publish": PRETRAINED},
    )

with DAG(
    "post_train",
    schedule=PartitionedAssetTimetable(assets=PRETRAINED),
    description="RSFT, reward model and RL: a release",
    **COMMON,
):
    steps(
        f"shards: shards --date '{DATE}' --targets rsft --catch-up 7",
        f"train: train --stage rsft --to '{DAY_BEFORE}'",
        f"reward: reward --date '{DAY_BEFORE}'",
        f"rl: rl --to '{DAY_BEFORE}'",
        f"evaluate: evaluate --stage rl --date '{DATE}' --gate",
        "publish: publish release",
        outlets={"publish": RELEASE},
    )
