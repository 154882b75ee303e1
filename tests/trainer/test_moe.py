"""The mixture of experts: routing by hand, and balance without an auxiliary loss."""

import pytest
import torch
from torch.nn import functional

from tests.trainer.made_batches import small_config
from trainer.model.moe import MixtureOfExperts


def made_layer(**changes):
    torch.manual_seed(0)
    return MixtureOfExperts(small_config(**changes))


def test_output_is_the_gated_sum_of_the_chosen_experts():
    layer = made_layer().eval()
    layer.bias_X.copy_(torch.tensor([0.3, -0.2, 0.0, 0.1]))
    x = torch.randn(7, 16)
    out = layer(x)
    for row in range(len(x)):
        scores = torch.sigmoid(layer.router.weight @ x[row])
        chosen = sorted(range(4), key=lambda e: -(scores[e] + layer.bias_X[e]))[:2]
        expected = torch.zeros(16)
        for expert in chosen:
            gate, up = (x[row] @ layer.gate_up[expert]).chunk(2)
            # The bias decides who is chosen, never how much they count.
            expected += scores[expert] / scores[chosen].sum() * ((functional.silu(gate) * up) @ layer.down[expert])
        torch.testing.assert_close(out[row], expected)


def test_load_counts_the_positions_of_each_expert_in_training_only():
    layer = made_layer()
    layer.train()(torch.randn(2, 5, 16))
    assert layer.load_X.sum() == 2 * 5 * 2
    shares = layer.update_balance()
    assert torch.isclose(shares.sum(), torch.tensor(1.0))
    layer.eval()(torch.randn(2, 5, 16))
    assert layer.load_X.sum() == 0


def test_bias_moves_towards_the_starved():
    layer = made_layer(balance_rate=0.01)
    layer.load_X.copy_(torch.tensor([8.0, 4.0, 0.0, 4.0]))
    layer.update_balance()
    assert layer.bias_X.tolist() == torch.tensor([-0.01, 0.0, 0.01, 0.0]).tolist()


@pytest.mark.slow
def test_a_collapsed_router_is_balanced_without_touching_its_weights():
    layer = made_layer(balance_rate=0.002)
    with torch.no_grad():
        layer.router.weight[0] += 1.0  # inputs of positive mean all like expert 0
    before = layer.router.weight.clone()
    x = torch.randn(400, 16) * 0.3 + 0.5
    layer(x)
    first = layer.update_balance()
    for _ in range(600):
        layer(x)
        last = layer.update_balance()
    assert first.max() > 0.45
    assert last.max() < 0.30
    assert last.min() > 0.20
    assert torch.equal(layer.router.weight, before)


def test_designated_blocks():
    from trainer.model.onerec import OneRec

    model = OneRec(small_config(decoder_layers=4, decoder_experts_every=2, encoder_experts_every=0))
    assert [type(block.feed).__name__ for block in model.decoder.blocks] == ["FeedForward", "MixtureOfExperts"] * 2
    assert {type(block.feed).__name__ for block in model.encoder.blocks} == {"FeedForward"}
