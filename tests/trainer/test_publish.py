"""From the rsft model to a live release, as a person types it; and everything that publishing refuses."""

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from onerec.command_line import run as onerec
from schemas.lake import Lake, open_lake
from schemas.registry import Registry
from schemas.tables import PIPELINE_RUNS
from tests.trainer.post_training_lake import fine_tuned_lake
from trainer.checkpoints import load_model
from trainer.reward.files import load_reward, save_reward

pytestmark = pytest.mark.slow


def call_json(arguments: list[str]) -> dict[str, Any]:
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = onerec(arguments)
    assert code == 0, errors.getvalue()
    result: dict[str, Any] = json.loads(out.getvalue())
    return result


def refused(arguments: list[str], code: int = 2) -> str:
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        assert onerec(arguments) == code
    line = errors.getvalue().strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line


@pytest.fixture(scope="module")
def reinforced(tmp_path_factory) -> tuple[Lake, dict[str, dict[str, Any]]]:
    """A lake after reward, rl and evaluate, and what these reported."""
    lake = fine_tuned_lake(tmp_path_factory.mktemp("post") / "lake")
    reports = {
        "reward": call_json(["reward", "--lake", lake.root, "--json"]),
        "rl": call_json(["rl", "--lake", lake.root, "--json"]),
        "evaluate": call_json(["evaluate", "--lake", lake.root, "--stage", "rl", "--json"]),
    }
    return lake, reports


@pytest.fixture
def copy(reinforced, tmp_path) -> Lake:
    """The same lake, to be damaged."""
    shutil.copytree(reinforced[0].root, tmp_path / "lake")
    return open_lake(str(tmp_path / "lake"))


def release(lake: Lake, *more: str) -> list[str]:
    return ["publish", "release", "--lake", lake.root, "--json", *more]


def test_reward_reports_every_objective_on_the_next_day(reinforced) -> None:
    lake, reports = reinforced
    figures = reports["reward"]["evaluation"]
    assert figures["evaluated_on"] == "2026-01-03"
    assert figures["requests"] == 24 * 4
    assert 0 <= figures["objectives"]["positive"]["auc"] <= 1
    assert figures["objectives"]["click"] == {"auc": None, "p_score_auc": None, "positive_share": 1.0}  # all are clicked
    assert reports["reward"]["tables"]["training"]["rows_dropped"]["holdout"] == 3 * 2 * 4
    assert load_reward(lake.local_path("training", "reward")).version == reports["reward"]["reward_version"]
    assert len((lake.local_path("training", "reward") / "metrics.jsonl").read_text().splitlines()) == 30


def test_rl_leaves_a_model_and_what_it_came_from(reinforced) -> None:
    lake, reports = reinforced
    folder, report = lake.local_path("training", "rl"), reports["rl"]
    described = json.loads((folder / "run.json").read_text())
    saved = load_model(folder)
    assert described == saved.metadata | {"weights_sha256": saved.weights_sha256}
    assert described["reward_version"] == reports["reward"]["reward_version"]
    assert described["parent"]["kind"] == "rsft"
    assert described["pretrained"]["kind"] == "pretrained"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    counts = report["tables"]["rollouts"]
    assert counts["rows_in"] == 4 * 4 * 8
    assert counts["rows_out"] == sum(line["legal_samples"] for line in lines)
    assert 0 < report["reward_before"] < 1
    assert 0 < report["reward_after"] < 1
    assert report["evaluated_on"] == "2026-01-03"
    assert report["max_staleness"] <= 2 + 1


def test_rl_again_gives_the_same_weights(reinforced, copy) -> None:
    first = json.loads((reinforced[0].local_path("training", "rl") / "model.json").read_text())["weights"]
    call_json(["rl", "--lake", copy.root, "--json"])
    assert json.loads((copy.local_path("training", "rl") / "model.json").read_text())["weights"] == first
    assert not (copy.local_path("training", "rl") / "evaluation.json").exists()  # it was of the model before


def test_a_release_names_everything_that_belongs_together(reinforced) -> None:
    lake, reports = reinforced
    registry = Registry.of(lake)
    plan = call_json(release(lake, "--dry-run"))
    assert registry.latest("release") is None
    report = call_json(release(lake))
    artefact = registry.load("release")
    assert plan["would_change"] == {"registry/release": sorted(artefact.files)}
    metadata = artefact.metadata
    assert metadata["token_set_version"] == registry.latest("token_set")
    assert metadata["pretrained_version"] == registry.latest("pretrained")
    assert metadata["reward_version"] == reports["reward"]["reward_version"]
    assert metadata["codebook_version"] == "cb1"
    assert metadata["evaluation"]["loss"] == reports["evaluate"]["loss"]
    assert load_model(artefact.folder).metadata["stage"] == "rl"
    assert load_reward(artefact.folder).version == metadata["reward_version"]
    again = call_json(release(lake))
    assert again["version"] == report["version"]
    assert registry.versions("release") == [artefact.version]
    runs = lake.read(PIPELINE_RUNS).to_pylist()
    assert [run["status"] for run in runs if run["step"] == "publish release"] == ["succeeded", "succeeded"]


def test_rollback_makes_an_earlier_release_live(copy) -> None:
    first = call_json(release(copy))["version"]
    call_json(["evaluate", "--lake", copy.root, "--stage", "rsft", "--json"])
    second = call_json(release(copy, "--stage", "rsft"))
    assert second["former_version"] == first
    assert second["metadata"]["reward_version"] is None
    registry = Registry.of(copy)
    assert registry.latest("release") == second["version"]
    assert call_json(release(copy, "--rollback", first))["version"] == first
    assert registry.latest("release") == first
    weights = next(registry.load("release", second["version"]).folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert "altered" in refused(release(copy, "--rollback", second["version"]))
    assert registry.latest("release") == first
    assert "no release of this version" in refused(release(copy, "--rollback", "0123456789ab"))


def _change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_what_does_not_belong_together_is_not_released(copy) -> None:
    folder = copy.local_path("training", "rl")
    former = Registry.of(copy).latest("release")
    whole = (folder / "evaluation.json").read_text()
    (folder / "evaluation.json").unlink()
    assert "onerec evaluate --stage rl" in refused(release(copy))
    (folder / "evaluation.json").write_text(whole)
    assert json.loads(whole)["weights_sha256"] == load_model(folder).weights_sha256
    _change(folder / "evaluation.json", weights_sha256="0" * 64)
    assert "evaluation.json: of another model" in refused(release(copy))
    (folder / "evaluation.json").write_text(json.dumps({"weights_sha256": json.loads(whole)["weights_sha256"]}))
    assert "evaluation.json: no evaluation" in refused(release(copy))
    run = (folder / "run.json").read_text()
    _change(folder / "run.json", weights_sha256="0" * 64)
    assert "run.json: of another model" in refused(release(copy))
    (folder / "run.json").write_text(run)
    (folder / "evaluation.json").write_text(whole)
    _change(folder / "evaluation.json", gate={"passed": False, "reasons": ["loss 9 is above 4"]})
    assert "loss 9" in refused(release(copy), code=3)
    (folder / "evaluation.json").write_text(whole[:50])
    assert "not JSON" in refused(release(copy))
    (folder / "evaluation.json").write_text(whole)
    assert Registry.of(copy).latest("release") == former


def test_a_live_release_keeps_its_tokens_when_a_new_token_set_comes(copy) -> None:
    registry = Registry.of(copy)
    own = registry.latest("token_set")
    registry.publish("token_set", {"codebook_version": "cb2"}, {"trie.safetensors": b"another"})
    assert call_json(release(copy))["metadata"]["token_set_version"] == own
    newer = registry.publish(
        "token_set", {"codebook_version": "cb1", "codebook_sizes": [8, 8, 8]}, {"trie.safetensors": b"with new items"}
    )
    assert call_json(release(copy))["metadata"]["token_set_version"] == newer.version


def test_a_reward_model_trained_anew_does_not_fit_the_rl_model(copy) -> None:
    call_json(["reward", "--lake", copy.root, "--json", "--set", "reward.seed=5"])
    assert "run `onerec rl` again" in refused(release(copy))


def test_models_of_another_codebook_are_refused(copy) -> None:
    path = copy.local_path("training", "reward") / "reward.json"
    reward = load_reward(path.parent)
    save_reward(path.parent, reward.model, reward.metadata | {"codebook_version": "cb0"})
    assert "different codebooks" in refused(["rl", "--lake", copy.root])


def test_rl_without_its_parts_says_what_to_run(copy) -> None:
    assert "no Ray cluster answers" in refused(["rl", "--lake", copy.root, "--address", "127.0.0.1:1"])
    shutil.rmtree(copy.local_path("training", "reward"))
    assert "onerec reward" in refused(["rl", "--lake", copy.root])
    assert "no shards of that day" in refused(["reward", "--lake", copy.root, "--date", "2026-05-01"])
    assert "not a date" in refused(["rl", "--lake", copy.root, "--from", "tomorrow"])
