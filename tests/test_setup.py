"""What is missing on the machine is said in one line with the command that mends it, before anything is installed."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def setup(tmp_path):
    """Runs the set-up script in a copy of the project's skeleton with only the named programs on the PATH."""
    copy = tmp_path / "project"
    (copy / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "setup", copy / "scripts" / "setup")
    shutil.copytree(ROOT / "requirements", copy / "requirements")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "dirname", "sed", "head", "grep", "awk", "df"):
        (programs / name).symlink_to(shutil.which(name))

    def run(**scripts):
        for name, text in scripts.items():
            program = programs / name.replace("_", ".")
            program.unlink(missing_ok=True)  # it may be a link to the machine's own
            program.write_text(f"#!{shutil.which('bash')}\n{text}\n")
            program.chmod(0o755)
        environment = {"PATH": str(programs), "HOME": str(tmp_path)}
        return subprocess.run(
            [shutil.which("bash"), str(copy / "scripts" / "setup")], env=environment, capture_output=True, text=True
        )

    return run


def only_line(result):
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


PYTHON = 'case "$*" in *--version*) echo Python 3.11.9;; esac; exit 0'
JAVA = "echo 'openjdk version \"{version}\" 2025-01-01' >&2"


def test_no_python(setup):
    assert "apt-get install python3.11" in only_line(setup())


def test_another_python(setup):
    line = only_line(setup(python3_11='case "$*" in *--version*) echo Python 3.9.1;; esac; exit 1'))
    assert "Python 3.9.1" in line
    assert "3.11" in line


def test_no_venv_module(setup):
    line = only_line(setup(python3_11='case "$*" in *ensurepip*) exit 1;; esac; exit 0'))
    assert "apt-get install python3.11-venv" in line


def test_no_java(setup):
    assert "apt-get install openjdk-17-jre-headless" in only_line(setup(python3_11=PYTHON))


@pytest.mark.parametrize("version", ["11.0.22", "1.8.0_392", "25"])
def test_a_wrong_java(setup, version):
    line = only_line(setup(python3_11=PYTHON, java=JAVA.format(version=version)))
    assert f"Java {version.split('.')[0]}" in line
    assert "17 or 21" in line
    assert "apt-get install openjdk-17-jre-headless" in line


def test_no_disk_space(setup):
    line = only_line(setup(python3_11=PYTHON, java=JAVA.format(version="17.0.9"), df="echo h; echo 'd 100 90 5242880 9% /'"))
    assert line.startswith("error: 5 GiB free")
    assert "12" in line
