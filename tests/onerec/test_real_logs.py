"""Real logs go through the same steps as simulated ones: KuaiRand to a short training, Amazon's text to tokens."""

import json

import pytest

from onerec.command_line import run
from schemas.lake import open_lake
from schemas.tables import DAILY_SAMPLES, EVENTS, ITEM_TOKENS, ITEMS

DAYS = ("2022-04-08", "2022-04-09", "2022-04-10")


@pytest.fixture
def onerec(capfd):
    """Runs a command with ``--json`` and returns its report; a failure shows what it said."""

    def call(*arguments):
        code = run([*map(str, arguments), "--json"])
        output, errors = capfd.readouterr()
        assert code == 0, errors[-3000:]
        return json.loads(output.splitlines()[-1])

    return call


@pytest.mark.slow
def test_kuairand_from_its_files_to_an_evaluated_model(real_data, spark, onerec, tmp_path):
    landing, lake = tmp_path / "landing", tmp_path / "lake"
    onerec("import", "kuairand", real_data("kuairand"), "--out", landing)
    onerec("ingest", "--lake", lake, "--landing", landing, "--date", DAYS[0])
    assert open_lake(str(lake)).config.lake.day_timezone == "Asia/Shanghai"
    ingested = {day: onerec("ingest", "--lake", lake, "--landing", landing, "--date", day) for day in DAYS[1:]}
    assert ingested["2022-04-09"]["tables"]["events"] == {
        "rows_in": 3564, "rows_out": 3552, "rows_quarantined": 0, "rows_dropped": {"duplicate": 12}
    }  # fmt: skip
    for day in DAYS:
        for command in ("samples", "pathways", "co-interaction"):
            onerec(command, "--lake", lake, "--date", day)
    opened = open_lake(str(lake))
    assert opened.read(DAILY_SAMPLES, columns=["date"]).num_rows == opened.read(EVENTS, columns=["date"]).num_rows
    small = ("--set", "fusion.dim=32", "--set", "fusion.steps=60", "--set", "codebook.sizes=[8, 8, 8]")
    onerec("embed", "--lake", lake, "--date", DAYS[-1])
    onerec("train-fusion", "--lake", lake, "--date", DAYS[-1], *small)
    onerec("fuse", "--lake", lake, "--date", DAYS[-1], "--refresh", *small)
    onerec("train-codebook", "--lake", lake, "--date", DAYS[-1], *small)
    onerec("tokenize", "--lake", lake, "--date", DAYS[-1], "--refresh", *small)
    onerec("publish", "tokens", "--lake", lake)
    shards = [onerec("shards", "--lake", lake, "--date", day) for day in DAYS[1:]]
    assert all(shard["tables"] for shard in shards)
    trained = onerec("train", "--lake", lake, "--from", DAYS[1], "--to", DAYS[1], "--steps", "12")
    assert trained["loss_last"] < trained["loss_first"]
    onerec("evaluate", "--lake", lake, "--date", DAYS[2], "--set", "evaluate.max_requests=100")


@pytest.mark.slow
@pytest.mark.long
def test_amazon_text_becomes_tokens(real_data, spark, onerec, tmp_path):
    landing, lake = tmp_path / "landing", tmp_path / "lake"
    onerec("import", "amazon", real_data("amazon-industrial"), "--out", landing)
    (day, *_) = sorted(path.name.removeprefix("date=") for path in (landing / "events").glob("date=*"))
    onerec("ingest", "--lake", lake, "--landing", landing, "--date", day)
    for command in ("samples", "pathways", "co-interaction"):
        onerec(command, "--lake", lake, "--date", day)
    small = ("--set", "fusion.dim=64", "--set", "fusion.steps=60", "--set", "codebook.sizes=[32, 32, 32]")
    embedded = onerec("embed", "--lake", lake, "--date", day)
    onerec("train-fusion", "--lake", lake, "--date", day, *small)
    onerec("fuse", "--lake", lake, "--date", day, "--refresh", *small)
    onerec("train-codebook", "--lake", lake, "--date", day, *small)
    onerec("tokenize", "--lake", lake, "--date", day, "--refresh", *small)
    opened = open_lake(str(lake))
    items = opened.read(ITEMS, columns=["item_id"]).num_rows
    tokens = opened.read(ITEM_TOKENS, columns=["tokens"])["tokens"].to_pylist()
    assert len(tokens) == items == 3686
    assert embedded["tables"]["item_vectors"]["rows_out"] == items
    assert len({tuple(code) for code in tokens}) > items / 2
    inspected = onerec("codebook", "inspect", "--lake", lake)
    assert inspected
