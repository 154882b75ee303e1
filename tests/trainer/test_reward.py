"""The reward model: looking codes up, searching interests, its loss, its AUC, its files, and that it learns."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.config import Config, IndustrialRule
from schemas.errors import BadInput
from schemas.shards import ITEM_TABLE, stable_key
from tests.trainer.made_batches import made_batch, small_config
from tests.trainer.made_shards import made_log
from trainer.features import Lengths
from trainer.item_table import ItemTokens
from trainer.reward.auc import area_under_curve
from trainer.reward.catalogue import Catalogue
from trainer.reward.files import REWARD_FILE, load_reward, save_reward
from trainer.reward.network import PScore, RewardConfig
from trainer.reward.scoring import Judge
from trainer.reward.training import evaluate_reward, fit_reward
from trainer.shard_files import open_day
from trainer.shard_reader import ShardReader

SIZES = (5, 4, 6)
ITEMS = [
    # item, code, rank, [(valid_from, author, tags, duration, category)]
    ("twin-first", (1, 2, 3), 0, [(10, "a", ["x"], 4000, "sport"), (30, "b", ["y"], 9000, "news")]),
    ("twin-second", (1, 2, 3), 1, [(10, "z", ["z"], 1000, "sport")]),
    ("alone", (4, 3, 5), 0, [(20, None, [], -1, None)]),
]


def catalogue() -> Catalogue:
    rows = [
        {
            "item_key": stable_key(item),
            "item_id": item,
            "valid_from": since,
            "author_id": author,
            "category": category,
            "tags": tags,
            "duration_ms": duration,
            "deleted": False,
        }
        for item, _, _, versions in ITEMS
        for since, author, tags, duration, category in versions
    ]
    rows.sort(key=lambda row: (row["item_key"], row["valid_from"]))
    order = sorted(ITEMS, key=lambda row: stable_key(row[0]))
    tokens = ItemTokens(
        np.array([stable_key(row[0]) for row in order]), np.array([row[1] for row in order]), np.array([row[2] for row in order])
    )
    return Catalogue.of(pa.Table.from_pylist(rows, schema=ITEM_TABLE), tokens, SIZES, "a test")


class TestCatalogue:
    def test_a_code_stands_for_its_item_of_rank_0_as_known_before_the_request(self) -> None:
        codes = torch.tensor([[[1, 2, 3]], [[1, 2, 3]], [[1, 2, 3]]])
        features = catalogue().features(codes, torch.tensor([10, 11, 31]))
        assert features.author_key_Q.tolist() == [[0], [stable_key("a")], [stable_key("b")]]
        assert features.tag_key_QW[:, 0, 0].tolist() == [0, stable_key("x"), stable_key("y")]
        assert features.duration_Q[0, 0] == 0
        assert features.duration_Q[2, 0] > features.duration_Q[1, 0] > 0
        assert bool(features.legal_Q.all())

    def test_legal_is_what_some_item_has(self) -> None:
        codes = torch.tensor([[[1, 2, 3], [4, 3, 5], [4, 3, 4], [0, 0, 0]]])
        assert catalogue().features(codes, torch.tensor([50])).legal_Q.tolist() == [[True, True, False, False]]
        assert len(catalogue()) == 2

    def test_tokens_outside_the_codebook_name_nothing(self) -> None:
        beyond = torch.tensor([[[1, 2, 9], [0, 6, 3], [-1, 2, 3]]])  # (0, 6, 3) would be (1, 2, 3) by carrying over
        assert not bool(catalogue().features(beyond, torch.tensor([50])).legal_Q.any())

    def test_members_of_a_category_or_tag_as_known_then(self) -> None:
        codes = torch.tensor([[[1, 2, 3], [4, 3, 5], [0, 0, 0]]] * 2)
        moments = torch.tensor([15, 35])
        assert catalogue().members(codes, moments, category="sport").tolist() == [[True, False, False], [False] * 3]
        assert catalogue().members(codes, moments, tag="y").tolist() == [[False] * 3, [True, False, False]]


def reward_model(**changes: int) -> PScore:
    torch.manual_seed(0)
    return PScore(RewardConfig(SIZES, {"positive": 1.0, "like": 0.5}, **changes)).eval()


class TestNetwork:
    def test_scores_any_legal_code_alone_or_in_company_alike(self) -> None:
        batch, model = made_batch(small_config()), reward_model()
        codes = torch.randint(4, (4, 5, 3), generator=torch.Generator().manual_seed(0))
        whole = model(batch, catalogue().features(codes, batch.request_ts_B))
        for place in range(5):
            alone = model(batch, catalogue().features(codes[:, place : place + 1], batch.request_ts_B))
            torch.testing.assert_close(alone.p_score_BG[:, 0], whole.p_score_BG[:, place])
        assert bool(torch.isfinite(whole.p_score_BG).all())  # request 0 has no history at all

    def test_search_attends_to_the_most_alike_behaviours_only(self) -> None:
        """Against the definition, one candidate at a time in NumPy."""
        batch, model = made_batch(small_config()), reward_model(search_length=2)
        query = torch.randn(4, 3, 32, generator=torch.Generator().manual_seed(1))
        got = model._interest(query, [batch.positive, batch.lifelong]).detach().numpy()
        parts = [model._behaviours(window) for window in (batch.positive, batch.lifelong)]
        key = model.key(torch.cat([part[0] for part in parts], 1)).detach().numpy()
        value = torch.cat([part[1] for part in parts], 1).detach().numpy()
        mask = torch.cat([batch.positive.mask_BS, batch.lifelong.mask_BS], 1).numpy()
        for row in range(4):
            places = np.flatnonzero(mask[row])
            for candidate in range(3):
                affinity = key[row, places] @ query[row, candidate].numpy() / 32**0.5
                best = np.argsort(-affinity)[:2]
                share = np.exp(affinity[best] - affinity.max(initial=-np.inf)) if len(places) else np.zeros(0)
                share = share / share.sum() if len(places) else share
                expected = share @ value[row, places[best]] if len(places) else np.zeros(32)
                np.testing.assert_allclose(got[row, candidate], expected, rtol=1e-4, atol=1e-5)

    def test_what_is_masked_does_not_matter(self) -> None:
        import dataclasses

        batch, model = made_batch(small_config()), reward_model()
        hidden = ~batch.short.mask_BS
        changed = dataclasses.replace(
            batch, short=dataclasses.replace(batch.short, play_time_BS=batch.short.play_time_BS + 7 * hidden)
        )
        features = catalogue().features(batch.tokens_BTL, batch.request_ts_B)
        torch.testing.assert_close(model(batch, features).p_score_BG, model(changed, features).p_score_BG)

    def test_loss_is_weighted_cross_entropy_against_all_objectives(self) -> None:
        batch, model = made_batch(small_config()), reward_model()
        scores = model(batch, catalogue().features(batch.tokens_BTL, batch.request_ts_B))
        p_loss, tower_loss = model.loss(scores, model.labels(batch), batch.target_mask_BT)
        p = torch.sigmoid(scores.p_score_BG).detach().numpy()
        towers = torch.sigmoid(scores.objectives_BGO).detach().numpy()
        labels, mask = model.labels(batch).numpy(), batch.target_mask_BT.numpy()
        expected_p, expected_towers = [], []
        for row, place in zip(*np.nonzero(mask), strict=True):
            terms = [(1.0, labels[row, place, 0]), (0.5, labels[row, place, 1])]
            expected_p.append(sum(-w * np.log(p[row, place] if y else 1 - p[row, place]) for w, y in terms))
            expected_towers.append(
                sum(-np.log(towers[row, place, o] if labels[row, place, o] else 1 - towers[row, place, o]) for o in (0, 1))
            )
        assert p_loss.item() == pytest.approx(np.mean(expected_p), rel=1e-5)
        assert tower_loss.item() == pytest.approx(np.mean(expected_towers), rel=1e-5)

    @pytest.mark.parametrize("objectives", [{"clicks": 1.0}, {}, {"click": -1.0}, {"click": 0.0}])
    def test_objectives_must_be_labels(self, objectives: dict[str, float]) -> None:
        with pytest.raises(BadInput, match=r"reward\.objectives"):
            RewardConfig(SIZES, objectives)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=1, max_size=30))
@settings(deadline=None)
def test_auc_counts_pairs(pairs: list[tuple[bool, int]]) -> None:
    positives = [score for label, score in pairs if label]
    negatives = [score for label, score in pairs if not label]
    found = area_under_curve(np.array([label for label, _ in pairs]), np.array([float(score) for _, score in pairs]))
    if not positives or not negatives:
        assert found is None
    else:
        wins = sum((p > n) + 0.5 * (p == n) for p in positives for n in negatives)
        assert found == pytest.approx(wins / (len(positives) * len(negatives)))


class TestJudge:
    def test_rewards_are_p_scores_of_legal_codes_after_the_rules(self) -> None:
        batch, model = made_batch(small_config()), reward_model()
        codes = torch.tensor([[[1, 2, 3], [4, 3, 5], [0, 0, 0]]] * 4)
        plain = Judge(model, catalogue())(batch, codes)
        assert plain.legal_BG.tolist() == [[True, True, False]] * 4
        assert bool((plain.p_scores_BG[:, :2] > 0).all())
        assert bool((plain.p_scores_BG[:, 2] == 0).all())
        assert torch.equal(plain.rewards_BG, plain.p_scores_BG)
        rule = IndustrialRule(name="news", category="news", factor=0.5, above_share=0.1)
        ruled = Judge(model, catalogue(), [rule])(batch, codes)
        known = bool((batch.request_ts_B > 30).all())
        assert known
        torch.testing.assert_close(ruled.rewards_BG[:, 0], 0.5 * plain.p_scores_BG[:, 0])
        assert torch.equal(ruled.rewards_BG[:, 1:], plain.p_scores_BG[:, 1:])
        assert ruled.shares == {"news": 0.5}


class TestFiles:
    def test_comes_back_as_it_was(self, tmp_path) -> None:
        model = reward_model()
        version = save_reward(tmp_path, model, {"codebook_version": "cb1"})
        saved = load_reward(tmp_path)
        assert saved.version == version
        assert saved.metadata == {"codebook_version": "cb1"}
        assert saved.model.config == model.config
        assert list(saved.model.config.objectives) == ["positive", "like"]  # the order is that of the towers
        batch = made_batch(small_config())
        features = catalogue().features(batch.tokens_BTL, batch.request_ts_B)
        assert torch.equal(saved.model(batch, features).p_score_BG, model(batch, features).p_score_BG)

    def test_a_new_model_replaces_the_old_one(self, tmp_path) -> None:
        first, second = reward_model(), reward_model()
        with torch.no_grad():
            next(second.parameters()).add_(1)
        save_reward(tmp_path, first, {})
        version = save_reward(tmp_path, second, {})
        assert [path.name for path in tmp_path.glob("*.safetensors")] == [f"reward-{version}.safetensors"]

    @pytest.mark.parametrize("damage", ["missing", "truncated", "altered", "no json", "outside", "other sizes"])
    def test_damage_is_named(self, tmp_path, damage: str) -> None:
        version = save_reward(tmp_path, reward_model(), {})
        weights, description = tmp_path / f"reward-{version}.safetensors", tmp_path / REWARD_FILE
        if damage == "missing":
            weights.unlink()
        elif damage == "truncated":
            weights.write_bytes(weights.read_bytes()[:-5])
        elif damage == "altered":
            weights.write_bytes(weights.read_bytes()[:-1] + b"!")
        elif damage == "no json":
            description.write_text("{")
        else:
            body = json.loads(description.read_text())
            if damage == "outside":
                body["weights"]["path"] = "../x"
            else:
                body["config"]["width"] = 10**7
            description.write_text(json.dumps(body))
        with pytest.raises(BadInput, match=str(tmp_path)):
            load_reward(tmp_path)


@pytest.mark.slow
def test_learns_who_likes_what_and_ranks_the_next_day(tmp_path) -> None:
    log = made_log(tmp_path, users=48, days=3)
    lengths = Lengths(20, 64, 64)
    chosen = Catalogue.of_day(open_day(tmp_path, log.dates[1], "all"))
    torch.manual_seed(0)
    model = PScore(RewardConfig((8, 8, 8), {"positive": 1.0}))
    reader = ShardReader(tmp_path, log.dates[:2], seed=0, batch_requests=48, lengths=lengths)
    section = Config.model_validate({"reward": {"learning_rate": 0.01, "steps": 150}}).reward
    result = fit_reward(model, reader, chosen, section)
    assert result.p_loss_last < result.p_loss_first / 2
    unseen = ShardReader(tmp_path, log.dates[2:], seed=0, batch_requests=48, lengths=lengths, split="all")
    figures = evaluate_reward(model, unseen, chosen, 10_000)
    assert figures["requests"] == len(unseen)
    assert figures["objectives"]["positive"]["auc"] > 0.75
    assert figures["objectives"]["positive"]["p_score_auc"] > 0.75
