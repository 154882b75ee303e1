"""Whether a rejected row, as it came, mentions one of many people."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

_WORD = re.compile(r"\w+")
_ESCAPES = re.compile(r'(?:\\u[0-9a-fA-F]{4})+|\\["\\/bfnrt]')
USER_COLUMN = "user_id"
DEEPEST = 4
"""Texts of JSON inside one another that are looked into."""


class Mentions:
    """Looks for many user ids in texts; the cost of a text follows its length, not the number of people."""

    def __init__(self, users: Iterable[str]) -> None:
        self._users = frozenset(users)
        words = {user: _WORD.findall(user) or [""] for user in self._users}
        frequency = Counter(word for several in words.values() for word in several)
        self._by_word: dict[str, list[str]] = {}
        for user, several in words.items():  # by the rarest, since ids may all begin alike
            self._by_word.setdefault(min(several, key=frequency.__getitem__), []).append(user)

    def in_row(self, row_json: str, *, of_users: bool = True) -> bool:
        """Whether a quarantined row is theirs.

        JSON goes by its ``user_id``, at any depth: another column may hold the same text. What has none (broken JSON, a
        line of another format, a column of another name) mentions them if it holds an id as a whole word. A row of a table
        without users (``of_users``) is theirs in neither case, unless it is no JSON.
        """
        try:
            named = named_users(row_json)
        except (ValueError, RecursionError):
            return self.in_text(row_json)
        if named:
            return not self._users.isdisjoint(named)
        return of_users and self.in_text(row_json)

    def in_text(self, text: str) -> bool:
        """Whether a text, as it is or with JSON's escapes read, holds one of the ids between characters that are not a word's."""
        return any(map(self._in_plain, forms_of(text)))

    def _in_plain(self, text: str) -> bool:
        words = {"", *_WORD.findall(text)}
        candidates = (user for word in words for user in self._by_word.get(word, ()))
        return any(re.search(rf"(?<!\w){re.escape(user)}(?!\w)", text) for user in candidates)


def forms_of(text: str) -> list[str]:
    """A text as it is, and with JSON's escapes read once, twice, … while there are any: JSON may stand in a text of JSON. At most
    DEEPEST times: a text can be made so that each reading leaves another escape."""
    forms = [text]
    while len(forms) <= DEEPEST and (read := unescaped(forms[-1])) != forms[-1]:
        forms.append(read)
    return forms


def unescaped(text: str) -> str:
    """A text with every escape of JSON in it read once, also outside of what would be a JSON text."""
    return _ESCAPES.sub(lambda found: str(json.loads(f'"{found[0]}"')), text)


def named_users(row_json: str) -> set[str]:
    """Every value of a ``user_id`` in a JSON text (of a key that is there twice, both), as it is and without outer blanks."""
    found: set[str] = set()

    def collect(pairs: list[tuple[str, Any]]) -> None:
        for key, value in pairs:
            if key == USER_COLUMN and isinstance(value, str | int | float):
                found.update((str(value), str(value).strip()))

    json.loads(row_json, object_pairs_hook=collect)
    return found
