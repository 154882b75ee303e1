"""Slopes leave fixed starts out, exponents tell how cost grows, and a kept result says where it comes from."""

import json

import numpy as np
import pytest

from benchmarks import harness


def test_a_slope_leaves_the_fixed_start_out():
    assert harness.slope([1, 2, 4], [7 + 3 * size for size in (1, 2, 4)]) == pytest.approx(3)


SIZES = np.array([1.0, 2.0, 4.0, 8.0]) * 1e6


def seconds(size, start=15.0, linear=8.0, square=0.0):
    """What a day of so many events takes if its cost grows linearly, or faster."""
    millions = size / 1e6
    return start + linear * millions + square * millions**2


@pytest.mark.parametrize("start", [0, 1, 15, 100])
@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5, 2.0])
def test_an_exponent_is_that_of_the_cost_above_the_fixed_start(start, exponent):
    assert harness.growth_exponent(SIZES, start + 5 * (SIZES / 1e6) ** exponent) == pytest.approx(exponent, abs=0.002)


def test_a_cost_that_grows_faster_is_told_from_a_linear_one():
    assert harness.growth_exponent(SIZES, seconds(SIZES)) == pytest.approx(1, abs=0.002)
    assert harness.growth_exponent(SIZES, seconds(SIZES, linear=5, square=0.6)) > 1.3


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_an_exponent_withstands_noise_of_a_percent(seed):
    noise = 1 + 0.01 * np.random.default_rng(seed).uniform(-1, 1, len(SIZES))
    assert harness.growth_exponent(SIZES, seconds(SIZES) * noise) == pytest.approx(1, abs=0.1)
    assert harness.growth_exponent(SIZES, seconds(SIZES, linear=5, square=0.6) * noise) > 1.3


@pytest.mark.parametrize("seed", range(20))
def test_a_small_size_that_is_all_fixed_start_makes_an_exponent_withstand_five_percent(seed):
    sizes = np.append(SIZES[0] / 16, SIZES)
    noise = 1 + 0.05 * np.random.default_rng(seed).uniform(-1, 1, len(sizes))
    assert harness.growth_exponent(sizes, seconds(sizes) * noise) == pytest.approx(1, abs=0.12)


def test_an_exponent_stays_between_a_half_and_two():
    assert harness.growth_exponent(SIZES, SIZES**3) == 2
    assert harness.growth_exponent(SIZES, SIZES**0.1) == 0.5


def test_two_sizes_determine_no_exponent():
    with pytest.raises(ValueError, match="three different sizes"):
        harness.growth_exponent([1, 2, 2], [1, 2, 2])


def test_the_closing_object_is_the_last_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    harness.finish("subject", {"figure": 1.5}, ["numpy"], keep=True)
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["figures"] == {"figure": 1.5}
    assert set(printed) == {"benchmark", "machine", "versions", "figures"}
    kept = json.loads((tmp_path / "results" / "subject.json").read_text())
    assert len(kept["commit"]) == 40
    assert kept["figures"] == printed["figures"]


def test_figures_of_less_work_are_not_kept(capsys):
    with pytest.raises(SystemExit):
        harness.options("", ["--quick", "--keep"])
    assert "--keep keeps figures of the whole work; leave --quick out" in capsys.readouterr().err
    assert harness.options("", ["--keep"]).keep


def test_kept_figures_are_those_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    assert harness.kept_figures("subject") == {}
    harness.finish("subject", {"figure": 1.5}, [], keep=True)
    assert harness.kept_figures("subject") == {"figure": 1.5}
    here = harness.machine()
    monkeypatch.setattr(harness, "machine", lambda: here | {"memory_gib": 0.5})
    assert harness.kept_figures("subject") == {"figure": 1.5}
    for key, value in (("cores", 1000), ("instructions", ["amx_int8"]), ("processor", "another")):
        monkeypatch.setattr(harness, "machine", lambda told={key: value}: here | told)
        with pytest.raises(SystemExit, match=r"subject\.json: of another kind of machine .*; move it away"):
            harness.kept_figures("subject")
