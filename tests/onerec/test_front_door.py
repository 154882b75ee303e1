"""The command line: exit codes, one error line, quick start, foreign packages named, a warm worker."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onerec.command_line import run
from onerec.commands.common import print_report

SCRIPT = Path(sys.executable).with_name("onerec")


def onerec(*arguments, directory=None, **environment):
    return subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, cwd=directory, env=os.environ | environment)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no-such-command"], "no-such-command"),
        (["status"], "--lake"),
        (["status", "--lake", "/nowhere", "--date", "2026-01-01"], "/nowhere"),
        (["lake", "tables", "--lake", "/nowhere"], "onerec ingest"),
        (["lake", "create", "--lake", "/tmp/x", "--config", "/no/config.yaml"], "/no/config.yaml"),
        (["lake", "create", "--lake", "/tmp/x", "--set", "lake.user_buckets=none"], "lake.user_buckets"),
        (["samples", "--lake", "/nowhere", "--date", "2026-01-01"], "/nowhere"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(capfd, arguments, said):
    assert run(arguments) == 2
    output, errors = capfd.readouterr()
    assert output == ""
    lines = errors.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert said in lines[0]


def test_no_command_at_all_shows_the_commands_and_is_bad_usage(capfd):
    assert run([]) == 2
    output, errors = capfd.readouterr()
    assert "lake" in output
    assert errors == "error: no command given; see `onerec --help`\n"


def test_a_lake_is_created_listed_and_described(capfd, tmp_path):
    lake = str(tmp_path / "lake")
    assert run(["lake", "create", "--lake", lake, "--set", "lake.user_buckets=2", "--json"]) == 0
    assert "events" in json.loads(capfd.readouterr().out)["tables"]
    assert run(["lake", "create", "--lake", lake]) == 2
    assert run(["lake", "tables", "--lake", lake, "--json"]) == 0
    tables = {row["table"]: row for row in json.loads(capfd.readouterr().out)["tables"]}
    assert tables["events"]["rows"] == 0
    assert run(["lake", "describe", "events", "--lake", lake, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["partition_by"] == ["date", "landing_date", "user_bucket"]
    assert run(["lake", "describe", "--lake", lake, "--json"]) == 0
    assert len(json.loads(capfd.readouterr().out)["tables"]) == len(tables)
    assert run(["lake", "describe", "nothing", "--lake", lake]) == 2
    assert run(["status", "--lake", lake, "--date", "2026-01-01", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["steps"]["samples"]["state"] == "missing"


def test_every_command_of_the_design_is_there(capfd):
    assert run(["--help"]) == 0
    text = capfd.readouterr().out
    commands = (
        "simulate import ingest samples pathways co-interaction lifelong shards backfill forget embed fuse train-codebook "
        "tokenize train-fusion train reward rl evaluate rollout-service publish codebook lake status cost demo"
    )
    for command in commands.split():
        assert f" {command} " in text, command


def test_help_imports_no_engine():
    code = (
        "import sys; from onerec.command_line import run; run(['--help']); run(['codebook', '--help']);"
        "heavy = {'pyspark', 'torch', 'apache_beam', 'faiss', 'ray', 'pandas', 'matplotlib', 'pyarrow'} & set(sys.modules);"
        "sys.exit(', '.join(heavy) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_foreign_package_of_the_same_name_is_named(tmp_path):
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas" / "__init__.py").write_text("")
    result = onerec("--help", PYTHONPATH=str(tmp_path))
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert f"{tmp_path}/schemas/__init__.py" in result.stderr
    assert "rename" in result.stderr


@pytest.mark.slow
def test_a_warm_worker_answers_like_the_command_itself(tmp_path):
    socket_path = str(tmp_path / "w.sock")
    worker = subprocess.Popen([sys.executable, "-m", "onerec", "worker", "--socket", socket_path])
    try:
        deadline = time.monotonic() + 30
        while not os.path.exists(socket_path):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        created = onerec("lake", "create", "--lake", "lake", "--json", directory=tmp_path, ONEREC_WORKER=socket_path)
        assert created.returncode == 0, created.stderr
        assert (tmp_path / "lake" / "onerec.yaml").is_file(), "relative paths are the caller's"
        listed = onerec("lake", "tables", "--json", directory=tmp_path, ONEREC_WORKER=socket_path, ONEREC_LAKE="lake")
        alone = onerec("lake", "tables", "--json", directory=tmp_path, ONEREC_LAKE="lake")
        assert listed.stdout == alone.stdout
        assert '"events"' in alone.stdout
        refused = onerec("lake", "tables", "--lake", "none", directory=tmp_path, ONEREC_WORKER=socket_path)
        assert refused.returncode == 2
        assert refused.stderr == onerec("lake", "tables", "--lake", "none", directory=tmp_path).stderr
    finally:
        worker.terminate()
        assert worker.wait(timeout=20) == 0
    assert not os.path.exists(socket_path)


def test_a_process_that_a_command_starts_does_not_keep_the_callers_pipes_open(tmp_path):
    code = (
        "import subprocess, sys, onerec.command_line as c\n"
        "def run(arguments):\n    subprocess.Popen(['sleep', '60']); print('started'); return 0\n"
        "c.run = run\nfrom onerec.worker import serve\nserve(sys.argv[1])"
    )
    socket_path = str(tmp_path / "w.sock")
    worker = subprocess.Popen([sys.executable, "-c", code, socket_path], start_new_session=True)
    try:
        deadline = time.monotonic() + 30
        while not os.path.exists(socket_path):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        result = subprocess.run(
            [SCRIPT, "anything"], capture_output=True, text=True, timeout=20, env=os.environ | {"ONEREC_WORKER": socket_path}
        )
        assert result.stdout == "started\n"
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def test_an_unreachable_worker_is_named(tmp_path):
    result = onerec("lake", "tables", "--lake", "x", ONEREC_WORKER=str(tmp_path / "none.sock"))
    assert result.returncode == 2
    assert "none.sock" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_report_for_people_has_a_line_for_each_entry_of_what_is_nested(capsys):
    stale = {"2026-01-02": {"shards": "made [before] it", "train": "read them"}, "2026-01-03": {}}
    print_report({"step": "backfill", "seconds": 1.0, "tables": {}, "stale": stale, "buckets": [1, 3]}, as_json=False)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[lines.index("stale:") :] == [
        "stale:",
        "  2026-01-02:",
        "    shards: made [before] it",
        "    train: read them",
        "  2026-01-03: {}",
        "buckets: [1, 3]",
    ]
