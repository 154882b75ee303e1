"""The description of a landing zone: read, or refused in one line that names it."""

from pathlib import Path

import pytest

from feature_jobs.ingest.landing import DESCRIPTION, open_landing
from schemas.errors import BadInput


def test_the_time_zone_is_read(tmp_path: Path) -> None:
    assert open_landing(str(tmp_path)).day_timezone is None
    (tmp_path / DESCRIPTION).write_text('{"day_timezone": "Asia/Shanghai", "more": []}')
    assert open_landing(str(tmp_path)).day_timezone == "Asia/Shanghai"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", r"not JSON \(.+\); mend or remove it"),
        (b"\xff", r"not JSON \(.+\); mend or remove it"),
        (b"[" * 100_000, r"not JSON \(nested too deeply\); mend or remove it"),
        (b"9" * 5000, r"not JSON \(.+\); mend or remove it"),
        (b" " * (2**20 + 1), "not a small file; it describes"),
        (b"[]", "not a JSON object; mend or remove it"),
        (b'{"day_timezone": "Nowhere"}', "day_timezone 'Nowhere' is not a time zone name"),
        (b'{"day_timezone": ["Asia/Shanghai"]}', r"day_timezone \['Asia/Shanghai'\] is not a time zone name"),
    ],
    ids=lambda value: repr(value[:30]),
)
def test_a_description_that_is_none_of_ours_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / DESCRIPTION).write_bytes(content)
    with pytest.raises(BadInput, match=rf"landing\.json: {said}"):
        open_landing(str(tmp_path))


def test_a_folder_in_its_place_is_named(tmp_path: Path) -> None:
    (tmp_path / DESCRIPTION).mkdir()
    with pytest.raises(BadInput, match=r"landing\.json: not a small file"):
        open_landing(str(tmp_path))
