"""A day of some users: sessions of requests, each with a few impressions of items that taste, mood and fame choose.

All users of a block go through their day together, request by request, so that every step is array arithmetic.
"""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from onerec.simulate.catalogue import Catalogue, Floats, Ints, Shelf, build_catalogue, stock_shelf
from onerec.simulate.draws import Draws
from onerec.simulate.parameters import DAY_MS, Parameters
from onerec.simulate.people import People, time_of_day
from onerec.simulate.watching import affinity, watch

SLOTS = 7
"""Most impressions a request returns."""
_CANDIDATES = 11
_REMEMBERED = 10
_SIZES = (3, 4, 5, 6, 7)
_SIZE_WEIGHTS = (0.1, 0.2, 0.4, 0.2, 0.1)
_SESSION_SHARE = 0.22
"""Chance that a request begins a new session."""
_MORE_OF_AUTHOR, _MORE_OF_MOOD, _BY_TASTE, _POPULAR = 0.12, 0.60, 0.84, 0.95
"""Upper bounds of the shares of choices: the author just enjoyed, the session's sub-topic, taste, fame; else anything."""
SCENES = ("feed", "discover", "following")
_SCENE_WEIGHTS = (0.75, 0.17, 0.08)


@dataclass(frozen=True)
class Impressions:
    """Impressions of a day, one int64 array a column, ordered by (user, request, slot).

    Times are milliseconds since 1970, UTC; ``request`` and ``session`` count within the user's day; ``delay_ms`` is how
    long after the play its feedback was complete.
    """

    user: Ints
    request: Ints
    slot: Ints
    session: Ints
    scene: Ints
    item: Ints
    request_ms: Ints
    shown_ms: Ints
    play_ms: Ints
    duration_ms: Ints
    feedback: Ints
    delay_ms: Ints

    def __len__(self) -> int:
        return len(self.user)


def simulate_day(parameters: Parameters, people: People) -> Impressions:
    """Everything that ``people`` were shown on their day, whenever it arrives."""
    shelf = stock_shelf(parameters, people.day)
    requests = people.requests()
    if len(shelf.item) == 0 or not requests.any():
        return Impressions(*(np.zeros(0, np.int64) for _ in fields(Impressions)))
    order = np.argsort(-requests, kind="stable")
    order = order[: np.count_nonzero(requests)]
    day = _Day(parameters, shelf, People(parameters, people.users[order], people.day), requests[order])
    steps = [day.step(request) for request in range(int(requests.max()))]
    columns = [np.concatenate([step[position] for step in steps]) for position in range(len(fields(Impressions)))]
    by_user = np.lexsort((columns[2], columns[1], columns[0]))
    return Impressions(*(column[by_user] for column in columns))


class _Day:
    """The state of the users of a block as their day goes on; those with most requests come first."""

    def __init__(self, parameters: Parameters, shelf: Shelf, people: People, requests: Ints) -> None:
        self.draws = Draws(parameters.seed)
        self.catalogue: Catalogue = build_catalogue(parameters)
        self.shelf = shelf
        self.day = people.day
        self.midnight = parameters.midnight_ms(people.day)
        self.users = people.users
        self.requests = requests
        self.region = people.region()
        self.taste = people.taste()
        self.taste_bounds = np.cumsum(self.taste, axis=1)
        count = len(self.users)
        self.sessions_left = self._count_sessions()
        self.session = np.full(count, -1)
        self.session_place = np.zeros(count)  # of the latest session start among the day's chances, 0…1
        self.next_request = np.zeros(count)  # ms of the day
        self.free_at = np.full(count, -1e9)  # when the last item shown stopped playing
        self.mood = np.zeros(count, np.int64)
        self.author = np.zeros(count, np.int64)
        self.scene = np.zeros(count, np.int64)
        self.recent = np.full((count, _REMEMBERED), -1)

    def _begins_session(self, request: int, count: int) -> NDArray[np.bool_]:
        if request == 0:
            return np.ones(count, bool)
        return self.draws.uniform("new session", self.users[:count], self.day, request) < _SESSION_SHARE

    def _count_sessions(self) -> Ints:
        total = np.zeros(len(self.users), np.int64)
        for request in range(int(self.requests[0])):
            count = int(np.count_nonzero(self.requests > request))
            total[:count] += self._begins_session(request, count)
        return total

    def step(self, request: int) -> tuple[Ints, ...]:
        """Everybody's request number ``request``; columns as in Impressions."""
        count = int(np.count_nonzero(self.requests > request))
        asked = self._ask(request, count)
        chosen, items = self._choose(request, count, asked)
        catalogue = self.catalogue
        users, slots = self.users[:count, None], np.arange(SLOTS)
        subtopic = catalogue.subtopic[items]
        share = np.take_along_axis(self.taste[:count], subtopic, axis=1)
        noise = self.draws.normal("liking", users, items)
        liking = affinity(share, catalogue.quality[items], subtopic == self.mood[:count, None], noise)
        duration = catalogue.duration_ms[items]
        watched = watch(self.draws, liking, duration, users, self.day, request, slots)

        pause = np.floor(250 + 1500 * self.draws.uniform("pause", users, self.day, request, slots) ** 2)
        taken = np.where(chosen, watched.play_ms + pause, 0)
        latency = 120 + 500 * self.draws.uniform("latency", self.users[:count], self.day, request)
        begin = np.floor(np.maximum(asked + latency, self.free_at[:count] + 200))
        shown = begin[:, None] + np.cumsum(taken, axis=1) - taken
        self._remember(request, count, asked, chosen, items, shown, watched.play_ms, liking)

        columns = (
            users,
            np.full((count, 1), request),
            slots[None, :],
            self.session[:count, None],
            self.scene[:count, None],
            items,
            self.midnight + asked[:, None],
            self.midnight + shown,
            watched.play_ms,
            duration,
            watched.feedback,
            watched.delay_ms,
        )
        return tuple(np.broadcast_to(column, chosen.shape)[chosen].astype(np.int64) for column in columns)

    def _ask(self, request: int, count: int) -> Floats:
        """When each user asks, whole ms of the day [count]; begins new sessions where it is time."""
        new = self._begins_session(request, count)
        users = self.users[:count]
        # the smallest of the remaining sorted chances, given the one before: uniform order statistics one at a time
        chance = self.draws.uniform("session start", users, self.day, request) ** (1 / np.maximum(self.sessions_left[:count], 1))
        place = 1 - (1 - self.session_place[:count]) * chance
        rest = 600_000 + 1_800_000 * self.draws.uniform("rest", users, self.day, request)
        start = np.maximum(time_of_day(self.region[:count], place), self.free_at[:count] + rest)
        asked = np.floor(np.where(new, start, self.next_request[:count]))

        mood = self._from_taste(self.draws.uniform("session mood", users, self.day, request)[:, None], count)[:, 0]
        scene = self.draws.weighted("scene", _SCENE_WEIGHTS, users, self.day, request)
        self.session_place[:count] = np.where(new, place, self.session_place[:count])
        self.sessions_left[:count] -= new
        self.session[:count] += new
        self.mood[:count] = np.where(new, mood, self.mood[:count])
        self.author[:count] = np.where(new, -1, self.author[:count])
        self.scene[:count] = np.where(new, scene, self.scene[:count])
        return asked

    def _from_taste(self, chance: Floats, count: int) -> Ints:
        """Sub-topics drawn from each user's taste; ``chance`` [count, n] → int64 [count, n]."""
        below = self.taste_bounds[:count, None, :-1] < chance[:, :, None]
        return below.sum(axis=2)

    def _choose(self, request: int, count: int, asked: Floats) -> tuple[NDArray[np.bool_], Ints]:
        """Items returned to each request: mask and item numbers, both [count, SLOTS], those chosen first.

        Candidates are drawn with spares; out go those not alive, shown twice, or shown a moment ago. A request after
        midnight is never made.
        """
        key = (self.users[:count, None], self.day, request, np.arange(_CANDIDATES))
        way = self.draws.uniform("way", *key)
        place = self.draws.uniform("which", *key)
        taste = self._from_taste(self.draws.uniform("which subtopic", *key), count)
        subtopic = np.where(way < _MORE_OF_MOOD, self.mood[:count, None], taste)
        author = self.author[:count, None]
        follow = (way < _MORE_OF_AUTHOR) & (author >= 0)
        runs = np.where(follow[..., None], self.shelf.author_runs[np.maximum(author, 0)], self.shelf.subtopic_runs[subtopic])
        famous = way >= _BY_TASTE
        first, last = np.where(famous, 0, runs[..., 0]), np.where(famous, len(self.shelf.item), runs[..., 1])
        items = self.shelf.draw(first, last, place)
        anything = self.shelf.item[np.floor(place * len(self.shelf.item)).astype(np.int64)]
        items = np.where(way >= _POPULAR, anything, items)

        now = self.midnight + asked[:, None]
        fit = (self.catalogue.born_ms[items] < now) & (self.catalogue.died_ms[items] > now) & (asked[:, None] < DAY_MS)
        fit &= ~(items[:, :, None] == self.recent[:count, None, :]).any(axis=2)
        for later in range(1, _CANDIDATES):
            fit[:, later] &= ~(fit[:, :later] & (items[:, :later] == items[:, later, None])).any(axis=1)
        size = np.array(_SIZES)[self.draws.weighted("size", _SIZE_WEIGHTS, self.users[:count], self.day, request)]
        chosen = fit & (np.cumsum(fit, axis=1) <= size[:, None])
        first_places = np.argsort(~chosen, axis=1, kind="stable")[:, :SLOTS]
        return np.take_along_axis(chosen, first_places, axis=1), np.take_along_axis(items, first_places, axis=1)

    def _remember(
        self,
        request: int,
        count: int,
        asked: Floats,
        chosen: NDArray[np.bool_],
        items: Ints,
        shown: Floats,
        play_ms: Ints,
        liking: Floats,
    ) -> None:
        """When each user asks next, what was just shown, and what the session turns to: more of what was enjoyed."""
        made = chosen.any(axis=1)
        row = np.arange(count)
        last = np.maximum(chosen.sum(axis=1) - 1, 0)
        last_shown, last_play = shown[row, last], play_ms[row, last]
        early = self.draws.uniform("asks early", self.users[:count], self.day, request)
        # a third of the requests prefetch: they are sent while the last item is still playing
        asks = last_shown + np.where(early < 0.33, last_play * early * 2.5, last_play + 100 + 400 * early)
        self.next_request[:count] = np.where(made, np.maximum(asks, asked + 1), asked + 60_000)
        self.free_at[:count] = np.where(made, last_shown + last_play, self.free_at[:count])
        shown_items = np.where(chosen, items, -1)
        self.recent[:count] = np.concatenate([self.recent[:count, SLOTS:], shown_items], axis=1)
        best = np.argmax(np.where(chosen, np.minimum(play_ms, 120_000) / 30_000 + liking, -np.inf), axis=1)
        enjoyed = made & (play_ms[row, best] >= 15_000)
        turns = enjoyed & (self.draws.uniform("turns", self.users[:count], self.day, request) < 0.7)
        self.mood[:count] = np.where(turns, self.catalogue.subtopic[items[row, best]], self.mood[:count])
        self.author[:count] = np.where(enjoyed, self.catalogue.author[items[row, best]], self.author[:count])
