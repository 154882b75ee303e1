"""Users: what they like on a given day, how active they are, when they are away, and what their snapshots say."""

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onerec.simulate.catalogue import Floats, Ints
from onerec.simulate.draws import Draws
from onerec.simulate.parameters import DAY_MS, SUBTOPICS_PER_TOPIC, TOPICS, Parameters

PERSONAS = 20
DRIFT_DAYS = 12
IMPRESSIONS_PER_REQUEST = 5.0
MAX_REQUESTS = 150
SNAPSHOT_SHARE = 0.97
NEWCOMER_SHARE = 0.06

REGIONS = (("CN-GD", 8.0), ("CN-SC", 8.0), ("JP-13", 9.0), ("IN-MH", 5.5), ("DE-BE", 1.0), ("NG-LA", 1.0), ("BR-SP", -3.0))
_REGION_WEIGHTS = (5.0, 4.0, 2.0, 3.0, 2.0, 1.0, 2.0)
_AGES = ("0-17", "18-24", "25-34", "35-44", "45-54", "55+")
_AGE_WEIGHTS = (1.0, 3.0, 3.5, 2.0, 1.0, 0.8)
_DEVICES = ("android-low", "android-high", "iphone", "tablet", "web")
_DEVICE_WEIGHTS = (3.0, 3.0, 2.5, 0.6, 0.4)
_LOCAL_HOURS = (2, 1, 0.6, 0.4, 0.4, 0.7, 1.6, 3, 3.4, 2.8, 2.6, 3.4, 5, 4.2, 3, 2.8, 3, 3.6, 5, 6.4, 7.6, 8, 6.8, 4.2)


class People:
    """A range of users on a day: ``users`` are user numbers [n], ``day`` counts from the first day."""

    def __init__(self, parameters: Parameters, users: Ints, day: int) -> None:
        self._parameters = parameters
        self._draws = Draws(parameters.seed)
        self.users = users
        self.day = day

    @property
    def persona(self) -> Ints:
        """The crowd that a user belongs to, 0…19: its members like similar things, [n]."""
        return self._draws.choice("persona", PERSONAS, self.users)

    def taste(self) -> Floats:
        """Shares of a user's interest among the sub-topics on this day, [n, 72], each row summing to 1."""
        users, draws = self.users[:, None], self._draws
        persona, topics = self.persona[:, None], np.arange(TOPICS)
        topic_liking = 1.3 * draws.normal("persona topic", persona, topics) + 1.4 * self._drifting("taste topic", users, topics)
        subtopics = np.arange(TOPICS * SUBTOPICS_PER_TOPIC)
        liking = 1.0 * draws.normal("persona subtopic", persona, subtopics)
        liking += 1.4 * self._drifting("taste subtopic", users, subtopics)
        inside = _softmax(liking.reshape(len(self.users), TOPICS, SUBTOPICS_PER_TOPIC))
        return (_softmax(topic_liking)[:, :, None] * inside).reshape(len(self.users), -1)

    def _drifting(self, purpose: str, users: Ints, what: Ints) -> Floats:
        """Standard normal numbers that change smoothly: a new one every DRIFT_DAYS, blended between, out of step by user."""
        when = self.day / DRIFT_DAYS + self._draws.uniform("drift phase", users)
        era = np.floor(when).astype(np.int64)
        blend = 0.5 - 0.5 * np.cos(np.pi * (when - era))
        before, after = self._draws.normal(purpose, users, era, what), self._draws.normal(purpose, users, era + 1, what)
        mixed: Floats = (before * (1 - blend) + after * blend) / np.hypot(1 - blend, blend)
        return mixed

    def activity(self) -> Floats:
        """How much more than the average a user does on a day present; heavy-tailed with mean about 1, [n]."""
        return np.clip(np.exp(0.85 * self._draws.normal("activity", self.users) - 0.36), 0.1, 8.0)

    def register_ms(self) -> Ints:
        """When the user registered, ms since 1970: most before the first day, some in the four weeks after it, [n]."""
        first = self._parameters.midnight_ms(0)
        chance = self._draws.uniform("register time", self.users)
        newcomer = self._draws.uniform("newcomer", self.users) < NEWCOMER_SHARE
        return (first + np.where(newcomer, 28 * chance, -1 - 900 * chance) * DAY_MS).astype(np.int64)

    def present(self) -> NDArray[np.bool_]:
        """Whether the user comes at all: registered before the day, not away for a spell, not off for the day, [n]."""
        draws, users = self._draws, self.users
        spell = 3 + draws.choice("spell length", 6, users)
        away = draws.uniform("away", users, (self.day + draws.choice("spell phase", 8, users)) // spell) < 0.15
        registered = self.register_ms() < self._parameters.midnight_ms(self.day)
        return registered & ~away & (draws.uniform("off", users, self.day) > 0.08)

    def requests(self) -> Ints:
        """Requests that a user wants to make this day, 0…150; 0 for who is absent, [n]."""
        usual = 1.44 * self._parameters.events_per_day / IMPRESSIONS_PER_REQUEST * self.activity()
        wanted = usual * np.exp(0.4 * self._draws.normal("day mood", self.users, self.day) - 0.08)
        count = np.floor(wanted + self._draws.uniform("requests", self.users, self.day)).astype(np.int64)
        return np.where(self.present(), np.minimum(count, MAX_REQUESTS), 0)

    def region(self) -> Ints:
        """Position of the user's region in REGIONS, [n]."""
        return self._draws.weighted("region", _REGION_WEIGHTS, self.users)

    def snapshot(self) -> list[dict[str, object]]:
        """Rows of the snapshot exported at the end of the day before: registered users, but for a few that it misses."""
        draws, users = self._draws, self.users
        register = self.register_ms()
        listed = register < self._parameters.midnight_ms(self.day)
        listed &= draws.uniform("in snapshot", users, self.day) < SNAPSHOT_SHARE
        age = draws.weighted("age", _AGE_WEIGHTS, users)
        gender = draws.weighted("gender", (0.47, 0.47, 0.06), users)
        phone_era = np.floor((self.day + 40 * draws.uniform("device phase", users)) / 40).astype(np.int64)
        device = draws.weighted("device", _DEVICE_WEIGHTS, users, phone_era)
        region = self.region()
        exported = self._parameters.date(self.day - 1)
        return [
            {
                "user_id": user_id(int(users[row])),
                "date": exported,
                "age_band": _AGES[age[row]],
                "gender": ("female", "male", None)[gender[row]],
                "region": REGIONS[region[row]][0],
                "register_ts": int(register[row]),
                "device": _DEVICES[device[row]],
            }
            for row in np.flatnonzero(listed)
        ]


def time_of_day(region: Ints, chance: ArrayLike) -> Floats:
    """Moments of the UTC day, in ms, that ``chance`` (0…1) stands for under the region's daily rhythm; rising in ``chance``."""
    chance = np.asarray(chance)
    bounds = _rhythm()[region]
    hour = np.clip((bounds[:, 1:] <= chance[:, None]).sum(axis=1), 0, 23)
    row = np.arange(len(region))
    low, high = bounds[row, hour], bounds[row, hour + 1]
    return (hour + np.clip((chance - low) / (high - low), 0, 1)) * 3_600_000.0


@lru_cache(maxsize=1)
def _rhythm() -> Floats:
    """Cumulative share of a region's sessions by UTC hour, [regions, 25]; local hours are shifted by the offset."""
    hours = np.arange(24)
    local = np.array(_LOCAL_HOURS, dtype=np.float64)
    shares = np.stack([np.interp((hours + offset) % 24, np.arange(25), [*local, local[0]]) for _, offset in REGIONS])
    cumulative = np.cumsum(shares / shares.sum(axis=1, keepdims=True), axis=1)
    return np.concatenate([np.zeros((len(REGIONS), 1)), cumulative], axis=1)


def _softmax(values: Floats) -> Floats:
    raised = np.exp(values - values.max(axis=-1, keepdims=True))
    shares: Floats = raised / raised.sum(axis=-1, keepdims=True)
    return shares


def user_id(number: int) -> str:
    """The id of a user."""
    return f"u{number:06d}"
