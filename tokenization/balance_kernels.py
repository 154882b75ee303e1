"""The compiled auction of ``tokenization.balance``: rows bid for places in clusters."""

from typing import Any

import numpy as np

from tokenization.compiled import compiled


@compiled(set())
def auction(
    state: Any,
    queue: Any,
    hungry: Any,
    starts: Any,
    lengths: Any,
    tokens: Any,
    distances: Any,
    prices: Any,
    sizes: Any,
    bids: Any,
    holders: Any,
    labels: Any,
    epsilon: float,
    most_bids: int,
) -> int:
    """Let queued rows bid until none waits or ``most_bids`` were made; returns how many rows went to ``hungry``.

    ``state`` int64: the queue's head and length, bids made, candidates looked at. ``queue`` (n,) is a ring. A row's candidates
    are ``tokens`` and ``distances`` (pools, ascending by distance) from ``starts`` on, ``lengths`` of them; a row that may
    have a better second choice beyond them goes to ``hungry``, unless it knows all clusters. A cluster's ``sizes`` places are
    a heap of ``bids`` and ``holders`` (clusters, cap), the smallest (bid, row) first; its price is the smallest bid once
    it is full, else 0.
    """
    clusters, cap = bids.shape
    asked, made = 0, 0
    while state[1] > 0 and made < most_bids:
        row = queue[state[0]]
        state[0] = (state[0] + 1) % len(queue)
        state[1] -= 1
        first, second, choice = np.inf, np.inf, -1
        start, stop = starts[row], starts[row] + lengths[row]
        for place in range(start, stop):
            if distances[place] > second:
                break  # prices are not negative: nothing farther can be better
            value = distances[place] + prices[tokens[place]]
            if value < first:
                first, second, choice = value, first, tokens[place]
            elif value < second:
                second = value
            state[3] += 1
        if lengths[row] < clusters and distances[stop - 1] < second:
            hungry[asked] = row
            asked += 1
            continue
        made += 1
        raised = second - first if second < np.inf else 0.0
        bid = prices[choice] + raised + epsilon
        labels[row] = choice
        if sizes[choice] < cap:
            _push(bids[choice], holders[choice], sizes[choice], bid, row)
            sizes[choice] += 1
        else:
            out = holders[choice, 0]
            labels[out] = -1
            queue[(state[0] + state[1]) % len(queue)] = out
            state[1] += 1
            _replace_first(bids[choice], holders[choice], bid, row)
        if sizes[choice] == cap:
            prices[choice] = bids[choice, 0]
    state[2] += made
    return asked


@compiled(set())
def _push(bids: Any, holders: Any, size: int, bid: float, row: int) -> None:
    place = size
    while place > 0:
        above = (place - 1) // 2
        if bids[above] < bid or (bids[above] == bid and holders[above] < row):
            break
        bids[place], holders[place] = bids[above], holders[above]
        place = above
    bids[place], holders[place] = bid, row


@compiled(set())
def _replace_first(bids: Any, holders: Any, bid: float, row: int) -> None:
    size, place = len(bids), 0
    while True:
        below = 2 * place + 1
        if below >= size:
            break
        other = below + 1
        if other < size and (bids[other] < bids[below] or (bids[other] == bids[below] and holders[other] < holders[below])):
            below = other
        if bid < bids[below] or (bid == bids[below] and row < holders[below]):
            break
        bids[place], holders[place] = bids[below], holders[below]
        place = below
    bids[place], holders[place] = bid, row


@compiled(set())
def lowest_values(starts: Any, lengths: Any, tokens: Any, distances: Any, prices: Any, found: Any) -> None:
    """A lower bound (n,) on each row's smallest distance + price over all clusters."""
    for row in range(len(found)):
        start, stop = starts[row], starts[row] + lengths[row]
        found[row] = distances[stop - 1] if lengths[row] < len(prices) else np.inf
        for place in range(start, stop):
            found[row] = min(found[row], distances[place] + prices[tokens[place]])
