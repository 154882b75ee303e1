"""Slopes leave fixed starts out, exponents tell how cost grows, and a kept result says where it comes from."""

import json

import pytest

from benchmarks import harness


def test_a_slope_leaves_the_fixed_start_out():
    assert harness.slope([1, 2, 4], [7 + 3 * size for size in (1, 2, 4)]) == pytest.approx(3)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_an_exponent_is_found(exponent):
    assert harness.growth_exponent([1, 2, 4, 8], [5 * size**exponent for size in (1, 2, 4, 8)]) == pytest.approx(exponent)


def test_the_closing_object_is_the_last_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    harness.finish("subject", {"figure": 1.5}, ["numpy"], keep=True)
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["figures"] == {"figure": 1.5}
    assert set(printed) == {"benchmark", "machine", "versions", "figures"}
    kept = json.loads((tmp_path / "subject.json").read_text())
    assert len(kept["commit"]) == 40
    assert kept["figures"] == printed["figures"]
