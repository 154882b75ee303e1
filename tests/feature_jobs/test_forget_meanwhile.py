"""Forgetting while something else happens: other steps, other runs of it, many tasks."""

import contextvars
import fcntl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pytest

from feature_jobs import forget
from feature_jobs.partition_files import PartitionFile, commit_files
from schemas.errors import BadInput
from schemas.lake import Lake, open_lake
from schemas.runs import step_run
from schemas.suppression import suppress, suppressed_users, while_nobody_is_forgotten
from schemas.tables import HISTORY, PIPELINE_RUNS
from tests.feature_jobs.forget_lake import GONE, filled
from tests.feature_jobs.killed_runs import ROOT, contents, copied
from tests.feature_jobs.shard_lake import DAY
from tests.lake_rows import user_bucket, write_rows

NOTHING = pads.field("path") == ""


@pytest.fixture
def lake(make_lake: Callable[..., Lake]) -> Lake:
    return filled(make_lake())


def elsewhere(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function as another process would: it knows nothing of the run under way here."""
    return contextvars.Context().run(function, *arguments)


def row(user: str) -> dict[str, Any]:
    return {"user_id": user, "behaviours": [], "date": DAY}


def written(lake: Lake, user: str) -> dict[str, Any] | None:
    """A file of the user's bucket, not committed."""
    file = PartitionFile(lake, HISTORY, {"user_bucket": str(user_bucket(user, 4)), "date": DAY.isoformat()})
    file.write(pa.table({"user_id": [user], "behaviours": pa.array([[]], HISTORY.schema.field("behaviours").type)}))
    return file.close()


@pytest.mark.slow
def test_a_table_that_changes_while_it_is_rewritten_is_left_as_it_is(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite = forget.rewrite

    def overtaken(lake: Lake, table: Any, people: Any, group: Any) -> dict[str, Any]:
        result = rewrite(lake, table, people, group)
        if table is HISTORY and result["removed"]:
            files = [written(lake, "newcomer")]
            elsewhere(commit_files, lake, HISTORY, files, pads.field("path").isin(result["replaced"]))
        return result

    with monkeypatch.context() as patch:
        patch.setattr(forget, "rewrite", overtaken)
        with pytest.raises(BadInput, match=r"history: another process wrote partitions that this run had read.*run it again"):
            forget.run(lake, ["anna"])
    assert "newcomer" in lake.read(HISTORY)["user_id"].to_pylist()
    forget.run(lake, ["anna"])
    assert "newcomer" in lake.read(HISTORY)["user_id"].to_pylist()
    messages = [run["message"] or "" for run in lake.read(PIPELINE_RUNS).to_pylist()]
    assert not any("anna" in message for message in messages)


@pytest.mark.slow
def test_a_step_that_brings_them_back_is_found_out(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    prove = forget.prove

    def late(*arguments: Any) -> Any:
        write_rows(lake, HISTORY, [row("anna")])
        return prove(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(forget, "prove", late)
        with pytest.raises(BadInput, match=r"another process wrote these people's rows meanwhile \(history 1\); run this again"):
            forget.run(lake, ["anna"])
    assert forget.run(lake, ["anna"]).extra["proof"]["history"]["found"] == 0


@pytest.mark.slow
def test_what_it_leaves_itself_is_a_fault(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forget, "rewrite", lambda *_: {"replaced": [], "files": [], "removed": 0})
    with pytest.raises(RuntimeError, match=r"forget left traces: .*history 1"):
        forget.run(lake, ["anna"])


@pytest.mark.slow
def test_a_step_that_was_under_way_publishes_nothing_and_says_so(lake: Lake) -> None:
    """What it read may have held them, so that it would bring them back; also where its files are gone already."""
    for user in ("anna", "bert"):
        with step_run(lake, "pathways", DAY):
            file = written(lake, user)
            elsewhere(forget.run, lake, ["anna"])
            with pytest.raises(BadInput, match=r"people were forgotten .* run it again"):
                commit_files(lake, HISTORY, [file], NOTHING)
    with step_run(lake, "pathways", DAY):
        commit_files(lake, HISTORY, [written(lake, "bert")], NOTHING)


@pytest.mark.slow
def test_who_writes_beside_the_tables_and_who_forgets_wait_for_each_other(lake: Lake) -> None:
    path = Path(lake.root) / ".forget.lock"
    with while_nobody_is_forgotten(lake), path.open("w") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with step_run(lake, "evaluate", DAY):
        elsewhere(forget.run, lake, ["anna"])
        with pytest.raises(BadInput, match="people were forgotten"), while_nobody_is_forgotten(lake):
            pytest.fail("it may show them")


@pytest.mark.slow
def test_a_step_that_still_has_to_read_is_told_that_its_version_is_gone(lake: Lake) -> None:
    pinned = lake.table_version(HISTORY)
    elsewhere(forget.run, lake, ["anna"])
    with pytest.raises(BadInput, match=rf"history: version {pinned} can be read no more.*run this again"):
        lake.read(HISTORY, version=pinned)


@pytest.mark.slow
def test_a_file_that_is_gone_is_not_committed(lake: Lake) -> None:
    file = written(lake, "x") or {}
    (Path(lake.root) / HISTORY.name / file["path"]).unlink()
    version = lake.table_version(HISTORY)
    with pytest.raises(BadInput, match=r"removed before it was committed.*run this again"):
        commit_files(lake, HISTORY, [file], NOTHING)
    assert lake.table_version(HISTORY) == version


@pytest.mark.slow
def test_runs_at_once_keep_everybodys_names_off(lake: Lake) -> None:
    code = "import sys; from schemas.lake import open_lake; from schemas.suppression import suppress\n"
    code += "for n in range(20): suppress(open_lake(sys.argv[1]), [f'{sys.argv[2]}-{n}'])"
    runs = [subprocess.Popen([sys.executable, "-c", code, lake.root, str(number)], cwd=ROOT) for number in range(3)]
    assert [run.wait(120) for run in runs] == [0, 0, 0]
    listed = suppressed_users(lake)
    assert len(listed.hashes) == 60
    assert all(f"{run}-{number}" in listed for run in range(3) for number in range(20))
    assert suppress(lake, ["0-0"]) == 0


@pytest.mark.slow
def test_two_at_once_of_different_people_leave_neither(lake: Lake, tmp_path: Path) -> None:
    """One of them may be asked to run again."""
    for name, user in (("a", "anna"), ("b", "bert")):
        (tmp_path / name).write_text(user)
    command = [sys.executable, "-m", "onerec", "forget", "--lake", lake.root, "--json", "--users"]
    kept = {user for user in lake.read(HISTORY)["user_id"].to_pylist() if user not in ("anna", "bert")}
    for _ in range(4):
        runs = [subprocess.Popen([*command, str(tmp_path / name)], cwd=ROOT, stdout=-1, stderr=-1, text=True) for name in "ab"]
        ends = [(run.communicate(timeout=120)[1], run.returncode) for run in runs]
        assert all(code == 0 or (code == 2 and "run" in said and said.startswith("error: ")) for said, code in ends), ends
        if [code for _, code in ends] == [0, 0]:
            break
    for table in forget.personal_tables()[:-1]:
        users = set(lake.read(table)["user_id"].to_pylist()) if "user_id" in table.schema.names else set()
        assert not users & {"anna", "bert"}
    assert set(lake.read(HISTORY)["user_id"].to_pylist()) == kept


@pytest.mark.slow
def test_tasks_of_spark_do_the_same(spark: Any, lake: Lake, tmp_path: Path) -> None:
    with copied(lake, tmp_path / "copy") as copy:
        assert forget.rows_to_forget(copy, GONE, spark) == forget.rows_to_forget(lake, GONE)
        reports = [forget.run(open_lake(one.root), GONE, engine).to_json() for one, engine in ((copy, spark), (lake, None))]
        assert contents(copy) == contents(lake)
        assert reports[0]["tables"] == reports[1]["tables"]
        assert reports[0]["proof"] == reports[1]["proof"]
