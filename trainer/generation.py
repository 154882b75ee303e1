"""Generates codes: beam search inside the trie of legal tokens (evaluation, serving) and free sampling (RL rollouts).

A request's context is encoded once. Shape suffixes: B requests, W beams, G samples a request, L layers, K tokens of a layer.
"""

import torch
from torch import Tensor

from tokenization.trie import ROOT
from tokenization.trie_tensors import TrieTensors
from trainer.batches import RequestBatch
from trainer.model.onerec import OneRec


@torch.no_grad()
def beam_search(model: OneRec, batch: RequestBatch, trie: TrieTensors, beam: int) -> tuple[Tensor, Tensor]:
    """The most probable legal codes of each request, best first: codes (B, beam, L) int64 and log-probabilities (B, beam).

    Scores are the model's own (a softmax over all tokens of a layer; illegal ones are left out, not redistributed). A
    beam at least as wide as the number of legal prefixes finds exactly the best codes. Ties go to the smaller code. Where
    fewer legal codes exist than ``beam``, the rest is −1 with log-probability −inf. The trie lies on the model's device.
    """
    memory_BSD, mask_BS = model.encode(batch)
    return beam_search_from_memory(model, memory_BSD, mask_BS, trie, beam)


@torch.no_grad()
def beam_search_from_memory(
    model: OneRec, memory_BSD: Tensor, mask_BS: Tensor, trie: TrieTensors, beam: int
) -> tuple[Tensor, Tensor]:
    """``beam_search`` for contexts that are encoded already."""
    requests, device = len(memory_BSD), memory_BSD.device
    codes_BWL = torch.empty(requests, 1, 0, dtype=torch.int64, device=device)
    scores_BW = torch.zeros(requests, 1, device=device)
    nodes_BW = torch.full((requests, 1), ROOT, dtype=torch.int64, device=device)
    for layer, size in enumerate(model.config.codebook_sizes):
        logits_RK = model.decode(memory_BSD, mask_BS, codes_BWL.clamp(min=0).flatten(0, 1))[layer]
        legal_RK = trie.legal_mask(nodes_BW.flatten(), size)
        step_RK = torch.log_softmax(logits_RK.float(), dim=-1).masked_fill(~legal_RK, -torch.inf)
        total_BX = (scores_BW.unsqueeze(-1) + step_RK.view(requests, -1, size)).flatten(1)
        # A stable sort keeps equal scores in the order of beams and tokens, so that a run can be repeated anywhere.
        order_BX = torch.sort(total_BX, dim=1, descending=True, stable=True).indices[:, :beam]
        scores_BW = total_BX.gather(1, order_BX)
        parent_BW, token_BW = order_BX // size, order_BX % size
        dead_BW = torch.isinf(scores_BW)
        codes_BWL = torch.cat(
            [codes_BWL.gather(1, parent_BW.unsqueeze(-1).expand(-1, -1, layer)), token_BW.unsqueeze(-1)], dim=2
        ).masked_fill(dead_BW.unsqueeze(-1), -1)
        nodes_BW = trie.step(nodes_BW.gather(1, parent_BW), token_BW)
    missing = beam - codes_BWL.shape[1]
    if missing > 0:
        codes_BWL = torch.nn.functional.pad(codes_BWL, (0, 0, 0, missing), value=-1)
        scores_BW = torch.nn.functional.pad(scores_BW, (0, missing), value=-torch.inf)
    return codes_BWL, scores_BW


@torch.no_grad()
def sample(
    model: OneRec, batch: RequestBatch, group_size: int, temperature: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Free samples, not constrained to legal codes: codes (B, G, L) int64 and each token's log-probability (B, G, L).

    Tokens are drawn at ``temperature``; the log-probabilities are the model's own (temperature 1), as ``OneRec.log_probs``
    gives them, since those are what RL's ratio compares.
    """
    memory_BSD, mask_BS = model.encode(batch)
    return sample_from_memory(model, memory_BSD, mask_BS, group_size, temperature, generator)


@torch.no_grad()
def sample_from_memory(
    model: OneRec, memory_BSD: Tensor, mask_BS: Tensor, group_size: int, temperature: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """``sample`` for contexts that are encoded already. ``generator`` lives on the memory's device."""
    rows = len(memory_BSD) * group_size
    codes_RL = torch.empty(rows, 0, dtype=torch.int64, device=memory_BSD.device)
    taken: list[Tensor] = []
    for layer in range(len(model.config.codebook_sizes)):
        logits_RK = model.decode(memory_BSD, mask_BS, codes_RL)[layer].float()
        token_R1 = torch.multinomial(torch.softmax(logits_RK / temperature, dim=-1), 1, generator=generator)
        taken.append(torch.log_softmax(logits_RK, dim=-1).gather(1, token_R1))
        codes_RL = torch.cat([codes_RL, token_R1], dim=1)
    shape = (len(memory_BSD), group_size, -1)
    return codes_RL.view(shape), torch.cat(taken, dim=1).view(shape)
