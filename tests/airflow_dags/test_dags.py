"""The six DAGs parse in a bare Airflow, hand over by dated assets, and call commands that exist."""

import datetime as dt
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jinja2
import pytest

ROOT = Path(__file__).resolve().parents[2]
DESCRIBE = """
import json
from airflow.dag_processing.dagbag import DagBag


def names(condition):
    if condition is None or not (hasattr(condition, "name") or hasattr(condition, "objects")):
        return []
    return [condition.name] if hasattr(condition, "name") else [name for part in condition.objects for name in names(part)]


bag = DagBag(dag_folder={folder!r}, bundle_name="test")
print("DAGS " + json.dumps({{
    "errors": {{str(name): text for name, text in bag.import_errors.items()}},
    "dags": {{dag.dag_id: {{
        "timetable": type(dag.timetable).__name__,
        "waits_for": sorted(names(getattr(dag.timetable, "asset_condition", None))),
        "tasks": [{{"id": task.task_id, "arguments": task.arguments, "outlets": [asset.name for asset in task.outlets],
                   "after": sorted(task.upstream_task_ids)}} for task in dag.topological_sort()],
    }} for dag in bag.dags.values()}},
}}))
"""


@pytest.fixture(scope="module")
def airflow(tmp_path_factory):
    """An Airflow home with a migrated SQLite database and the DAGs, and a stand-in for ``onerec``."""
    home = tmp_path_factory.mktemp("airflow")
    command = home / "onerec"
    command.write_text('#!/bin/sh\necho "$@" >> "$CALLS"\necho "{\\"step\\": \\"$1\\"}"\nexit ${EXIT_CODE:-0}\n')
    command.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "ONEREC"))} | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "airflow_dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
        "ONEREC_COMMAND": str(command),
        "ONEREC_LAKE": "/lake",
        "ONEREC_LANDING": "/landing zone",
        "CALLS": str(home / "calls"),
    }

    def call(*arguments, **extra):
        return subprocess.run(
            [sys.executable, "-m", *arguments], env=environment | extra, capture_output=True, text=True, cwd=home
        )

    assert call("airflow", "db", "migrate").returncode == 0
    return home, call, environment


@pytest.fixture(scope="module")
def described(airflow):
    home, _, environment = airflow
    script = home / "describe.py"
    script.write_text(DESCRIBE.format(folder=str(ROOT / "airflow_dags")))
    result = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("DAGS ")] or [result.stderr]
    found = json.loads(line.removeprefix("DAGS "))
    assert found["errors"] == {}
    return found["dags"]


@pytest.mark.slow
def test_the_six_dags_hold_the_designed_tasks_in_order(described):
    tasks = {dag: [task["id"] for task in value["tasks"]] for dag, value in described.items()}
    assert tasks == {
        "daily_samples": ["ingest", "samples", "pathways", "co_interaction"],
        "tokenizer_refresh": ["embed", "train_fusion", "fuse", "train_codebook", "inspect", "tokenize", "publish"],
        "tokenize_items": ["embed", "fuse", "tokenize"],
        "lifelong_refresh": ["lifelong"],
        "train_daily": ["shards", "train", "evaluate", "publish"],
        "post_train": ["shards", "train", "reward", "rl", "evaluate", "publish"],
    }
    for value in described.values():
        for before, after in zip(value["tasks"], value["tasks"][1:], strict=False):
            assert after["after"] == [before["id"]]


@pytest.mark.slow
def test_dags_hand_over_by_dated_assets(described):
    waits = {dag: value["waits_for"] for dag, value in described.items()}
    assert waits == {
        "daily_samples": [],
        "tokenizer_refresh": ["onerec_samples"],
        "tokenize_items": ["onerec_items"],
        "lifelong_refresh": ["onerec_samples"],
        "train_daily": ["onerec_item_tokens", "onerec_samples"],
        "post_train": ["onerec_pretrained"],
    }
    outlets = {name for value in described.values() for task in value["tasks"] for name in task["outlets"]}
    assert {name for names in waits.values() for name in names} <= outlets
    for dag, value in described.items():
        assert value["timetable"].startswith("PartitionedAsset" if waits[dag] else "CronPartition"), dag


@pytest.mark.slow
def test_every_task_calls_a_command_that_a_person_could_type(described):
    from onerec.commands import build_command

    root = build_command()
    for value in described.values():
        for task in value["tasks"]:
            command, words = root, list(task["arguments"])
            while hasattr(command, "commands"):
                command = command.commands[words.pop(0)]
            options = {option for parameter in command.params for option in parameter.opts}
            asked = {word for word in words if word.startswith("--")} | {"--json", "--lake"}
            assert asked <= options, (task["id"], asked - options)


class Macros:
    """Airflow's ``macros.ds_add``."""

    @staticmethod
    def ds_add(day, days):
        return (dt.date.fromisoformat(day) + dt.timedelta(days=days)).isoformat()


@pytest.mark.parametrize(
    ("name", "with_key", "by_hand"),
    [
        ("DATE", "2026-01-05", "2026-01-05"),
        ("DAY_BEFORE", "2026-01-04", "2026-01-04"),
        ("WEEK_END", "2026-01-11", "2026-01-05"),
    ],
)
def test_dates_come_from_the_partition_key_else_the_logical_date(name, with_key, by_hand):
    text = (ROOT / "airflow_dags" / "onerec_dags.py").read_text()
    (template,) = [line.split("=", 1)[1].strip().strip('"') for line in text.splitlines() if line.startswith(f"{name} =")]
    render = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(template).render
    assert render(dag_run=SimpleNamespace(partition_key="2026-01-05"), macros=Macros) == with_key, "asset runs have no ds"
    assert render(dag_run=SimpleNamespace(partition_key=None), macros=Macros, ds="2026-01-05") == by_hand


@pytest.mark.slow
def test_dags_test_runs_the_commands_of_a_day(airflow):
    home, call, _ = airflow
    (home / "calls").unlink(missing_ok=True)
    result = call("airflow", "dags", "test", "post_train", "2026-01-03")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert (home / "calls").read_text().splitlines() == [
        "shards --date 2026-01-03 --targets rsft --catch-up 7 --json",
        "train --stage rsft --to 2026-01-02 --json",
        "reward --date 2026-01-02 --json",
        "rl --to 2026-01-02 --json",
        "evaluate --stage rl --date 2026-01-03 --gate --json",
        "publish release --json",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("exit_code", "said"), [("3", "a quality gate said no"), ("2", "bad input")])
def test_a_gate_or_bad_input_fails_the_run_without_another_try(airflow, exit_code, said):
    home, call, _ = airflow
    (home / "calls").unlink(missing_ok=True)
    result = call("airflow", "dags", "test", "lifelong_refresh", "2026-01-03", EXIT_CODE=exit_code)
    assert said in result.stdout + result.stderr
    assert len((home / "calls").read_text().splitlines()) == 1
