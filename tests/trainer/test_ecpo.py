"""ECPO and GBPO against scalar references written straight from the equations, and the bounds that give them their point."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.ecpo import early_clipped_ratio, ecpo_loss, gbpo_loss, group_advantages, kl_to_old

EPSILON, DELTA = 0.2, 0.1
log_probability = st.floats(-12, -0.01)
sample = st.tuples(log_probability, log_probability, st.floats(-3, 3))
group = st.lists(sample, min_size=1, max_size=6)


def scalar_ecpo(samples: list[tuple[float, float, float]]) -> float:
    """−1/G Σ min(ρA, clip(ρ)A), one sample at a time."""
    total = 0.0
    for log_new, log_old, advantage in samples:
        new, old = math.exp(log_new), math.exp(log_old)
        ratio = new / max(new / (1 + EPSILON + DELTA), old)
        total += min(ratio * advantage, min(max(ratio, 1 - EPSILON), 1 + EPSILON) * advantage)
    return -total / len(samples)


def scalar_gbpo(samples: list[tuple[float, float, float]]) -> float:
    total = 0.0
    for log_new, log_old, advantage in samples:
        new, old = math.exp(log_new), math.exp(log_old)
        total += new / (max(old, new) if advantage >= 0 else max(old, 1 - new)) * advantage
    return -total / len(samples)


def tensors(samples: list[tuple[float, float, float]]) -> list[torch.Tensor]:
    return [torch.tensor([[values[place] for values in samples]], dtype=torch.float64) for place in range(3)]


@given(group)
@settings(deadline=None)
def test_ecpo_equals_the_scalar_equation(samples: list[tuple[float, float, float]]) -> None:
    new, old, advantages = tensors(samples)
    loss = ecpo_loss(new, old, advantages, epsilon=EPSILON, delta=DELTA)
    assert loss.item() == pytest.approx(scalar_ecpo(samples), rel=1e-9, abs=1e-12)


@given(group)
@settings(deadline=None)
def test_gbpo_equals_the_scalar_equation(samples: list[tuple[float, float, float]]) -> None:
    new, old, advantages = tensors(samples)
    assert gbpo_loss(new, old, advantages).item() == pytest.approx(scalar_gbpo(samples), rel=1e-9, abs=1e-12)


@given(group)
@settings(deadline=None)
def test_the_ratio_never_exceeds_its_bound(samples: list[tuple[float, float, float]]) -> None:
    new, old, _ = tensors(samples)
    assert early_clipped_ratio(new, old, epsilon=EPSILON, delta=DELTA).max() <= 1 + EPSILON + DELTA + 1e-9


@given(group)
@settings(deadline=None)
def test_gradients_are_bounded_for_every_sample(samples: list[tuple[float, float, float]]) -> None:
    """|∂loss/∂log π| ≤ (1+ε+δ)|A|/G, however far the policy has moved; plain clipping explodes for A < 0."""
    new, old, advantages = tensors(samples)
    new.requires_grad_()
    ecpo_loss(new, old, advantages, epsilon=EPSILON, delta=DELTA).backward()
    assert new.grad is not None
    assert bool((new.grad.abs() <= (1 + EPSILON + DELTA) * advantages.abs() / len(samples) + 1e-12).all())


def test_without_early_clipping_the_same_sample_would_explode() -> None:
    new, old, advantage = -1.0, -9.0, -1.0
    plain_gradient = math.exp(new - old) * abs(advantage)
    assert plain_gradient > 1000
    log_probability = torch.tensor([[new]], requires_grad=True)
    ecpo_loss(log_probability, torch.tensor([[old]]), torch.tensor([[advantage]]), epsilon=EPSILON, delta=DELTA).backward()
    assert log_probability.grad is not None
    assert log_probability.grad.item() == pytest.approx(1 + EPSILON + DELTA, rel=1e-5)


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "gradient"),
    [
        (0.0, 1.0, -1.0),  # on policy: the plain policy gradient
        (0.0, -1.0, 1.0),
        (0.5, 1.0, 0.0),  # already more probable than 1+ε allows: clipped
        (-0.5, -1.0, 0.0),  # already less probable than 1−ε: clipped
        (-0.5, 1.0, -math.exp(-0.5)),  # a good one that became rarer is still pushed up
    ],
)
def test_gradient_by_case(log_ratio: float, advantage: float, gradient: float) -> None:
    new = torch.tensor([[-2.0 + log_ratio]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[-2.0]], dtype=torch.float64)
    ecpo_loss(new, old, torch.tensor([[advantage]], dtype=torch.float64), epsilon=EPSILON, delta=DELTA).backward()
    assert new.grad is not None
    assert new.grad.item() == pytest.approx(gradient, abs=1e-9)


def test_a_gradient_step_raises_what_was_better_than_its_group_and_lowers_what_was_worse() -> None:
    logits = torch.zeros(4, requires_grad=True)
    old = torch.log_softmax(logits, -1).detach()[None]
    advantages = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.2]]), torch.ones(1, 4, dtype=torch.bool))
    for _ in range(3):
        loss = ecpo_loss(torch.log_softmax(logits, -1)[None], old, advantages, epsilon=EPSILON, delta=DELTA)
        (gradient,) = torch.autograd.grad(loss, logits)
        logits = (logits - 0.1 * gradient).detach().requires_grad_()
    probabilities = torch.softmax(logits, -1)
    assert probabilities[0] > 0.25
    assert probabilities[1] < 0.25
    assert probabilities[0] > probabilities[3] > probabilities[1]


rewards_and_validity = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=8)


@given(st.lists(rewards_and_validity, min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_advantages_equal_numpy_over_the_valid_samples(groups: list[list[tuple[float, bool]]]) -> None:
    width = max(len(entries) for entries in groups)
    padded = [entries + [(0.5, False)] * (width - len(entries)) for entries in groups]
    rewards = torch.tensor([[reward for reward, _ in row] for row in padded])
    valid = torch.tensor([[flag for _, flag in row] for row in padded])
    result = group_advantages(rewards, valid).numpy()
    for row, reward_row, valid_row in zip(result, rewards.numpy(), valid.numpy(), strict=True):
        expected = np.zeros(width)
        chosen = reward_row[valid_row].astype(np.float64)
        if len(chosen) and chosen.std() > 1e-5:
            expected[valid_row] = (chosen - chosen.mean()) / chosen.std()
            np.testing.assert_allclose(row, expected, rtol=1e-2, atol=1e-3)
        elif len(chosen) == 0 or chosen.std() < 1e-7:
            assert (row == 0).all()


def test_equal_rewards_teach_nothing() -> None:
    """A standard deviation of 0 gives advantages of 0, not infinities, and an illegal sample's reward is never read."""
    rewards = torch.tensor([[0.3, 0.3, float("nan")], [0.9, 0.1, 0.1]])
    valid = torch.tensor([[True, True, False], [True, False, False]])
    assert group_advantages(rewards, valid).tolist() == [[0.0] * 3, [0.0] * 3]


def test_kl_estimate_is_zero_on_policy_and_unbiased() -> None:
    new, old = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.2, 0.3, 0.5]).log()
    assert kl_to_old(old[None], old[None]).item() == 0
    drawn = torch.multinomial(old.exp(), 200_000, replacement=True, generator=torch.Generator().manual_seed(0))
    true = float((old.exp() * (old - new)).sum())
    assert kl_to_old(new[drawn][None], old[drawn][None]).item() == pytest.approx(true, rel=0.03)
