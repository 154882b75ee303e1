"""The training loop: it learns, it stops and resumes to the same weights, it says what it does."""

import dataclasses
import json

import pytest
import torch

from schemas.errors import BadInput
from tests.trainer.made_batches import small_config
from tests.trainer.made_shards import made_log
from trainer.fitting import METRICS_FILE, STATE_FILE, FitSettings, fit, learning_rate_at, make_optimizer
from trainer.model.onerec import OneRec
from trainer.shard_reader import ShardReader
from trainer.training import lengths_of

SETTINGS = FitSettings(
    steps=14, learning_rate=3e-3, warmup_steps=2, weight_decay=0.01, checkpoint_every=3, log_every=2, plan={"name": "test"}
)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return made_log(tmp_path_factory.mktemp("shards"), users=12, days=1, requests=4)


def made_model():
    torch.manual_seed(0)
    return OneRec(small_config(codebook_sizes=(8, 8, 8)))


def made_reader(log, model, **options):
    return ShardReader(log.shards, log.dates, **{"seed": 1, "batch_requests": 6, "lengths": lengths_of(model.config)} | options)


class Killed(Exception):
    """Ends a training in the middle."""


def killed_after(step):
    def on_step(done, _loss):
        if done == step:
            raise Killed

    return on_step


@pytest.mark.slow
@pytest.mark.parametrize("kills", [(4,), (5, 6, 11), (1,)])
def test_killed_and_resumed_it_ends_in_the_same_weights(log, tmp_path, kills):
    whole = made_model()
    expected = fit(whole, made_reader(log, whole), SETTINGS, tmp_path / "whole")
    for kill in kills:
        part = made_model()
        with pytest.raises(Killed):
            fit(part, made_reader(log, part), SETTINGS, tmp_path / "part", killed_after(kill))
    last = made_model()
    result = fit(last, made_reader(log, last), SETTINGS, tmp_path / "part")
    assert result.resumed_from == max(kills) // 3 * 3
    assert dataclasses.replace(result, resumed_from=0) == expected
    for name, value in whole.state_dict().items():
        assert torch.equal(value, last.state_dict()[name]), name
    steps = [json.loads(line)["step"] for line in (tmp_path / "part" / METRICS_FILE).read_text().splitlines()]
    assert steps == [2, 4, 6, 8, 10, 12, 14]


@pytest.mark.slow
def test_a_state_of_another_plan_is_not_resumed(log, tmp_path):
    first, second = made_model(), made_model()
    with pytest.raises(Killed):
        fit(first, made_reader(log, first), SETTINGS, tmp_path, killed_after(4))
    result = fit(second, made_reader(log, second), dataclasses.replace(SETTINGS, plan={"name": "other"}), tmp_path)
    assert result.resumed_from == 0


def test_a_damaged_state_is_named(log, tmp_path):
    (tmp_path / STATE_FILE).write_bytes(b"damaged")
    model = made_model()
    with pytest.raises(BadInput, match=r"checkpoint.pt.*delete it"):
        fit(model, made_reader(log, model), SETTINGS, tmp_path)


@pytest.mark.slow
def test_loss_falls_and_metrics_say_how(log, tmp_path):
    model = made_model()
    result = fit(model, made_reader(log, model), dataclasses.replace(SETTINGS, steps=60, log_every=10), tmp_path)
    assert result.loss_last < result.loss_first - 0.5
    assert len(made_reader(log, model)) == 44  # seven epochs of eight steps, and four steps of six requests
    assert (result.steps, result.requests, result.targets) == (60, 7 * 44 + 4 * 6, 3 * (7 * 44 + 4 * 6))
    lines = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60]
    for line in lines:
        assert sum(line[f"token_loss_{layer}"] for layer in (1, 2, 3)) == pytest.approx(line["loss"], abs=1e-4)
        assert [sum(block) for block in line["expert_load"]] == pytest.approx([1.0, 1.0], abs=1e-3)
        assert line["requests_per_s"] > 0


def test_a_loss_that_is_no_number_stops_the_training(log, tmp_path):
    model = made_model()
    with torch.no_grad():
        model.decoder.begin.fill_(torch.nan)
    with pytest.raises(BadInput, match=r"the loss became nan at step 1; lower train.learning_rate"):
        fit(model, made_reader(log, model), SETTINGS, tmp_path)


def test_nothing_to_train_on(log, tmp_path):
    model = made_model()
    log = made_log(tmp_path / "shards", users=1, holdout_every=1, days=1)
    with pytest.raises(BadInput, match="no request of these dates has a target"):
        fit(model, made_reader(log, model), SETTINGS, tmp_path)


def test_learning_rate_warms_up_and_anneals_to_a_tenth():
    rates = [learning_rate_at(step, SETTINGS) for step in range(15)]
    assert rates[:3] == pytest.approx([1.5e-3, 3e-3, 3e-3])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[14] == pytest.approx(3e-4)


def test_only_matrices_decay():
    model = made_model()
    decaying, others = (group["params"] for group in make_optimizer(model, 1e-3, 0.1).param_groups)
    ids = {id(p) for p in decaying}
    assert id(model.decoder.heads[0].weight) in ids
    assert id(model.decoder.tokens[0].weight) not in ids
    assert id(model.pathways.behaviour.item.weight) not in ids
    assert id(model.encoder.norm.weight) not in ids
    assert len(decaying) + len(others) == len(list(model.parameters()))
