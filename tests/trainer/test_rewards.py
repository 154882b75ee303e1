"""The format reward draws at random, rewards legality and never punishes; industrial rules demote or promote a set."""

import pytest
import torch

from schemas.config import IndustrialRule
from trainer.rewards import format_advantages, industrial_rewards


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_only_legal_samples_among_the_chosen_get_an_advantage() -> None:
    legal = torch.rand(40, 16, generator=generator(1)) < 0.5
    advantages = format_advantages(legal, 5, generator())
    assert set(advantages.unique().tolist()) == {0.0, 1.0}
    assert not bool((advantages[~legal] != 0).any())
    assert int(advantages.sum(-1).max()) <= 5


def test_with_all_legal_exactly_k_of_each_group_are_rewarded() -> None:
    advantages = format_advantages(torch.ones(7, 12, dtype=torch.bool), 5, generator())
    assert advantages.sum(-1).tolist() == [5.0] * 7
    assert format_advantages(torch.ones(2, 3, dtype=torch.bool), 5, generator()).sum().item() == 6


def test_every_sample_is_drawn_equally_often() -> None:
    drawn = format_advantages(torch.ones(20_000, 8, dtype=torch.bool), 2, generator()).mean(0)
    assert drawn.tolist() == pytest.approx([0.25] * 8, abs=0.015)


def test_the_draw_is_a_function_of_the_generator() -> None:
    legal = torch.ones(4, 32, dtype=torch.bool)
    first = format_advantages(legal, 5, generator(3))
    assert torch.equal(first, format_advantages(legal, 5, generator(3)))
    assert not torch.equal(first, format_advantages(legal, 5, generator(4)))


REWARDS = torch.tensor([[0.8, 0.4, 0.2, 0.6]])
MEMBER = torch.tensor([[True, False, True, True]])
VALID = torch.tensor([[True, True, True, False]])


def test_a_set_over_its_target_share_is_demoted() -> None:
    result, share = industrial_rewards(REWARDS, MEMBER, VALID, IndustrialRule(name="viral", factor=0.5, above_share=0.5))
    assert share == pytest.approx(2 / 3)
    assert result.tolist() == [pytest.approx([0.4, 0.4, 0.1, 0.6])]


def test_a_set_within_its_target_share_is_left_alone() -> None:
    result, _ = industrial_rewards(REWARDS, MEMBER, VALID, IndustrialRule(name="viral", factor=0.5, above_share=0.7))
    assert torch.equal(result, REWARDS)


def test_promotion_multiplies_and_adds() -> None:
    result, _ = industrial_rewards(REWARDS, MEMBER, VALID, IndustrialRule(name="new authors", factor=1.5, bonus=0.1))
    assert result.tolist() == [pytest.approx([1.3, 0.4, 0.4, 0.6])]


def test_no_legal_sample_at_all_has_share_zero() -> None:
    nothing = torch.zeros_like(VALID)
    result, share = industrial_rewards(REWARDS, MEMBER, nothing, IndustrialRule(name="viral", factor=0.5, above_share=0.1))
    assert share == 0
    assert torch.equal(result, REWARDS)
