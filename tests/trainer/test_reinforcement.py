"""The RL loop on a service that lives in the test's own process: what it asks for, when, and what it teaches."""

from typing import Any

import pytest
import torch

from schemas.config import Config, ReinforceSection
from schemas.errors import BadInput, OnerecError
from tests.trainer.made_batches import made_batch, small_config
from tests.trainer.post_training_lake import log_with_masks
from trainer.generation import sample
from trainer.model.onerec import OneRec
from trainer.model.presets import preset
from trainer.reinforcement import judge_policy, reinforce, rows_of_batch
from trainer.reward.catalogue import Catalogue
from trainer.reward.network import PScore, RewardConfig
from trainer.reward.scoring import Judge, Judged
from trainer.rollout.service import Rollouts
from trainer.rollout.wire import weights_from_arrays, weights_to_arrays
from trainer.shard_files import open_day
from trainer.shard_reader import ShardReader
from trainer.training import lengths_of


class OwnProcess:
    """Generates at once, with a copy of the weights it was last given; remembers what it was asked."""

    def __init__(self, model: OneRec, version: str) -> None:
        self.model = OneRec(model.config).eval()
        self.calls: list[tuple[str, Any]] = []
        self.load_weights(version, model)

    def load_weights(self, version: str, model: OneRec) -> None:
        self.model.load_state_dict(weights_from_arrays(weights_to_arrays(model.state_dict())))
        self.version = version
        self.calls.append(("weights", version))

    def submit(self, contexts: Any, group_size: int, temperature: float, seed: int) -> Rollouts:
        self.calls.append(("rollouts", contexts.user_ids))
        codes, log_probs = sample(self.model, contexts, group_size, temperature, torch.Generator().manual_seed(seed))
        return Rollouts(codes, log_probs, (self.version,))

    def collect(self, pending: Rollouts) -> Rollouts:
        return pending


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return log_with_masks(tmp_path_factory.mktemp("log") / "shards", users=24, days=1, requests=3)


def parts(log, **settings: Any) -> tuple[OneRec, ShardReader, Judge, ReinforceSection]:
    torch.manual_seed(0)
    model = OneRec(preset("tiny", (8, 8, 8)))
    reader = ShardReader(log.shards, log.dates, seed=0, batch_requests=16, targets="rsft", lengths=lengths_of(model.config))
    reward = PScore(RewardConfig((8, 8, 8), {"positive": 1.0}))
    judge = Judge(reward, Catalogue.of_day(open_day(log.shards, log.dates[0], "all")))
    defaults = {"steps": 5, "users_per_step": 4, "group_size": 8, "format_choices": 3, "push_every": 2, "evaluated_requests": 8}
    section = Config.model_validate({"reinforce": defaults | settings}).reinforce
    return model, reader, judge, section


def run(log, service: Any = None, **settings: Any) -> tuple[OneRec, list[dict[str, Any]], OwnProcess]:
    model, reader, judge, section = parts(log, **settings)
    service = service or OwnProcess(model, "run-0")
    lines = reinforce(model, reader, service, judge, section, weight_decay=0.0, run_id="run")
    return model, lines, service


@pytest.mark.slow
def test_pushes_every_n_steps_and_at_the_end_and_knows_how_old_its_rollouts_are(log) -> None:
    _, lines, service = run(log)
    assert [version for kind, version in service.calls if kind == "weights"] == ["run-0", "run-2", "run-4", "run-5"]
    # The next step's rollouts are asked for before this step trains: those of step 3 come from before the push after step 2.
    assert [line["staleness"] for line in lines] == [0, 1, 2, 1, 2]
    assert service.version == "run-5"


def test_on_fresh_weights_nothing_is_clipped_and_the_policy_has_not_moved(log) -> None:
    _, lines, _ = run(log, steps=1)
    assert lines[0]["kl_to_old"] == pytest.approx(0, abs=1e-6)
    assert lines[0]["clipped_share"] == 0


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_metrics(log) -> None:
    first, first_lines, _ = run(log)
    second, second_lines, _ = run(log)
    other, _, _ = run(log, seed=1)
    timeless = [
        [{k: v for k, v in line.items() if not k.endswith("_s")} for line in lines] for lines in (first_lines, second_lines)
    ]
    assert timeless[0] == timeless[1]
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.slow
def test_each_step_asks_for_different_users(log) -> None:
    _, _, service = run(log)
    asked = [users for kind, users in service.calls if kind == "rollouts"]
    assert all(len(set(users)) == len(users) == 4 for users in asked)
    held_out = {day.user_id for day in log.user_days[log.dates[0]] if day.holdout}
    assert not held_out & {user for users in asked for user in users}


def test_the_next_rollouts_are_under_way_while_a_step_trains(log) -> None:
    _, _, service = run(log, steps=2, push_every=1)
    assert [kind for kind, _ in service.calls] == ["weights", "rollouts", "rollouts", "weights", "weights"]


@pytest.mark.slow
def test_rollouts_of_weights_it_never_pushed_are_refused(log) -> None:
    model, *_ = parts(log)
    with pytest.raises(OnerecError, match="another trainer"):
        run(log, OwnProcess(model, "someone-else-7"))


class FavoursTopic(Judge):
    """A made reward: 1 for codes whose first token is 3, else 0; every code legal."""

    def __init__(self) -> None: ...

    def __call__(self, contexts: Any, codes_BGL: torch.Tensor) -> Judged:  # noqa: ARG002
        rewards = (codes_BGL[..., 0] == 3).float()
        return Judged(rewards, rewards, torch.ones_like(rewards, dtype=torch.bool), {})


@pytest.mark.slow
def test_the_policy_learns_what_is_rewarded(log) -> None:
    model, reader, _, section = parts(
        log, steps=40, group_size=32, push_every=1, format_weight=0.0, supervised_weight=0.0, learning_rate=3e-3
    )
    service = OwnProcess(model, "run-0")
    contexts = reader.read(torch.arange(8).numpy())
    before = judge_policy(service, contexts, FavoursTopic(), section)
    reinforce(model, reader, service, FavoursTopic(), section, weight_decay=0.0, run_id="run")
    after = judge_policy(service, contexts, FavoursTopic(), section)
    assert before.reward_mean is not None
    assert after.reward_mean is not None
    assert before.reward_mean < 0.3
    assert after.reward_mean > 0.8


@pytest.mark.slow
def test_the_format_reward_alone_teaches_legality(log) -> None:
    model, reader, judge, section = parts(
        log, steps=60, group_size=32, push_every=1, format_choices=8, supervised_weight=0.0, learning_rate=3e-3
    )
    service = OwnProcess(model, "run-0")
    contexts = reader.read(torch.arange(8).numpy())
    before = judge_policy(service, contexts, judge, section)
    reinforce(model, reader, service, judge, section, weight_decay=0.0, run_id="run")
    assert judge_policy(service, contexts, judge, section).legal_share > before.legal_share + 0.3


def test_nothing_to_read_is_said(log, tmp_path) -> None:
    model, _, judge, section = parts(log)
    empty = log_with_masks(tmp_path / "shards", users=2, days=1, holdout_every=1)
    reader = ShardReader(empty.shards, empty.dates, seed=0, batch_requests=16, targets="rsft", lengths=lengths_of(model.config))
    with pytest.raises(BadInput, match="--targets rsft"):
        reinforce(model, reader, OwnProcess(model, "run-0"), judge, section, weight_decay=0.0, run_id="run")


def test_rows_of_a_batch_keep_everything_of_a_request_together() -> None:
    batch = made_batch(small_config())
    picked = rows_of_batch(batch, torch.tensor([2, 0]))
    assert picked.user_ids == (batch.user_ids[2], batch.user_ids[0])
    assert torch.equal(picked.short.feedback_BS, batch.short.feedback_BS[[2, 0]])
    assert torch.equal(picked.tokens_BTL, batch.tokens_BTL[[2, 0]])
    assert len(picked) == 2
