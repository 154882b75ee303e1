"""Items: what each one truly is (topic, author, quality, length) and when it is born, changes and dies."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from onerec.simulate.draws import Draws
from onerec.simulate.parameters import DAY_MS, SUBTOPICS, SUBTOPICS_PER_TOPIC, TOPICS, Parameters

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

DEATHS_PER_DAY = 0.02
CHANGES_PER_DAY = 0.015
OLDEST_DAYS = 90
SHORTEST_MS, LONGEST_MS, TYPICAL_MS = 5_000, 180_000, 25_000


@dataclass(frozen=True)
class Catalogue:
    """Every item that exists by the end of the last day, one array an attribute, by item number.

    ``subtopic`` is 0…71 (topic = subtopic // 6), ``author`` numbers authors, each at home in one sub-topic; ``quality``
    is standard normal, ``popularity`` a heavy-tailed weight; times are milliseconds since 1970, UTC: an item can be
    shown from ``born_ms`` until ``died_ms`` and reads differently from ``changed_ms`` on.
    """

    subtopic: Ints
    author: Ints
    quality: Floats
    popularity: Floats
    duration_ms: Ints
    born_ms: Ints
    changed_ms: Ints
    died_ms: Ints

    @property
    def topic(self) -> Ints:
        """Coarse topic, 0…11."""
        return self.subtopic // SUBTOPICS_PER_TOPIC


@lru_cache(maxsize=1)
def build_catalogue(parameters: Parameters) -> Catalogue:
    """The catalogue of a world; small enough (a few hundred MB at 5 million items) for each worker to compute."""
    draws = Draws(parameters.seed)
    item = np.arange(parameters.all_items, dtype=np.int64)
    topic = draws.weighted("item topic", 1.0 / (np.arange(TOPICS) + 6.0), item)
    subtopic = topic * SUBTOPICS_PER_TOPIC + draws.choice("item subtopic", SUBTOPICS_PER_TOPIC, item)
    authors = max(1, parameters.items // (SUBTOPICS * 4))
    author = subtopic * authors + np.floor(draws.uniform("item author", item) ** 1.5 * authors).astype(np.int64)
    quality = draws.normal("item quality", item)
    popularity = draws.uniform("item popularity", item) ** -0.75 * np.exp(0.4 * quality)
    duration = np.clip(TYPICAL_MS * np.exp(0.75 * draws.normal("item duration", item)), SHORTEST_MS, LONGEST_MS)

    first = parameters.midnight_ms(0)
    birthday = (item - parameters.items) // parameters.births_per_day
    old = first - OLDEST_DAYS * DAY_MS * draws.uniform("item age", item) ** 1.5 - 60_000
    fresh = first + (birthday + 0.85 * draws.uniform("item birth", item)) * DAY_MS
    born = np.where(item < parameters.items, old, fresh).astype(np.int64)
    settled = np.maximum(born, first)
    changed = settled - np.log(draws.uniform("item change", item)) / CHANGES_PER_DAY * DAY_MS + 3_600_000
    died = settled - np.log(draws.uniform("item death", item)) / DEATHS_PER_DAY * DAY_MS + 7_200_000
    return Catalogue(
        subtopic, author, quality, popularity, duration.astype(np.int64), born, changed.astype(np.int64), died.astype(np.int64)
    )


@dataclass(frozen=True)
class Shelf:
    """A day's items in an order in which each sub-topic, and each author in it, is one run, to be drawn by weight.

    ``item`` [n] are item numbers, ``cumulative`` [n + 1] their summed weights; ``subtopic_runs`` [72, 2] and
    ``author_runs`` [authors, 2] are first and last + 1 places of each.
    """

    item: Ints
    cumulative: Floats
    subtopic_runs: Ints
    author_runs: Ints

    def draw(self, first: Ints, last: Ints, chance: Floats) -> Ints:
        """Item numbers drawn by weight among places ``first``…``last`` − 1; the whole shelf where that run is empty."""
        empty = first >= last
        first, last = np.where(empty, 0, first), np.where(empty, len(self.item), last)
        low, high = self.cumulative[first], self.cumulative[last]
        place = np.searchsorted(self.cumulative, low + chance * (high - low), side="right") - 1
        return self.item[np.clip(place, first, last - 1)]


@lru_cache(maxsize=2)
def stock_shelf(parameters: Parameters, day: int) -> Shelf:
    """The items that live at some time of a day; the newer, the more they are shown."""
    catalogue = build_catalogue(parameters)
    begin = parameters.midnight_ms(day)
    item = np.flatnonzero((catalogue.born_ms < begin + DAY_MS) & (catalogue.died_ms > begin))
    item = item[np.lexsort((item, catalogue.author[item], catalogue.subtopic[item]))]
    age_days = np.maximum(0, begin + DAY_MS - catalogue.born_ms[item]) / DAY_MS
    weight = catalogue.popularity[item] * (1 + 2 * np.exp(-age_days / 2))
    cumulative = np.concatenate([[0.0], np.cumsum(weight)])
    authors = int(catalogue.author.max()) + 1
    return Shelf(item, cumulative, _runs(catalogue.subtopic[item], SUBTOPICS), _runs(catalogue.author[item], authors))


def _runs(ordered: Ints, count: int) -> Ints:
    names = np.arange(count)
    return np.stack([np.searchsorted(ordered, names, "left"), np.searchsorted(ordered, names, "right")], axis=1)


def item_id(number: int) -> str:
    """The id of an item."""
    return f"i{number:06d}"


def author_id(number: int) -> str:
    """The id of an author."""
    return f"a{number:05d}"
