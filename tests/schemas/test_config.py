"""A configuration is validated at the edge: what is wrong ends in one line that names it."""

from pathlib import Path

import pytest

from schemas.config import Config, parse_config
from schemas.errors import BadInput


def test_a_configuration_survives_its_own_yaml():
    config = parse_config("samples: {user_day_cap: 7}", "test")
    assert parse_config(config.to_yaml(), "test") == config
    assert config.samples.user_day_cap == 7
    assert config.version != Config().version


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        ("lake: {day_timezone: Mars/Phobos}", [], "Asia/Shanghai"),
        ("lake: {user_buckets: 0}", [], "lake.user_buckets"),
        ("lakes: {}", [], "lakes"),
        ("samples: {user_day_cap: many}", [], "samples.user_day_cap"),
        ("[1, 2]", [], "not sections"),
        ("{", [], "not YAML"),
        ("", ["samples.user_day_cap"], "section.name=value"),
        ("", ["samples.no_such=1"], "samples.no_such"),
        ("", ["codebook.sizes=[70000]"], "65536"),
        ("", ["codebook.balance=2"], "max_churn cannot be kept; set it to null"),
        ("", ["codebook.balance=2", "codebook.max_churn=null", "codebook.training=exact"], "balance needs training: sample"),
        ("", ["ingest.max_late_days=1000000"], "ingest.max_late_days"),
        ("", ["co_interaction.window_days=1000000"], "co_interaction.window_days"),
        ("", ["samples.gates.volume_days=1000000"], "samples.gates.volume_days"),
        ("", ["ingest.max_play_time_ms=1099511627776"], "ingest.max_play_time_ms"),
        ("", ["samples.play_log_base=1.000001"], "samples.play_log_base"),
        ("lake: 3", [], "onerec.yaml: lake"),
        ("", ["lake.user_buckets.deep=2"], "--set: lake.user_buckets"),
        ("samples: {user_day_cap: 3}", ["samples.user_day_cap.deep=2"], "not a section"),
    ],
)
def test_what_is_wrong_is_named(text, overrides, said):
    with pytest.raises(BadInput) as raised:
        parse_config(text, "onerec.yaml", overrides)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_override_is_blamed_for_itself_only():
    with pytest.raises(BadInput, match=r"^--set: samples\.user_day_cap"):
        parse_config("", "onerec.yaml", ["samples.user_day_cap=0"])
    with pytest.raises(BadInput, match=r"^onerec\.yaml: samples\.user_day_cap"):
        parse_config("samples: {user_day_cap: 0}", "onerec.yaml", ["samples.user_day_cap=5"])


def test_overrides_win():
    config = parse_config("samples: {user_day_cap: 7}", "test", ["samples.user_day_cap=9", "codebook.sizes=[4, 4]"])
    assert config.samples.user_day_cap == 9
    assert config.codebook.sizes == (4, 4)


def test_every_setting_says_what_it_means_and_the_page_is_current():
    from docs.make_configuration import render

    page = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
    assert page.read_text() == render(), "run `python -m docs.make_configuration`"
    assert "|  |" not in page.read_text()
