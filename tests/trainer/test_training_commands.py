"""``onerec train`` and ``onerec evaluate`` as a person types them, on an invented log."""

import contextvars
import json
from pathlib import Path

import pytest

from feature_jobs.stale import mark_stale, read_stale
from onerec.command_line import run as onerec
from schemas.config import Config
from schemas.lake import create_lake, open_lake
from schemas.registry import Registry
from schemas.shards import stable_key
from schemas.suppression import suppress
from tests.trainer.made_shards import made_log, write_mask
from trainer import evaluation
from trainer.checkpoints import load_model, model_files, weights_sha256
from trainer.evaluation import popular_items
from trainer.shard_reader import ShardReader

TRAIN = {"learning_rate": 0.003, "rsft_learning_rate": 0.001, "warmup_steps": 5, "batch_requests": 32, "epochs": 5}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A lake with three days of shards, trained through the second: (lake, log, report)."""
    root = tmp_path_factory.mktemp("trained")
    create_lake(str(root), Config.model_validate({"train": TRAIN, "evaluate": {"batch_requests": 100, "examples": 3}}))
    log = made_log(root / "shards", users=48, days=3, requests=5)
    return root, log, call_json(["train", "--lake", str(root), "--json"])


def call_json(arguments):
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        assert onerec(arguments) == 0
    return json.loads(out.getvalue())


def fails(arguments, capsys, code=2):
    assert onerec(arguments) == code
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("error: ")
    return line


@pytest.fixture(scope="module")
def evaluated(trained):
    return call_json(["evaluate", "--lake", str(trained[0]), "--json"])


@pytest.mark.slow
@pytest.mark.long
class TestTrain:
    def test_loss_falls_on_all_days_but_the_last(self, trained):
        _, log, report = trained
        assert report["loss_last"] < report["loss_first"] - 2
        assert report["dates"] == [date.isoformat() for date in log.dates[:2]]
        assert report["trained_through"] == log.dates[1].isoformat()
        assert report["tables"]["training"] == {
            "rows_in": 48 * 2 * 5,
            "rows_out": 42 * 2 * 5,
            "rows_quarantined": 0,
            "rows_dropped": {"holdout": 6 * 2 * 5, "no_target_with_tokens": 0, "beyond_steps": 0},
        }
        assert report["requests"] == 5 * 420
        assert report["tokens"] == 5 * 420 * 3 * 3

    def test_leaves_a_model_and_what_it_came_from(self, trained):
        root, _, report = trained
        folder = root / "training" / "pretrain"
        assert "checkpoint.pt" not in {path.name for path in folder.iterdir()}
        described = json.loads((folder / "run.json").read_text())
        saved = load_model(folder)
        assert described == saved.metadata | {"weights_sha256": saved.weights_sha256}
        assert described["parent"] is None
        assert described["preset"] == "tiny"
        assert described["loss_last"] == report["loss_last"]
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == -(-report["steps"] // 10)

    def test_again_gives_the_same_weights(self, make_lake):
        lake = make_lake()
        made_log(lake.local_path("shards"), users=6, days=2, requests=2)
        arguments = ["train", "--lake", lake.root, "--steps", "3", "--json"]
        (day,) = call_json(arguments)["dates"]
        first = model_files(lake.local_path("training", "pretrain"))
        call_json(arguments)
        assert model_files(lake.local_path("training", "pretrain")) == first
        for marks, left in (({"train": "old"}, {}), ({"train": "old", "shards": "old"}, {"train": "old", "shards": "old"})):
            mark_stale(lake, {day: marks})
            call_json(arguments)
            assert read_stale(lake).get(day, {}) == left, "trained on shards that are stale, a day stays so"

    def test_a_later_day_goes_on_from_the_published_model_and_can_be_done_again(self, make_lake, capsys):
        lake = make_lake()
        log = made_log(lake.local_path("shards"), users=12, days=3, requests=2)
        days = [date.isoformat() for date in log.dates]
        folder = lake.local_path("training", "pretrain")

        def trained_through(day, *more):
            report = call_json(["train", "--lake", lake.root, "--to", day, "--steps", "3", "--json", *more])
            return report, weights_sha256(folder)

        def published():
            run = json.loads((folder / "run.json").read_text())
            return Registry.of(lake).publish("pretrained", run, model_files(folder)).version

        _, first = trained_through(days[0])
        parent = published()
        report, second = trained_through(days[1])
        assert (report["dates"], report["parent"]["version"]) == ([days[1]], parent)
        published()
        report, again = trained_through(days[1])
        assert (report["dates"], report["parent"]["version"], again) == ([days[1]], parent, second)
        report, again = trained_through(days[0])
        assert (report["dates"], report["parent"], again) == ([days[0]], None, first)
        assert trained_through(days[2])[0]["dates"] == [days[2]]
        assert trained_through(days[1], "--from", days[0])[0]["dates"] == days[:2]
        assert trained_through(days[1], "--init", "scratch")[0]["dates"] == days[:2]
        arguments = ["train", "--lake", lake.root, "--to", days[0], "--init", parent]
        assert f"was trained through {days[0]} already" in fails(arguments, capsys)

    def test_dry_run_writes_nothing(self, trained):
        root, log, _ = trained
        before = {path: path.stat().st_mtime_ns for path in (root / "training").rglob("*")}
        plan = call_json(["train", "--lake", str(root), "--dry-run", "--json"])
        assert plan["would_change"] == {"training/pretrain": [date.isoformat() for date in log.dates[:2]]}
        assert {path: path.stat().st_mtime_ns for path in (root / "training").rglob("*")} == before

    def test_fine_tuning_starts_from_the_published_model(self, trained, capsys):
        root, log, _ = trained
        arguments = ["train", "--lake", str(root), "--stage", "rsft", "--steps", "4", "--json"]
        assert "publish pretrained" in fails(arguments, capsys)
        lake = open_lake(str(root))
        folder = root / "training" / "pretrain"
        run = json.loads((folder / "run.json").read_text())
        artefact = Registry.of(lake).publish("pretrained", run, model_files(folder))
        assert "--targets rsft" in fails(arguments, capsys)
        for date in log.dates:
            manifest = json.loads((root / "shards" / f"date={date}" / "manifest.json").read_text())
            write_mask(root / "shards", date, manifest, log.user_days[date], lambda event: event["sample_id"] % 2)
        report = call_json(arguments)
        assert report["parent"] == {"kind": "pretrained", "version": artefact.version}
        assert report["loss_first"] < 4  # goes on, does not begin again
        again = call_json(["train", "--lake", str(root), "--steps", "2", "--json", "--dry-run"])
        assert again["dry_run"]
        assert fails([*arguments, "--preset", "0.121B"], capsys).count(artefact.version) == 1
        assert "no pretrained of this version" in fails([*arguments, "--init", "abcdef"], capsys)
        (Path(root) / "registry" / "pretrained" / "latest").unlink()


class TestTrainRefuses:
    def test_a_lake_without_shards(self, make_lake, capsys):
        assert "no shards; run `onerec shards" in fails(["train", "--lake", make_lake().root], capsys)

    def test_one_day_only(self, make_lake, capsys):
        lake = make_lake()
        made_log(lake.local_path("shards"), users=2, days=1, requests=1)
        assert "pass --to 2026-01-01" in fails(["train", "--lake", lake.root], capsys)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            (["--from", "yesterday"], "--from 'yesterday': not a date"),
            (["--to", "2030-01-01"], "--to 2030-01-01: no shards of that day (there are 2026-01-01 to 2026-01-02)"),
            (["--from", "2026-01-02", "--to", "2026-01-01"], "no days between"),
            (["--preset", "huge"], "preset 'huge': unknown"),
            (["--set", "train.batch_requests=0"], "batch_requests"),
            (["--init", "nothing"], "no pretrained of this version"),
            (["--steps", "0"], "--steps"),
        ],
    )
    def test_options_that_cannot_be(self, make_lake, capsys, options, complaint):
        lake = make_lake()
        made_log(lake.local_path("shards"), users=2, days=2, requests=1)
        assert complaint in fails(["train", "--lake", lake.root, *options], capsys)


@pytest.mark.slow
class TestEvaluate:
    def test_on_the_day_after_the_training(self, trained, evaluated):
        _, log, report = trained
        assert evaluated["evaluated_on"] == log.dates[2].isoformat()
        assert evaluated["loss"] < report["loss_first"] - 2
        everyone = evaluated["groups"]["all"]
        assert everyone["loss"] == pytest.approx(sum(everyone["token_loss"]), abs=1e-5)
        assert everyone["requests"] == 48 * 5
        assert {name: group["requests"] for name, group in evaluated["groups"].items()} == {
            "all": 240,
            "holdout": 30,
            "others": 210,
        }
        assert evaluated["tables"]["evaluation"]["rows_out"] == 240
        assert evaluated["metrics"]["loss"] == evaluated["loss"]
        assert evaluated["metrics"]["recall@5"] == everyone["generated"]["recall@5"]
        assert evaluated["popularity"]["ndcg@10"] == everyone["popularity"]["ndcg@10"]

    def test_generates_better_than_popularity(self, evaluated):
        everyone = evaluated["groups"]["all"]
        assert everyone["generated"]["recall@5"] > 2 * everyone["popularity"]["recall@5"]
        assert everyone["generated"]["ndcg@10"] > 2 * everyone["popularity"]["ndcg@10"]
        assert everyone["legal_share"] > 0.3  # 64 codes of 512: a guess is legal one time in eight

    @pytest.mark.usefixtures("evaluated")
    def test_shows_examples(self, trained):
        root, log, _ = trained
        shown = json.loads((root / "training" / "pretrain" / "examples.json").read_text())["users"]
        assert len({example["user_id"] for example in shown}) == 3
        requests = {r.request_id: r for day in log.user_days[log.dates[2]] for r in day.requests}
        for example in shown:
            assert len(example["generated"]) == 10
            assert all(tuple(g["tokens"]) == log.codes[g["item_id"]] for g in example["generated"])
            keys = {stable_key(item): item for item in log.codes}
            events = requests[example["request_id"]].events
            assert example["impressions"] == [keys[event["item_key"]] for event in events]
            assert example["next"] == [keys[event["item_key"]] for event in events if event["feedback"] >> 8 & 1] != []
            assert set(example["history"]) <= set(log.codes)

    def test_popularity_is_of_the_training_days_and_users(self, trained):
        root, log, _ = trained
        tokens = ShardReader(root / "shards", log.dates[2:], seed=0, batch_requests=1).tokens[0]
        counts: dict[int, int] = {}
        for date in log.dates[:2]:
            for day in log.user_days[date]:
                for request in day.requests:
                    for event in request.events:
                        if not day.holdout and event["feedback"] >> 8 & 1:
                            counts[event["item_key"]] = counts.get(event["item_key"], 0) + 1
        expected = sorted(counts, key=lambda key: (-counts[key], key))[:10]
        assert popular_items(root / "shards", log.dates[:2], tokens, 10) == expected

    def test_gate(self, trained, evaluated, capsys):
        root, _, _ = trained
        folder = root / "training" / "pretrain"
        arguments = ["evaluate", "--lake", str(root), "--gate"]
        assert onerec([*arguments, "--json"]) == 0
        line = fails([*arguments, "--set", "evaluate.max_loss=0.5"], capsys, code=3)
        assert "is above evaluate.max_loss 0.5" in line
        assert json.loads((folder / "evaluation.json").read_text())["gate"]["passed"] is False
        previous = {"loss": evaluated["loss"] - 1, "codebook_version": "cb1"}
        files = {"evaluation.json": json.dumps(previous).encode()}
        Registry.of(open_lake(str(root))).publish("pretrained", {}, files)
        assert "max_loss_increase 0.5 above" in fails(arguments, capsys, code=3)
        files = {"evaluation.json": json.dumps(previous | {"codebook_version": "another"}).encode()}
        Registry.of(open_lake(str(root))).publish("pretrained", {}, files)
        assert onerec(arguments) == 0  # losses over other tokens cannot be compared
        (root / "registry" / "pretrained" / "latest").unlink()

    @pytest.mark.usefixtures("evaluated")
    def test_shows_nobody_where_people_were_forgotten_meanwhile(self, trained, capsys, monkeypatch):
        root, _, _ = trained
        shown = root / "training" / "pretrain" / "examples.json"
        before = shown.read_bytes()

        def meanwhile(*arguments):
            contextvars.Context().run(suppress, open_lake(str(root)), ["somebody"])  # as another process does
            return report(*arguments)

        report = evaluation._report
        monkeypatch.setattr(evaluation, "_report", meanwhile)
        assert "people were forgotten" in fails(["evaluate", "--lake", str(root)], capsys)
        assert shown.read_bytes() == before
        (root / "suppression.json").unlink()

    def test_a_day_of_the_training_is_refused(self, trained, capsys):
        root, log, _ = trained
        line = fails(["evaluate", "--lake", str(root), "--date", log.dates[1].isoformat()], capsys)
        assert "trained through 2026-01-02" in line


class TestEvaluateRefuses:
    def test_a_lake_without_a_model(self, make_lake, capsys):
        assert "no model here; run `onerec train`" in fails(["evaluate", "--lake", make_lake().root], capsys)
