"""What happens in a simulated world, whoever computes it: chance by counter, people, sessions, popularity."""

import numpy as np
import pytest

from onerec.simulate.behaviour import simulate_day
from onerec.simulate.catalogue import build_catalogue, stock_shelf
from onerec.simulate.draws import Draws
from onerec.simulate.parameters import DAY_MS, SUBTOPICS, Parameters
from onerec.simulate.people import People
from schemas.tables import FEEDBACK

WORLD = Parameters(users=1200, items=2000, days=3)


def people(parameters, first, last, day):
    return People(parameters, np.arange(first, last), day)


@pytest.fixture(scope="module")
def days():
    return [simulate_day(WORLD, people(WORLD, 0, WORLD.users, day)) for day in range(WORLD.days)]


def test_draws_depend_on_their_counters_alone():
    draws = Draws(3)
    whole = draws.uniform("x", np.arange(1000)[:, None], 4, np.arange(5))
    assert whole.shape == (1000, 5)
    assert draws.uniform("x", 731, 4, 2)[0] == whole[731, 2]
    assert not np.array_equal(whole, draws.uniform("y", np.arange(1000)[:, None], 4, np.arange(5)))
    assert not np.array_equal(whole, Draws(4).uniform("x", np.arange(1000)[:, None], 4, np.arange(5)))


def test_draws_are_uniform_and_unrelated():
    drawn = Draws(0).uniform("x", np.arange(20000)[:, None], np.arange(3))
    counts = np.histogram(drawn[:, 0], bins=50, range=(0, 1))[0]
    assert ((counts - 400) ** 2 / 400).sum() < 90  # chi-square with 49 degrees of freedom: p = 0.0003
    assert np.abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.03
    assert np.abs(np.corrcoef(drawn[1:, 0], drawn[:-1, 0])[0, 1]) < 0.03


@pytest.mark.slow
def test_a_users_day_is_the_same_whoever_is_simulated_beside_them(days):
    whole = days[1]
    for first, last in ((0, 100), (400, 401), (1000, 1200)):
        part = simulate_day(WORLD, people(WORLD, first, last, 1))
        inside = (whole.user >= first) & (whole.user < last)
        for name in part.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[inside], err_msg=name)


def test_a_longer_run_begins_with_the_same_days():
    longer = Parameters(users=WORLD.users, items=WORLD.items, days=9)
    short, long = simulate_day(WORLD, people(WORLD, 0, 50, 2)), simulate_day(longer, people(longer, 0, 50, 2))
    np.testing.assert_array_equal(short.shown_ms, long.shown_ms)
    np.testing.assert_array_equal(short.item, long.item)


def test_volume_is_near_what_was_asked_for(days):
    assert 0.85 * 45 < np.mean([len(day) for day in days]) / WORLD.users < 1.15 * 45


def test_requests_hold_about_five_distinct_items_shown_one_after_the_other(days):
    day = days[0]
    request = day.user * 1000 + day.request
    sizes = np.unique(request, return_counts=True)[1]
    assert 4.4 < sizes.mean() < 5.2
    assert sizes.max() <= 7
    assert len(np.unique(request * 100_000 + day.item)) == len(day)
    same = request[1:] == request[:-1]
    assert (day.request_ms[1:] == day.request_ms[:-1])[same].all()
    assert (day.shown_ms[1:] >= day.shown_ms[:-1] + day.play_ms[:-1])[same].all()
    assert (day.slot[1:] == day.slot[:-1] + 1)[same].all()


def test_a_users_requests_follow_each_other_within_the_day(days):
    for number, day in enumerate(days):
        begin = WORLD.midnight_ms(number)
        assert (day.request_ms >= begin).all()
        assert (day.request_ms < begin + DAY_MS).all()
        assert (day.shown_ms > day.request_ms).all()
        next_request = (day.user[1:] == day.user[:-1]) & (day.request[1:] != day.request[:-1])
        assert (day.request_ms[1:] > day.request_ms[:-1])[next_request].all()


def test_sessions_have_several_requests_and_a_pause_between(days):
    day = days[0]
    session = day.user * 1000 + day.session
    requests = len(np.unique(day.user * 1000 + day.request))
    assert 2.5 < requests / len(np.unique(session)) < 6
    new = (day.user[1:] == day.user[:-1]) & (day.session[1:] != day.session[:-1])
    assert (day.request_ms[1:] - (day.shown_ms + day.play_ms)[:-1])[new].min() >= 600_000
    assert (day.session[1:] >= day.session[:-1])[day.user[1:] == day.user[:-1]].all()


def test_some_plays_end_after_the_next_request_or_after_midnight(days):
    day = days[0]
    ends = day.shown_ms + day.play_ms
    next_request = (day.user[1:] == day.user[:-1]) & (day.request[1:] != day.request[:-1])
    prefetched = (ends[:-1] > day.request_ms[1:])[next_request].mean()
    assert 0.1 < prefetched < 0.6
    assert (ends >= WORLD.midnight_ms(1)).any()


def test_feedback_rates_are_realistic(days):
    feedback = np.concatenate([day.feedback for day in days])
    rates = {name: (feedback >> bit & 1).mean() for bit, name in enumerate(FEEDBACK)}
    ranges = {
        "click": (0.5, 0.7),
        "long_view": (0.2, 0.35),
        "like": (0.03, 0.08),
        "dislike": (0.005, 0.02),
        **dict.fromkeys(("follow", "comment", "forward", "profile_enter"), (0.004, 0.02)),
    }
    for name, (low, high) in ranges.items():
        assert low < rates[name] < high, (name, rates[name])


def test_play_times_follow_lengths_with_some_replays(days):
    day = days[0]
    assert day.duration_ms.min() >= 5_000
    assert day.duration_ms.max() <= 180_000
    assert 0.02 < (day.play_ms > day.duration_ms).mean() < 0.25
    assert day.play_ms.min() >= 0
    assert day.play_ms.max() <= 20 * 60_000


def test_users_watch_what_they_like_longer(days):
    day = days[0]
    taste = people(WORLD, 0, WORLD.users, 0).taste()
    share = taste[day.user, build_catalogue(WORLD).subtopic[day.item]]
    ratio = day.play_ms / day.duration_ms
    assert ratio[share > 0.1].mean() > 2 * ratio[share < 0.002].mean()


def test_popularity_and_activity_are_heavy_tailed(days):
    items = np.sort(np.bincount(np.concatenate([day.item for day in days])))[::-1]
    assert items[: len(items) // 10].sum() > 0.3 * items.sum()
    assert items[0] > 8 * items.mean()
    per_user = np.sort(np.unique(days[0].user, return_counts=True)[1])[::-1]
    assert per_user[: len(per_user) // 10].sum() > 0.25 * per_user.sum()
    assert per_user[0] > 6 * np.median(per_user)


def test_shown_items_live(days):
    catalogue = build_catalogue(WORLD)
    for day in days:
        assert (catalogue.born_ms[day.item] < day.request_ms).all()
        assert (catalogue.died_ms[day.item] > day.request_ms).all()
    newborn = catalogue.born_ms >= WORLD.midnight_ms(2)
    assert newborn[days[2].item].sum() > 20
    assert (catalogue.died_ms[: WORLD.items] < WORLD.midnight_ms(3)).mean() == pytest.approx(0.06, abs=0.03)


def test_taste_drifts_slowly():
    taste = [people(WORLD, 0, 300, day).taste() for day in (0, 1, 30)]
    assert np.allclose(taste[0].sum(axis=1), 1)

    def likeness(first, second):
        first, second = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (first, second))
        return (first * second).sum(axis=1).mean()

    assert likeness(taste[0], taste[1]) > 0.97
    assert likeness(taste[0], taste[2]) < 0.7


def test_some_users_are_absent_for_days_and_come_back():
    present = np.stack([people(WORLD, 0, 500, day).present() for day in range(20)])
    spells = ["".join("1" if here else "0" for here in present[:, user]) for user in range(500)]
    returned = sum("1000" in spell and "1" in spell[spell.index("1000") + 4 :] for spell in spells)
    assert returned > 50
    assert 0.65 < present.mean() < 0.9


def test_daily_rhythm_has_a_peak_in_the_local_evening(days):
    day = days[0]
    region = people(WORLD, 0, WORLD.users, 0).region()
    from_guangdong = day.request_ms[region[day.user] == 0]
    local_hour = (from_guangdong // 3_600_000 + 8) % 24
    counts = np.bincount(local_hour, minlength=24)
    assert counts[18:23].sum() > 4 * counts[1:6].sum()


def test_users_of_the_same_taste_watch_the_same_items(days):
    seen = np.zeros((WORLD.users, WORLD.all_items), bool)
    for day in days:
        seen[day.user, day.item] = True
    active = np.flatnonzero(seen.sum(axis=1) >= 40)[:300]
    taste = people(WORLD, 0, WORLD.users, 1).taste()[active]
    taste = taste / np.linalg.norm(taste, axis=1, keepdims=True)
    alike = taste @ taste.T
    size = seen[active].sum(axis=1)
    shared = (seen[active].astype(int) @ seen[active].T.astype(int)) / np.minimum(size[:, None], size)
    pairs = np.triu_indices(len(active), 1)
    assert shared[pairs][alike[pairs] > 0.6].mean() > 2 * shared[pairs][alike[pairs] < 0.1].mean()


def test_next_items_are_predictable_from_taste_far_better_than_from_fame(days):
    day, taste = days[2], people(WORLD, 0, WORLD.users, 2).taste()
    shelf, subtopic = stock_shelf(WORLD, 2), build_catalogue(WORLD).subtopic
    weight = np.zeros(WORLD.all_items)
    weight[shelf.item] = np.diff(shelf.cumulative)
    by_taste = taste[:, subtopic] * weight / np.maximum(np.bincount(subtopic, weight, SUBTOPICS)[subtopic], 1e-12)

    def recall(scores):
        best = np.argsort(-scores, axis=1)[:, :10]
        return np.mean((best[day.user] == day.item[:, None]).any(axis=1))

    assert recall(by_taste) > 3 * recall(np.tile(weight, (WORLD.users, 1)))


def test_a_session_stays_with_its_subtopic(days):
    day, subtopic = days[0], build_catalogue(WORLD).subtopic
    shown = subtopic[day.item]
    user_session = day.user * 1000 + day.session
    near = (user_session[1:] == user_session[:-1]) & (day.request[1:] != day.request[:-1])
    far = (day.user[1:] == day.user[:-1]) & (day.session[1:] != day.session[:-1])
    stays = shown[1:] == shown[:-1]
    assert stays[near].mean() > 1.3 * stays[far].mean()


@pytest.mark.parametrize(("users", "items"), [(1, 1), (3, 2), (2, 600)])
def test_the_smallest_worlds_work(users, items):
    world = Parameters(users=users, items=items, days=2)
    for day in range(2):
        impressions = simulate_day(world, people(world, 0, users, day))
        assert (impressions.item < world.all_items).all()
