"""What items say: titles, captions, words in the picture and in the sound, composed from the words of their sub-topic."""

from dataclasses import dataclass

from numpy.typing import NDArray

from onerec.simulate.catalogue import Ints, author_id
from onerec.simulate.draws import Draws
from onerec.simulate.vocabulary import ADJECTIVES, AUDIENCES, CLOSINGS, PEOPLE, subtopic_of

_DRAWS = 40


@dataclass(frozen=True)
class ItemText:
    """The texts of one version of an item; ``word`` is the short one that its thumbnail shows."""

    category: str
    tags: list[str]
    title: str
    caption: str
    ocr_text: str | None
    asr_text: str | None
    word: str


class _Choices:
    """Picks from lists, one draw after the other, out of a row of uniform numbers."""

    def __init__(self, chances: NDArray) -> None:
        self._chances = iter(chances.tolist())

    def chance(self) -> float:
        return next(self._chances)

    def one(self, options: tuple[str, ...]) -> str:
        return options[int(self.chance() * len(options))]

    def two(self, options: tuple[str, ...]) -> tuple[str, str]:
        first = int(self.chance() * len(options))
        step = 1 + int(self.chance() * (len(options) - 1))
        return options[first], options[(first + step) % len(options)]


def compose(draws: Draws, items: Ints, subtopics: Ints, authors: Ints, version: int) -> list[ItemText]:
    """Texts of items, all [n]. A later version (1) has another title and other tags; the rest it keeps."""
    kept = draws.uniform("text", items[:, None], range(_DRAWS))
    fresh = draws.uniform("title", items[:, None], version, range(_DRAWS))
    return [
        _compose_one(_Choices(kept[row]), _Choices(fresh[row]), int(subtopics[row]), int(authors[row]))
        for row in range(len(items))
    ]


def _compose_one(kept: _Choices, fresh: _Choices, subtopic_number: int, author: int) -> ItemText:
    topic, subtopic = subtopic_of(subtopic_number)
    thing, other = kept.two(subtopic.things)
    first, second = kept.two(subtopic.props)
    act, place, person = kept.one(subtopic.acts), kept.one(topic.places), PEOPLE[author % len(PEOPLE)]

    adjective, audience = fresh.one(ADJECTIVES), fresh.one(AUDIENCES)
    number = 3 + int(fresh.chance() * 8)
    title = fresh.one(
        (
            f"{act.capitalize()} {thing} {place}",
            f"{number} {adjective} {thing} for {audience}",
            f"{thing.capitalize()} with {first}: {person} shows how",
            f"The {adjective} side of {thing}",
            f"{thing.capitalize()} or {other}? {act.capitalize()} both {place}",
            f"Why I keep {act} {thing}",
        )
    )
    tags = [subtopic.name, topic.name, fresh.one(subtopic.things), fresh.one((topic.local_name, adjective, act))]

    opening = kept.one(
        (
            f"{person} is {act} {thing} {place}.",
            f"A day of {act} {thing} with {person}.",
            f"All you need for {thing}: {first} and {second}.",
        )
    )
    caption = f"{opening} {kept.one(CLOSINGS)} {topic.sign} #{subtopic.name} #{topic.local_name} @{author_id(author)}"
    ocr = kept.one((f"{thing.upper()} {number} MIN", f"{subtopic.name.upper()} with {person}", f"{first} + {second}"))
    asr = (
        f"{kept.one(('hello everyone', 'welcome back', 'okay so'))} {person} here and today we are {act} {thing} {place} "
        f"you will need {first} and {second} {kept.one(('believe me', 'take your time', 'watch closely'))} "
        f"{act} {other} works the same way"
    )
    return ItemText(
        category=topic.name,
        tags=list(dict.fromkeys(tags)),
        title=title,
        caption=caption,
        ocr_text=ocr if kept.chance() < 0.75 else None,
        asr_text=asr if kept.chance() < 0.85 else None,
        word=thing,
    )
