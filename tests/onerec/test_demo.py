"""The demo: what it plans, how it follows Airflow's log, what it refuses, and one whole run on a small world."""

import json
import os
import re
from pathlib import Path

import pytest

from onerec.command_line import run
from onerec.demo.airflow_runner import AirflowRunner
from onerec.demo.plan import DagRun, DemoPlan
from onerec.demo.run import TASKS
from schemas.errors import BadInput, GateFailed

LOG = """2026 [info] [DAG TEST] starting task_id=ingest map_index=-1 [airflow.sdk.definitions.dag] loc=dag.py:1
2026 [info] Running onerec ingest --json [airflow.task.operators.x]
2026 [info] reading landing zone           [airflow.task.hooks.x]
2026 [info] {"step": "ingest", "tables": {}} [airflow.task.hooks.x]
2026 [info] Command exited with return code 0 [airflow.task.hooks.x]
2026 [info] [DAG TEST] end task task_id=ingest map_index=-1 [airflow.sdk.definitions.dag] loc=dag.py:2
2026 [info] [DAG TEST] starting task_id=samples map_index=-1 [airflow.sdk.definitions.dag] loc=dag.py:1
2026 [info] error: too few rows, lower the gate [airflow.task.hooks.x]
2026 [info] Command exited with return code {code} [airflow.task.hooks.x]
2026 [error] Task failed with exception [task]
"""


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """An AirflowRunner whose Airflow prints a given log."""

    def make(log, exit_code):
        (tmp_path / "log").write_text(log)
        (tmp_path / "home").mkdir(exist_ok=True)
        made = AirflowRunner(tmp_path / "home", tmp_path, {})
        monkeypatch.setattr(made, "_airflow", lambda *_: ["sh", "-c", f"cat {tmp_path}/log; exit {exit_code}"])
        return made

    return make


def test_the_first_day_needs_no_vectors_before_the_tokenizer():
    order = [(run.dag, run.date.day) for run in DemoPlan().runs()]
    assert order == [
        ("daily_samples", 1), ("tokenizer_refresh", 1), ("lifelong_refresh", 1),
        ("daily_samples", 2), ("tokenize_items", 2), ("lifelong_refresh", 2),
        ("daily_samples", 3), ("tokenize_items", 3), ("lifelong_refresh", 3),
        ("train_daily", 3), ("post_train", 3),
    ]  # fmt: skip
    assert set(TASKS) == {dag for dag, _ in order}


def test_tasks_are_followed_through_the_log(runner):
    log = LOG.split("2026 [info] [DAG TEST] starting task_id=samples")[0]
    seen = [(task.task, task.exit_code, task.report) for task in runner(log, 0).run(DagRun("daily_samples", DemoPlan().start))]
    assert [name for name, _, _ in seen] == ["ingest", "ingest"]
    assert seen[-1] == ("ingest", 0, {"step": "ingest", "tables": {}})


@pytest.mark.parametrize(("code", "kind"), [(2, BadInput), (3, GateFailed), (1, RuntimeError)])
def test_a_failed_command_ends_the_demo_as_it_ended_itself(runner, code, kind):
    with pytest.raises(kind, match=r"daily_samples\.samples for 2026-01-01: (error: )?too few rows") as raised:
        list(runner(LOG.replace("{code}", str(code)), 1).run(DagRun("daily_samples", DemoPlan().start)))
    assert "dags-test.log" in str(raised.value)


def test_a_folder_with_other_things_is_left_alone(tmp_path, capfd):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert run(["demo", "--out", str(tmp_path)]) == 2
    assert "thesis.tex" in os.listdir(tmp_path)
    assert str(tmp_path) in capfd.readouterr().err


def test_a_missing_dags_folder_is_named(tmp_path, capfd):
    assert run(["demo", "--out", str(tmp_path / "out"), "--dags", str(tmp_path)]) == 2
    assert "onerec_dags.py" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(3600)  # half an hour was seen on two slow cores that other tests shared
def test_the_whole_factory_on_a_small_world(tmp_path, capfd):
    out = tmp_path / "demo"
    assert run(["demo", "--out", str(out), "--users", "80", "--items", "200", "--json"]) == 0, capfd.readouterr().err[-3000:]
    summary = json.loads(capfd.readouterr().out)
    steps = {f"{step['dag']}.{step['task']}" for step in summary["steps"]}
    assert len(steps) == 26, "every task of the six DAGs, and the simulator"
    for step in summary["steps"]:
        for name, counts in step["report"].get("tables", {}).items():
            lost = counts["rows_quarantined"] + sum(counts["rows_dropped"].values())
            assert counts["rows_in"] == counts["rows_out"] + lost, (step["task"], name)
    trained = next(step["report"] for step in summary["steps"] if (step["dag"], step["task"]) == ("train_daily", "train"))
    assert trained["loss_last"] < trained["loss_first"]
    assert {path.name for path in out.iterdir()} >= {"lake", "landing", "airflow", "report.html"}
    page = Path(summary["report"]).read_text()
    assert "<svg" in page
    assert "data:image/" in page
    assert not re.search(r"""(src|href)=["']https?:|url\(["']?https?:|@import""", page), "the page is self-contained"
    assert run(["status", "--lake", str(out / "lake"), "--date", "2026-01-03", "--json"]) == 0
    states = {step: value["state"] for step, value in json.loads(capfd.readouterr().out)["steps"].items()}
    assert states["samples"] == states["shards"] == states["evaluate"] == "done"
