"""Rows of people who were forgotten (``onerec forget``): found by the hash of their id, or in a broken row's text."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.forget_text import forms_of, named_users, unescaped
from feature_jobs.user_state_arrays import flat
from schemas.suppression import Suppression

_USER = re.compile(r'"user_id"\s*:\s*(?:"((?:[^"\\]|\\.)*)|([^\s",\[\]{}]+))')
"""A user id in what may be half of a JSON object: a text, perhaps cut off, or a number."""
_WORD = re.compile(r"\w+")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)')
"""A text of JSON, perhaps cut off."""
_CELL = re.compile(r'[^"\\,;\t{}\[\]]+')
"""What stands between the separators of a line: an id may hold more than a word's characters."""


def forgotten_users(users: pa.ChunkedArray | pa.Array, suppression: Suppression) -> np.ndarray:
    """Which user ids are those of forgotten people (bool; False for null)."""
    if not suppression.hashes:
        return np.zeros(len(users), bool)
    distinct = pc.unique(flat(users)).to_pylist()
    listed = pa.array([user for user in distinct if user is not None and user in suppression], pa.string())
    mask: np.ndarray = np.asarray(pc.is_in(users, value_set=listed))
    return mask


def without_forgotten(rows: pa.Table, suppression: Suppression) -> tuple[pa.Table, int]:
    """Rows without those of forgotten people, and how many those were."""
    if not suppression.hashes:
        return rows, 0
    kept = ~forgotten_users(rows["user_id"], suppression)
    return rows.filter(pa.array(kept)), int((~kept).sum())


def of_forgotten(rejected: pa.Table, suppression: Suppression) -> np.ndarray:
    """Which REJECTED rows are of forgotten people (bool).

    A row whose ``user_id`` could not be read, or holds a JSON array or object, goes by its text: JSON by every ``user_id``
    in it; what has none, or is no JSON, by its words and cells, much as ``onerec forget`` searches quarantine.
    """
    found = np.zeros(len(rejected), bool)
    if not suppression.hashes or not len(rejected):
        return found
    users = flat(rejected["user_id"])
    found = forgotten_users(users, suppression)
    unclear = np.flatnonzero(pc.fill_null(pc.match_substring_regex(users, r"^\s*[\[{]"), True))
    listed: dict[str, bool] = {}
    for row, text in zip(unclear.tolist(), rejected["row_json"].take(pa.array(unclear)).to_pylist(), strict=True):
        for candidate in _candidates(text):
            if candidate not in listed:
                listed[candidate] = candidate in suppression
            found[row] |= listed[candidate]
    return found


def _candidates(text: str) -> set[str]:
    """Texts in a row, as it came, that may be a user's id."""
    try:
        named = named_users(text)
    except (ValueError, RecursionError):
        named = set()
        parts = [unescaped(quoted) if quoted else bare for quoted, bare in _USER.findall(text)]
    else:
        parts = []
    if named:
        return named
    for form in forms_of(text):
        parts += [*_WORD.findall(form), *_CELL.findall(form), *map(unescaped, _QUOTED.findall(form))]
    return {form for part in parts for form in (part, part.strip())}
