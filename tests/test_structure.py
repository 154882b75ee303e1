"""The house: import directions, what the wheel holds, no download addresses, no oversized files."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"schemas", "feature_jobs", "tokenization", "pipelines", "trainer", "onerec"}


def test_imports_keep_their_directions():
    result = subprocess.run([Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_locks_hold_exact_versions_and_no_addresses():
    for hardware, kernel in (("cpu", "faiss-cpu"), ("gpu", "faiss-gpu")):
        lines = (ROOT / "requirements" / f"{hardware}.txt").read_text().splitlines()
        assert all("==" in line and "://" not in line for line in lines)
        assert [line.split("==")[0] for line in lines if line.startswith("faiss")] == [kernel]


@pytest.mark.slow
def test_the_wheel_holds_the_six_packages_and_runs_elsewhere(tmp_path):
    build = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        capture_output=True,
        text=True,
    )
    assert build.returncode == 0, build.stderr
    (wheel,) = tmp_path.glob("*.whl")
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES
    site = tmp_path / "site"
    uv = Path(sys.executable).with_name("uv")
    installed = subprocess.run(
        [uv, "pip", "install", "--no-deps", "--offline", "--target", str(site), str(wheel)], capture_output=True, text=True
    )
    assert installed.returncode == 0, installed.stderr
    code = (
        "import schemas.tables, feature_jobs, tokenization, pipelines, trainer, onerec.command_line as c, sys;"
        f"assert schemas.__file__.startswith({str(site)!r}), schemas.__file__;"
        "sys.exit(c.run(['--help']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin"},
    )
    assert result.returncode == 0, result.stderr
    assert "simulate" in result.stdout
