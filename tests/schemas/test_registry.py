"""Artefacts are immutable and checked: what is truncated, altered, foreign or half published is never loaded."""

import hashlib
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from schemas.errors import BadInput
from schemas.registry import Registry

ROOT = Path(__file__).parents[2]


@pytest.fixture
def registry(tmp_path):
    return Registry(tmp_path / "registry")


def test_what_is_published_is_loaded(registry):
    artefact = registry.publish("codebook", {"sizes": [4]}, {"codebook.safetensors": b"abc"})
    loaded = registry.load("codebook")
    assert loaded == artefact
    assert loaded.file("codebook.safetensors").read_bytes() == b"abc"
    assert loaded.metadata == {"sizes": [4]}


def test_the_same_content_is_one_artefact(registry):
    first = registry.publish("codebook", {"sizes": [4]}, {"a": b"abc"})
    again = registry.publish("codebook", {"sizes": [4]}, {"a": b"abc"})
    other = registry.publish("codebook", {"sizes": [5]}, {"a": b"abc"}, latest=False)
    assert first.version == again.version != other.version
    assert registry.latest("codebook") == first.version
    assert set(registry.versions("codebook")) == {first.version, other.version}


@pytest.mark.parametrize(
    "damage", [lambda path: path.write_bytes(b"ab"), lambda path: path.write_bytes(b"abd"), lambda path: path.unlink()]
)
def test_a_damaged_file_is_named(registry, damage):
    artefact = registry.publish("codebook", {}, {"a.safetensors": b"abc"})
    damage(artefact.folder / "a.safetensors")
    with pytest.raises(BadInput, match=r"a\.safetensors"):
        registry.load("codebook").file("a.safetensors")


@pytest.mark.parametrize("damaged", ["a.safetensors", "codebook.json"])
@pytest.mark.parametrize("content", [b"{}", b"[" * 100_000], ids=["empty", "deep"])
def test_what_was_damaged_is_mended_by_publishing_it_again(registry, damaged, content):
    artefact = registry.publish("codebook", {"sizes": [4]}, {"a.safetensors": b"abc"})
    (artefact.folder / damaged).write_bytes(content)
    again = registry.publish("codebook", {"sizes": [4]}, {"a.safetensors": b"abc"})
    assert again == artefact
    assert again.file("a.safetensors").read_bytes() == b"abc"
    assert sorted(path.name for path in again.folder.iterdir()) == ["a.safetensors", "codebook.json"]


@pytest.mark.parametrize(
    "foreign",
    [
        {"metadata": ["a list"], "files": {}},
        {"metadata": {}, "files": ["a"]},
        {"metadata": {}, "files": {"a": {"sha256": "0"}}},
        {"metadata": {}, "files": {"a": None}},
    ],
)
def test_a_consistent_manifest_of_another_shape_is_named(registry, foreign):
    body = {"kind": "codebook", **foreign}
    version = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:12]
    folder = registry.root / "codebook" / version
    folder.mkdir(parents=True)
    (folder / "codebook.json").write_text(json.dumps({"version": version, **body}))
    with pytest.raises(BadInput, match=r"codebook\.json: not a manifest of ours"):
        registry.load("codebook", version)


def test_an_altered_or_foreign_manifest_is_named(registry):
    artefact = registry.publish("codebook", {"sizes": [4]}, {"a": b"abc"})
    manifest = artefact.folder / "codebook.json"
    body = json.loads(manifest.read_text())
    foreign = ("{", "[]", '"x"', "[" * 100_000, "9" * 5000, json.dumps({"hello": 1}))
    for text in (*foreign, json.dumps(body | {"metadata": {"sizes": [5]}})):
        manifest.write_text(text)
        with pytest.raises(BadInput, match=r"codebook\.json"):
            registry.load("codebook")
    manifest.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match=r"codebook\.json: not a manifest of ours"):
        registry.load("codebook")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b'{"a": 1}', b"0123456789ab", b"../../elsewhere"])
def test_a_latest_that_names_no_version_is_named(registry, content):
    artefact = registry.publish("codebook", {"sizes": [4]}, {"a": b"abc"})
    (registry.root / "codebook" / "latest").write_bytes(content)
    with pytest.raises(BadInput, match=rf"codebook/latest: .*write a version into it \({artefact.version}\)"):
        registry.load("codebook")


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", ".hidden", "a/b", ""])
def test_no_name_leaves_the_registry(registry, name):
    with pytest.raises(BadInput):
        registry.publish("codebook", {}, {name: b"x"})
    with pytest.raises(BadInput):
        registry.load("codebook", name or "..")
    assert registry.versions("codebook") == []


def test_concurrent_publishers_do_not_collide(registry):
    errors = []

    def publish(number):
        try:
            registry.publish("codebook", {"n": number % 3}, {"a": b"x" * 1000})
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(registry.versions("codebook")) == 3
    assert registry.latest("codebook") in registry.versions("codebook")
    assert not list((registry.root / "codebook").glob(".staging-*"))


_PUBLISH = """
import os, signal, sys
from pathlib import Path
from schemas import registry as module

registry, step = module.Registry(Path(sys.argv[1])), sys.argv[2]

def killed(*given, **named):
    os.kill(os.getpid(), signal.SIGKILL)

if step in ("rename", "fsync"):
    setattr(module.os, step, killed)
elif step != "none":
    setattr(module, step, killed)
for number in range(int(sys.argv[3])):
    registry.publish("codebook", {"n": number}, {"a.safetensors": b"x" * 100_000})
"""


def publishing(registry, step="none", times=1):
    return subprocess.Popen([sys.executable, "-c", _PUBLISH, str(registry.root), step, str(times)], cwd=ROOT)


@pytest.mark.slow
def test_two_publishing_processes_do_not_collide_even_where_the_artefact_is_damaged(registry):
    for _ in range(2):
        both = [publishing(registry, times=5) for _ in range(2)]
        assert [process.wait(60) for process in both] == [0, 0]
        assert len(registry.versions("codebook")) == 5
        for version in registry.versions("codebook"):
            path = registry.load("codebook", version).file("a.safetensors")
            path.write_bytes(b"damaged")  # for the second round to mend
        assert not list((registry.root / "codebook").glob(".staging-*"))


@pytest.mark.slow
@pytest.mark.parametrize("step", ["fsync", "file_sha256", "sync_folder", "rename", "write_atomically"])
def test_killed_while_publishing_the_latest_stays_and_the_next_run_ends_as_a_clean_one(registry, step):
    """``write_atomically`` moves ``latest``, the last step: the artefact is whole then, and not yet named."""
    first = registry.publish("codebook", {"sizes": [4]}, {"a.safetensors": b"abc"})
    assert publishing(registry, step).wait(60) == -signal.SIGKILL
    assert registry.load("codebook") == first
    whole = registry.versions("codebook")
    assert len(whole) == (2 if step == "write_atomically" else 1)
    for version in whole:
        registry.load("codebook", version).file("a.safetensors")
    assert publishing(registry).wait(60) == 0
    assert registry.load("codebook").metadata == {"n": 0}
    assert len(registry.versions("codebook")) == 2


def test_metadata_of_any_keys_comes_back_as_json_has_it(registry):
    artefact = registry.publish("codebook", {"by_size": {2: "b", 10: "a", 1: None}}, {"a": b"x"})
    assert registry.load("codebook", artefact.version).metadata == {"by_size": {"2": "b", "10": "a", "1": None}}


def test_a_file_of_the_manifests_name_is_refused(registry):
    with pytest.raises(BadInput, match=r"file codebook\.json: the manifest of a codebook has this name"):
        registry.publish("codebook", {}, {"codebook.json": b"{}"})
    assert registry.versions("codebook") == []
    assert not (registry.root / "codebook").exists()


@pytest.mark.parametrize("damaged", ["a", "codebook.json"])
def test_a_mended_version_is_as_old_as_what_is_left_of_it(registry, damaged):
    first = registry.publish("codebook", {"n": 1}, {"a": b"x"})
    second = registry.publish("codebook", {"n": 2}, {"a": b"x"})
    (first.folder / damaged).write_bytes(b"damaged")
    assert registry.publish("codebook", {"n": 1}, {"a": b"x"}, latest=False) == first
    assert first.file("a").read_bytes() == b"x"
    assert registry.versions("codebook") == [first.version, second.version]


def test_nothing_published_says_so(registry):
    assert registry.latest("release") is None
    with pytest.raises(BadInput, match="no release published yet; run `onerec publish release` first"):
        registry.load("release")
