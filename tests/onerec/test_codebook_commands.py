"""``onerec codebook …`` on a small lake, through the command line."""

import datetime as dt
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv as pacsv
import pyarrow.parquet as papq
import pytest
from PIL import Image

from onerec.command_line import run
from schemas.config import Config
from schemas.lake import Lake, create_lake
from schemas.registry import Registry
from schemas.tables import CO_INTERACTION, ITEM_TOKENS, ITEMS
from tests.lake_rows import utc, write_rows
from tokenization.codebook import publish_codebook
from tokenization.collisions import rank_within_code
from tokenization.metrics import codebook_metrics
from tokenization.rq_kmeans import RQKMeans

SIZES = (4, 4, 4)
IDS = [f"item{number:02d}" for number in range(40)]


class Small:
    """A lake with 40 items, two codebooks that tokenised them, and a third that tokenised nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lake: Lake = create_lake(str(root / "lake"), Config())
        self.registry = Registry.of(self.lake)
        random = np.random.default_rng(0)
        topics = np.arange(40) % 4
        self.vectors = (random.normal(size=(4, 6))[topics] + 0.3 * random.normal(size=(40, 6))).astype(np.float32)
        Image.new("RGB", (20, 20), "blue").save(root / "cover.png")
        rows = [
            {
                "item_id": item,
                "valid_from": utc("2026-01-02"),
                "category": f"topic{topic}",
                "tags": ["Läufer", "x"] if number == 7 else None,
                "title": f"Clip <{number}>",
                "caption": "A RARE caption" if number == 9 else None,
                "cover_uri": f"file://{root}/cover.png",
                "deleted": number == 3,
            }
            for number, (item, topic) in enumerate(zip(IDS, topics, strict=True))
        ]
        old = [{"item_id": IDS[0], "valid_from": utc("2026-01-01"), "title": "An older title"}]
        write_rows(self.lake, ITEMS, rows[:20] + old + rows[20:])
        same = [(one, other) for one in range(40) for other in (one + 4,) if other < 40]
        pairs = [{"item_a": IDS[a], "item_b": IDS[b]} for one, other in same for a, b in ((one, other), (other, one))]
        common = {"kind": "swing", "score": 1.0, "support": 2, "date": dt.date(2026, 1, 2)}
        write_rows(self.lake, CO_INTERACTION, [common | pair for pair in pairs])
        self.models = [RQKMeans(3, SIZES, seed=seed).fit(self.vectors) for seed in (0, 1, 2)]
        self.versions = [self.publish(model, number) for number, model in enumerate(self.models)]
        for model, version in zip(self.models[:2], self.versions, strict=False):
            self.tokenise(model, version)
        self.registry.set_latest("codebook", self.versions[1])

    def publish(self, model: RQKMeans, number: int) -> str:
        decoded = [model.decode(model.codes_, depth) for depth in (1, 2, 3)]
        metrics = codebook_metrics(model.codes_, SIZES, self.vectors, decoded)
        return publish_codebook(self.registry, model, {"number": number, "metrics": metrics}).version

    def tokenise(self, model: RQKMeans, version: str) -> None:
        norms = model.residual_norms(self.vectors, model.codes_)
        ranks = rank_within_code(model.codes_, IDS, norms)
        columns = zip(IDS, model.codes_.tolist(), ranks.tolist(), norms.tolist(), strict=True)
        rows = [{"item_id": i, "tokens": c, "rank": r, "residual_norm": n} for i, c, r, n in columns]
        write_rows(self.lake, ITEM_TOKENS, [row | {"content_hash": "h", "codebook_version": version} for row in rows])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return Small(tmp_path_factory.mktemp("codebooks"))


@pytest.fixture
def answer(small: Small, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command on the lake with --json and returns its object."""

    def ask(*arguments: str) -> Any:
        assert run(["codebook", *arguments, "--lake", small.lake.root, "--json"]) == 0
        out = capsys.readouterr().out
        assert out.count("\n") == 1
        return json.loads(out)

    return ask


@pytest.fixture
def refusal(small: Small, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command that must fail and returns (exit code, its one error line)."""

    def ask(*arguments: str, lake: bool = True) -> tuple[int, str]:
        place = ["--lake", small.lake.root] if lake else []
        code = run(["codebook", *arguments, *place])
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("error: ")
        return code, lines[0]

    return ask


def test_list_names_every_version_and_the_latest(small, answer):
    rows = answer("list")["codebooks"]
    assert {row["version"] for row in rows} == set(small.versions)
    assert [row["version"] for row in rows if row["latest"]] == [small.versions[1]]
    by_version = {row["version"]: row for row in rows}
    assert [by_version[version]["items"] for version in small.versions] == [40, 40, 0]
    assert by_version[small.versions[0]]["sizes"] == [4, 4, 4]
    assert by_version[small.versions[0]]["utilization"] == [1, 1, 1]


def test_inspect_reports_the_item_tokens(small, answer):
    found = answer("inspect")
    assert (found["version"], found["source"], found["latest"]) == (small.versions[1], "item_tokens", True)
    assert found["metrics"] == codebook_metrics(small.models[1].codes_, SIZES)
    assert found["gate"]["passed"]


def test_inspect_in_full_adds_categories_and_pairs(small, answer):
    metrics = answer("inspect", small.versions[0], "--full")["metrics"]
    pairs = [(number, number + 4) for number in range(36)]
    labels = [f"topic{number % 4}" for number in range(40)]
    assert metrics == codebook_metrics(small.models[0].codes_, SIZES, labels=labels, pairs=pairs)


def test_inspect_falls_back_on_the_metrics_of_training_and_says_so(small, answer):
    found = answer("inspect", small.versions[2])
    assert found["source"] == "training"
    assert "reconstruction_error" in found["metrics"]


def test_the_gate_fails_with_exit_3_and_names_the_layer(small, answer, refusal):
    assert answer("inspect", "--gate")["gate"]["passed"]
    code, line = refusal("inspect", small.versions[2], "--gate", "--set", "codebook.min_entropy_ratio=1")
    assert code == 3
    assert "layer 2 entropy_ratio" in line


def test_an_item_has_tokens_title_and_siblings(small, answer):
    found = answer("item", "item00", "--limit", "40")
    codes = small.models[1].codes_
    assert found["tokens"] == codes[0].tolist()
    assert found["title"] == "Clip <0>"
    shares = [(codes[:, :depth] == codes[0, :depth]).all(axis=1).sum() - 1 for depth in (1, 2, 3)]
    assert found["same_prefix"] == shares
    assert len(found["siblings"]) == shares[0]
    assert [one["shared_tokens"] for one in found["siblings"]] == sorted(
        (one["shared_tokens"] for one in found["siblings"]), reverse=True
    )


def test_a_prefix_lists_its_items_and_categories(small, answer):
    token = int(small.models[0].codes_[5, 0])
    inside = [number for number in range(40) if small.models[0].codes_[number, 0] == token]
    found = answer("prefix", str(token), "--version", small.versions[0])
    assert found["items"] == len(inside)
    assert {one["item_id"] for one in found["examples"]} <= {IDS[number] for number in inside}
    assert sum(row["items"] for row in found["categories"]) == len(inside)
    deep = answer("prefix", *map(str, small.models[0].codes_[5].tolist()), "--version", small.versions[0])
    assert "item05" in {one["item_id"] for one in deep["examples"]}


@pytest.mark.parametrize(("text", "expected"), [("läuf", ["item07"]), ("rare CAP", ["item09"]), ("<3>", ["item03"]), ("zzz", [])])
def test_search_looks_into_titles_captions_and_tags(small, answer, text, expected):
    found = answer("search", text)
    assert [row["item_id"] for row in found["found"]] == expected
    assert found["items"] == len(expected)
    for row in found["found"]:
        assert row["tokens"] == small.models[1].codes_[IDS.index(row["item_id"])].tolist()


def test_search_sees_only_the_newest_version_of_an_item(answer):
    assert answer("search", "older title")["items"] == 0


def test_diff_counts_changed_tokens(small, answer):
    found = answer("diff", small.versions[0], small.versions[1])
    changed = (small.models[0].codes_ != small.models[1].codes_).mean(axis=0)
    assert found["churn"]["layers"] == pytest.approx(changed.tolist())
    assert (found["churn"]["items"], found["churn"]["only_before"]) == (40, 0)
    assert answer("diff", small.versions[0], small.versions[0])["centroids"][0]["relative_shift"] == 0
    assert answer("diff", small.versions[0], small.versions[2])["churn"] is None


@pytest.mark.slow
def test_report_is_one_page_with_thumbnails(small, answer, tmp_path):
    out = tmp_path / "page.html"
    done = answer("report", "--out", str(out))
    page = out.read_text()
    assert done["bytes"] == out.stat().st_size
    assert small.versions[1] in page
    assert "data:image/jpeg;base64," in page
    assert "Clip &lt;" in page
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize("ending", ["csv", "parquet", "json"])
def test_export_writes_items_and_tokens(small, answer, tmp_path, ending):
    out = tmp_path / f"tokens.{ending}"
    assert answer("export", "--out", str(out), "--version", small.versions[0])["items"] == 40
    if ending == "json":
        found = json.loads(out.read_text())
    else:
        table = pacsv.read_csv(out) if ending == "csv" else papq.read_table(out)
        found = {row["item_id"]: [row["token_1"], row["token_2"], row["token_3"]] for row in table.to_pylist()}
    assert found == dict(zip(IDS, small.models[0].codes_.tolist(), strict=True))


@pytest.mark.parametrize("command", ["report", "export"])
def test_a_dry_run_writes_nothing(answer, tmp_path, command):
    out = tmp_path / ("a.html" if command == "report" else "a.csv")
    assert str(out) in answer(command, "--out", str(out), "--dry-run")["would_change"]
    assert not list(tmp_path.iterdir())


def test_a_registry_alone_lists_inspects_and_diffs(small, capsys):
    place = ["--registry", str(small.registry.root), "--json"]
    assert run(["codebook", "list", *place]) == 0
    assert json.loads(capsys.readouterr().out)["codebooks"][0]["items"] is None
    assert run(["codebook", "inspect", *place]) == 0
    assert json.loads(capsys.readouterr().out)["source"] == "training"
    assert run(["codebook", "diff", *small.versions[:2], *place]) == 0
    assert json.loads(capsys.readouterr().out)["churn"] is None


@pytest.mark.parametrize("command", [["item", "item00"], ["prefix", "1"], ["search", "x"], ["export", "--out", "a.csv"]])
def test_a_registry_alone_has_no_items(small, refusal, command):
    code, line = refusal(*command, "--registry", str(small.registry.root), lake=False)
    assert code == 2
    assert "holds no items; give --lake" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "000000000000"], "no codebook of this version"),
        (["inspect", "../../etc"], "use letters, digits"),
        (["inspect", "--set", "codebook.min_utilization=7"], "min_utilization"),
        (["item", "nobody"], "'nobody': has no tokens"),
        (["prefix", "4"], "token 4 is not below 4, the size of layer 1"),
        (["prefix", "1", "1", "1", "1"], "longer than the 3 tokens"),
        (["prefix", "one"], "one"),
        (["search", " "], "text is empty"),
        (["export", "--out", "tokens.txt"], "must end in .csv or .parquet or .json"),
        (["export", "--out", "/nowhere/at/all.csv"], "is no folder"),
        (["report", "--out", "page.pdf"], "must end in .html"),
    ],
)
def test_bad_input_ends_in_one_line(refusal, arguments, message):
    code, line = refusal(*arguments)
    assert code == 2
    assert message in line


def test_a_version_without_item_tokens_says_what_to_run(small, refusal):
    code, line = refusal("item", "item00", "--version", small.versions[2])
    assert code == 2
    assert "run `onerec tokenize` first" in line


def test_codes_of_different_lengths_are_refused(small, tmp_path, capsys):
    lake = create_lake(str(tmp_path / "lake"), Config())
    version = publish_codebook(Registry.of(lake), small.models[0], {}).version
    row = {"rank": 0, "residual_norm": 1.0, "content_hash": "h", "codebook_version": version}
    write_rows(lake, ITEM_TOKENS, [row | {"item_id": "a", "tokens": [1, 2, 3]}, row | {"item_id": "b", "tokens": [1]}])
    assert run(["codebook", "inspect", "--lake", lake.root]) == 2
    assert "differ in length; run `onerec tokenize` again" in capsys.readouterr().err


def test_a_place_that_is_none_ends_in_one_line(refusal, tmp_path, monkeypatch):
    monkeypatch.delenv("ONEREC_LAKE", raising=False)
    assert "give --lake" in refusal("list", lake=False)[1]
    assert "no lake here" in refusal("list", "--lake", str(tmp_path), lake=False)[1]
    assert "no registry with codebooks" in refusal("list", "--registry", str(tmp_path), lake=False)[1]


def test_an_altered_codebook_ends_in_one_line(small, tmp_path, capsys):
    registry = Registry(tmp_path)
    version = publish_codebook(registry, small.models[0], {}).version
    path = tmp_path / "codebook" / version / "codebook.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    assert run(["codebook", "diff", version, version, "--registry", str(tmp_path)]) == 2
    assert "truncated or altered" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["list"], ["inspect"], ["inspect", "--full"], ["item", "item00"], ["prefix", "1"], ["search", "clip"]],
)
def test_people_get_tables(small, capsys, arguments):
    assert run(["codebook", *arguments, "--lake", small.lake.root]) == 0
    shown = capsys.readouterr()
    assert small.versions[1] in shown.out or "Clip <" in shown.out
    assert shown.err == ""


def test_people_get_a_table_of_differences(small, capsys):
    for after in small.versions[1:]:
        assert run(["codebook", "diff", small.versions[0], after, "--lake", small.lake.root]) == 0
    shown = capsys.readouterr().out
    assert "churn of 40 common items" in shown
    assert "needs --lake and item tokens of both versions" in shown


@pytest.mark.slow
def test_no_engine_is_imported(small):
    script = (
        "import sys; from onerec.command_line import run\n"
        f"run(['codebook', 'inspect', '--lake', {small.lake.root!r}])\n"
        "heavy = {'faiss', 'torch', 'sklearn', 'scipy', 'pyspark', 'apache_beam', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
