"""The model: what it may see, what it must learn from, and that its sizes are the published ones."""

import dataclasses

import pytest
import torch

from schemas.errors import BadInput
from tests.trainer.made_batches import made_batch, small_config
from trainer.batches import RequestBatch
from trainer.model.config import ModelConfig
from trainer.model.onerec import OneRec
from trainer.model.presets import PRESETS, preset


def made_model(config=None, seed=0):
    torch.manual_seed(seed)
    return OneRec(config or small_config())


class TestLoss:
    def test_golden_value(self):
        """A change of this number is a change of the model: say so in its commit."""
        model = made_model()
        loss, metrics = model.loss(made_batch(model.config))
        assert loss.item() == pytest.approx(GOLDEN_LOSS, abs=2e-4)
        assert metrics.token_loss_L.sum().item() == pytest.approx(loss.item(), abs=1e-5)

    def test_an_untrained_model_is_about_as_wrong_as_guessing(self):
        model = made_model()
        loss, _ = model.loss(made_batch(model.config, requests=64))
        assert loss.item() == pytest.approx(torch.tensor([5.0, 4.0, 6.0]).log().sum().item(), rel=0.1)

    def test_is_the_mean_over_targets_of_the_summed_negative_log_probabilities(self):
        model = made_model().eval()
        batch = made_batch(model.config)
        memory, mask = model.encode(batch)
        log_probs = model.log_probs(memory, mask, batch.tokens_BTL)
        expected = -log_probs.sum(-1)[batch.target_mask_BT].mean()
        loss, metrics = model.loss(batch)
        torch.testing.assert_close(loss, expected)
        assert metrics.targets == int(batch.target_mask_BT.sum())

    def test_reaches_every_parameter(self):
        model = made_model(small_config(encoder_experts_every=2))
        model.loss(made_batch(model.config, requests=32))[0].backward()
        without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert without == []

    @pytest.mark.slow
    def test_one_batch_can_be_learnt_by_heart(self):
        model = made_model()
        batch = made_batch(model.config, requests=6)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(150):
            optimizer.zero_grad()
            loss, _ = model.loss(batch)
            loss.backward()
            optimizer.step()
            model.update_balance()
        # A request's targets share their context, so what is left is the entropy of choosing among them.
        assert loss.item() < _entropy_of_targets(batch) + 0.05


def _entropy_of_targets(batch: RequestBatch) -> float:
    counts = batch.target_mask_BT.sum(1)
    distinct = [len({tuple(code) for code in codes[:n].tolist()}) for codes, n in zip(batch.tokens_BTL, counts, strict=True)]
    assert distinct == counts.tolist()
    return float((counts * counts.log()).sum() / counts.sum())


class TestVisibility:
    def test_a_logit_depends_on_no_later_token(self):
        model = made_model().eval()
        memory, mask = model.encode(made_batch(model.config, requests=2))
        codes = torch.tensor([[1, 2, 3], [4, 0, 5]])
        before = model.decode(memory, mask, codes)
        for position in range(3):
            changed = codes.clone()
            changed[:, position] = (codes[:, position] + 1) % torch.tensor(model.config.codebook_sizes)[position]
            after = model.decode(memory, mask, changed)
            for layer in range(3):
                same = torch.equal(before[layer], after[layer])
                assert same == (layer <= position)

    def test_a_shorter_prefix_gives_the_same_logits(self):
        model = made_model().eval()
        memory, mask = model.encode(made_batch(model.config, requests=2))
        codes = torch.tensor([[1, 2, 3], [4, 0, 5]])
        whole = model.decode(memory, mask, codes)
        for given in range(3):
            part = model.decode(memory, mask, codes[:, :given])
            assert len(part) == given + 1
            for left, right in zip(part, whole, strict=False):
                torch.testing.assert_close(left, right)

    @pytest.mark.parametrize("name", ["short", "positive", "lifelong"])
    def test_masked_places_change_nothing(self, name):
        model = made_model().eval()
        batch = made_batch(model.config)
        window = getattr(batch, name)
        noise = {
            field.name: torch.where(
                window.mask_BS.view(*window.mask_BS.shape, *[1] * (value.ndim - 2)), value, torch.ones_like(value)
            )
            for field in dataclasses.fields(window)
            if field.name != "mask_BS"
            for value in [getattr(window, field.name)]
        }
        noisy = dataclasses.replace(batch, **{name: dataclasses.replace(window, **noise)})
        torch.testing.assert_close(model.loss(batch)[0], model.loss(noisy)[0])

    @pytest.mark.parametrize("name", ["short", "positive", "lifelong"])
    def test_every_behaviour_seen_changes_something(self, name):
        model = made_model().eval()
        batch = made_batch(model.config)
        window = getattr(batch, name)
        other = dataclasses.replace(window, item_key_BS=(window.item_key_BS + 1) * window.mask_BS)
        assert model.loss(batch)[0] != model.loss(dataclasses.replace(batch, **{name: other}))[0]

    def test_requests_of_a_batch_do_not_see_each_other(self):
        model = made_model().eval()
        large, small = (model.encode(made_batch(model.config, requests=4))[0], model.encode(_first(made_batch(model.config)))[0])
        torch.testing.assert_close(large[:1], small)

    def test_a_user_without_any_history_is_no_special_case(self):
        model = made_model()
        memory, mask = model.encode(made_batch(model.config, requests=1))
        assert mask.sum() == 1
        assert torch.isfinite(memory[mask]).all()
        loss, _ = model.loss(made_batch(model.config, requests=1))
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)

    def test_a_window_of_another_length_is_refused(self):
        model = made_model()
        with pytest.raises(ValueError, match="short window holds 5"):
            model.loss(made_batch(small_config(short_length=5)))


def _first(batch: RequestBatch) -> RequestBatch:
    def cut(value):
        if isinstance(value, torch.Tensor | tuple):
            return value[:1]
        return dataclasses.replace(value, **{f.name: cut(getattr(value, f.name)) for f in dataclasses.fields(value)})

    return cut(batch)


class TestLogProbs:
    def test_all_codes_together_have_probability_one(self):
        model = made_model().eval()
        memory, mask = model.encode(made_batch(model.config, requests=2))
        everything = torch.cartesian_prod(*(torch.arange(size) for size in model.config.codebook_sizes))
        total = model.log_probs(memory, mask, everything.expand(2, -1, -1)).sum(-1).exp().sum(-1)
        torch.testing.assert_close(total, torch.ones(2))


class TestSizes:
    @pytest.mark.parametrize(
        ("name", "backbone", "pathways"),
        [("0.015B", 5.95, 0.94), ("0.121B", 126.27, 28.36), ("0.935B", 940.06, 28.36), ("2.633B", 2735.46, 28.36)],
    )
    def test_of_published_presets(self, name, backbone, pathways):
        """In millions; ``trainer/model/presets.py`` says how far each is from its name, and why."""
        with torch.device("meta"):
            counts = OneRec(preset(name, (8192, 8192, 8192))).parameter_counts()
        assert counts["backbone"] / 1e6 == pytest.approx(backbone, abs=0.01)
        assert counts["pathways"] / 1e6 == pytest.approx(pathways, abs=0.01)

    @pytest.mark.parametrize("name", ["0.121B", "0.935B", "2.633B"])
    def test_lie_near_their_names(self, name):
        with torch.device("meta"):
            counts = OneRec(preset(name, (8192, 8192, 8192))).parameter_counts()
        assert counts["backbone"] == pytest.approx(float(name[:-1]) * 1e9, rel=0.05)

    def test_parts_add_up(self):
        model = made_model()
        assert sum(model.parameter_counts().values()) == sum(p.numel() for p in model.parameters())

    def test_unknown_preset(self):
        with pytest.raises(BadInput, match=r"preset 'huge': unknown; there are tiny"):
            preset("huge", (8,))

    @pytest.mark.parametrize("name", PRESETS)
    def test_survive_json(self, name):
        config = preset(name, (8, 8, 8))
        assert ModelConfig.from_json(config.to_json(), "here") == config

    @pytest.mark.parametrize(
        "changes", [{"heads": "4"}, {"wheels": 4}, {"heads": 3}, {"active_experts": 9}, {"codebook_sizes": []}]
    )
    def test_that_cannot_be(self, changes):
        with pytest.raises(BadInput):
            ModelConfig.from_json(preset("tiny", (8, 8, 8)).to_json() | changes, "here")


GOLDEN_LOSS = 4.748383
