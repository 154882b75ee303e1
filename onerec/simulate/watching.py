"""How a shown item is watched and what the user does about it: play time and feedback by affinity and length."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onerec.simulate.catalogue import Floats, Ints
from onerec.simulate.draws import Draws
from onerec.simulate.parameters import SUBTOPICS
from schemas.tables import FEEDBACK

_BIT = {name: 1 << position for position, name in enumerate(FEEDBACK)}
_RATES = {  # logit at neutral affinity, and its slope
    "like": (-3.75, 1.0),
    "follow": (-5.5, 0.9),
    "comment": (-5.4, 0.8),
    "forward": (-5.4, 0.9),
    "profile_enter": (-5.3, 0.8),
}
LONG_VIEW_MS = 18_000
MAX_BACKGROUND_MS = 20 * 60_000


@dataclass(frozen=True)
class Watch:
    """What became of impressions, one array a fact: play time, ``feedback`` bits (FEEDBACK order), and how long after the
    play its feedback was complete."""

    play_ms: Ints
    feedback: Ints
    delay_ms: Ints


def affinity(share: Floats, quality: Floats, in_mood: NDArray[np.bool_], noise: Floats) -> Floats:
    """How much a user likes an item: about 0 for a neutral one, above 1 for a good match.

    ``share`` is the user's taste for the item's sub-topic, ``in_mood`` whether the session is about it.
    """
    liking = np.clip(np.log(share * SUBTOPICS), -3.0, 3.0)
    return 0.45 * liking + 0.35 * quality + 0.5 * in_mood + 0.45 * noise - 0.95


def watch(draws: Draws, liking: Floats, duration_ms: Ints, user: Ints, day: int, request: int, slot: Ints) -> Watch:
    """Play time and feedback of impressions; ``liking`` and ``duration_ms`` are [n, slots], ``user`` [n, 1], ``slot`` [slots]."""
    key = (user, day, request, slot)
    clicked = draws.uniform("click", *key) < _sigmoid(0.75 + 0.9 * liking)
    length = np.log(duration_ms / 25_000)
    ratio = np.exp(-0.75 + 0.6 * liking + 0.65 * draws.normal("play", *key) - 0.3 * length)
    ratio = np.where((ratio > 0.95) & (ratio < 1.3), 1.0, np.minimum(ratio, 5.0))
    glance = np.minimum(3_000 * draws.uniform("glance", *key) ** 1.5, duration_ms)
    play = np.where(clicked, np.maximum(ratio * duration_ms, glance), glance)
    left_running = clicked & (draws.uniform("left running", *key) < 0.004)
    play = np.where(left_running, np.minimum(play * 12 + 60_000, MAX_BACKGROUND_MS), play)
    play_ms = np.floor(play).astype(np.int64)

    long_view = clicked & (play_ms >= np.minimum(duration_ms, LONG_VIEW_MS))
    feedback = clicked * _BIT["click"] + long_view * _BIT["long_view"]
    for name, (level, slope) in _RATES.items():
        given = clicked & (draws.uniform(name, *key) < _sigmoid(level + slope * liking + 1.2 * long_view))
        feedback = feedback + given * _BIT[name]
    disliked = draws.uniform("dislike", *key) < _sigmoid(-5.2 - 0.9 * liking)
    feedback = feedback + disliked * _BIT["dislike"]

    slow = (feedback & (_BIT["comment"] | _BIT["forward"] | _BIT["follow"] | _BIT["profile_enter"])) > 0
    slow |= draws.uniform("feedback is slow", *key) < 0.02
    delay = np.floor(-40_000 * np.log(draws.uniform("feedback delay", *key))) + 1
    return Watch(play_ms, feedback.astype(np.int64), np.where(slow, delay, 0).astype(np.int64))


def _sigmoid(value: Floats) -> Floats:
    return 1 / (1 + np.exp(-value))
