"""Beam search against enumeration, free samples against the model's own probabilities."""

import itertools

import numpy as np
import pytest
import torch

from tests.trainer.made_batches import made_batch, small_config
from tokenization.trie import TokenTrie
from tokenization.trie_tensors import TrieTensors
from trainer.generation import beam_search, sample
from trainer.model.onerec import OneRec


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    made = OneRec(small_config()).eval()
    with torch.no_grad():
        for head in made.decoder.heads:
            head.weight.mul_(40)  # opinions strong enough that the order is no accident
    return made


@pytest.fixture(scope="module")
def codes(model):
    everything = np.array(list(itertools.product(*(range(size) for size in model.config.codebook_sizes))))
    return everything[np.random.default_rng(0).permutation(len(everything))[:40]]


def trie_of(model, codes):
    return TrieTensors.of(TokenTrie.build(codes, sizes=model.config.codebook_sizes))


def scores_of(model, batch, codes):
    memory, mask = model.encode(batch)
    with torch.no_grad():
        return model.log_probs(memory, mask, torch.from_numpy(codes).expand(len(batch), -1, -1))


def test_a_wide_beam_is_exact(model, codes):
    batch = made_batch(model.config, requests=3)
    found, scores = beam_search(model, batch, trie_of(model, codes), beam=40)
    expected = scores_of(model, batch, codes).sum(-1)
    for row in range(3):
        order = torch.sort(expected[row], descending=True).indices
        assert found[row].tolist() == codes[order.numpy()].tolist()
        torch.testing.assert_close(scores[row], expected[row][order])


def test_codes_with_a_suffix_are_generated_whole():
    torch.manual_seed(2)
    four = OneRec(small_config(codebook_sizes=(3, 4, 3, 2))).eval()
    codes = np.unique(np.random.default_rng(1).integers(0, (3, 4, 3, 2), (30, 4)), axis=0)
    found, _ = beam_search(four, made_batch(four.config, requests=2), trie_of(four, codes), beam=len(codes))
    assert [sorted(map(tuple, row)) for row in found.tolist()] == [list(map(tuple, codes.tolist()))] * 2


@pytest.mark.parametrize("beam", [1, 3, 7])
def test_a_narrow_beam_keeps_the_best_prefixes(model, codes, beam):
    batch = made_batch(model.config, requests=3)
    found, scores = beam_search(model, batch, trie_of(model, codes), beam)
    log_probs = scores_of(model, batch, codes).numpy()
    for row in range(3):
        kept = {()}
        for layer in range(3):
            totals = {tuple(c[: layer + 1]): s[: layer + 1].sum() for c, s in zip(codes, log_probs[row], strict=True)}
            kept = set(sorted((p for p in totals if p[:-1] in kept), key=lambda prefix: -totals[prefix])[:beam])
        assert {tuple(code) for code in found[row].tolist()} == kept
        assert scores[row].tolist() == sorted(scores[row].tolist(), reverse=True)


def test_only_legal_codes_come_out(model, codes):
    few = codes[:5]
    found, scores = beam_search(model, made_batch(model.config), trie_of(model, few), beam=8)
    for row in range(len(found)):
        assert {tuple(code) for code in found[row, :5].tolist()} == {tuple(code) for code in few.tolist()}
        assert found[row, 5:].tolist() == [[-1, -1, -1]] * 3
        assert torch.isinf(scores[row, 5:]).all()


def test_dead_ends_leave_room_for_others(model):
    """A prefix with one child must not fill the beam with illegal siblings."""
    codes = np.array([[0, 0, 0], [0, 0, 1], [3, 3, 5]])
    found, scores = beam_search(model, made_batch(model.config, requests=1), trie_of(model, codes), beam=3)
    assert {tuple(code) for code in found[0].tolist()} == {tuple(code) for code in codes.tolist()}
    assert torch.isfinite(scores).all()


def test_samples_come_with_the_models_log_probabilities(model):
    batch = made_batch(model.config)
    drawn, log_probs = sample(model, batch, 6, 0.7, torch.Generator().manual_seed(0))
    assert drawn.shape == log_probs.shape == (4, 6, 3)
    memory, mask = model.encode(batch)
    torch.testing.assert_close(log_probs, model.log_probs(memory, mask, drawn).detach())


def test_samples_follow_the_models_distribution_and_are_not_constrained(model):
    batch = made_batch(model.config, requests=1)
    drawn, _ = sample(model, batch, 20000, 1.0, torch.Generator().manual_seed(0))
    everything = np.array(list(itertools.product(*(range(size) for size in model.config.codebook_sizes))))
    expected = scores_of(model, batch, everything).sum(-1).exp()[0].numpy()
    index = np.ravel_multi_index(drawn[0].numpy().T, model.config.codebook_sizes)
    seen = np.bincount(index, minlength=len(everything)) / 20000
    assert np.abs(seen - expected).max() < 0.015


def test_a_low_temperature_is_greedy(model):
    batch = made_batch(model.config)
    cold, _ = sample(model, batch, 4, 1e-4, torch.Generator().manual_seed(0))
    assert (cold == cold[:, :1]).all()


def test_a_generator_repeats_itself(model):
    batch = made_batch(model.config)
    first, again = (sample(model, batch, 5, 1.0, torch.Generator().manual_seed(7))[0] for _ in range(2))
    assert torch.equal(first, again)
