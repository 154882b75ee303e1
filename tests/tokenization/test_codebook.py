"""The codebook artefact: equal bytes after a round trip, one line for what is damaged."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from sklearn.base import clone

from schemas.errors import BadInput
from schemas.registry import Registry
from tests.tokenization.vector_cases import matrix
from tokenization import residual
from tokenization.assignment import BACKENDS
from tokenization.candidates import FINDERS
from tokenization.codebook import FILE, KIND, load_codebook, publish_codebook
from tokenization.rq_kmeans import RQKMeans

VECTORS = matrix("normal", 300, 6, 0)


@pytest.fixture
def registry(tmp_path) -> Registry:
    return Registry(tmp_path / "registry")


@pytest.fixture(scope="module")
def model() -> RQKMeans:
    return RQKMeans(3, (8, 16, 24)).fit(VECTORS)


def test_encode_save_load_encode_gives_equal_bytes(registry, model):
    artefact = publish_codebook(registry, model, {"fusion_version": "f1"})
    loaded = load_codebook(registry)
    assert loaded.version == artefact.version
    assert loaded.sizes == [8, 16, 24]
    assert loaded.dim == 6
    assert loaded.metadata["fusion_version"] == "f1"
    assert loaded.metadata["training"]["rows"] == 300
    codes = model.encode(VECTORS)
    assert loaded.encode(VECTORS).tobytes() == codes.tobytes() == model.codes_.tobytes()
    assert loaded.decode(codes).tobytes() == model.decode(codes).tobytes()
    assert loaded.encode_beam(VECTORS, 3).tobytes() == model.encode_beam(VECTORS, 3).tobytes()
    assert loaded.residual_norms(VECTORS, codes).tobytes() == model.residual_norms(VECTORS, codes).tobytes()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("threads", [1, 3])
def test_every_backend_and_number_of_threads_encodes_alike(registry, model, backend, threads, monkeypatch):
    """With a part of rows a thread, and asking for the backend that was told."""
    asked = []
    monkeypatch.setattr(residual, "_FEWEST_ROWS", 16)
    monkeypatch.setitem(FINDERS, backend, lambda *told, find=FINDERS.get(backend): asked.append(backend) or find(*told))
    publish_codebook(registry, model, {"fusion_version": "f1"})
    assert load_codebook(registry).encode(VECTORS, backend, threads).tobytes() == model.codes_.tobytes()
    codes, model = model.codes_, clone(model).set_params(backend=backend, n_threads=threads)
    model.codebooks_, model.n_features_in_ = load_codebook(registry).codebooks, VECTORS.shape[1]
    assert model.encode(VECTORS).tobytes() == codes.tobytes()
    assert len(asked) == (0 if backend == "auto" else 2 * model.n_layers)


def test_the_same_model_published_twice_is_one_artefact(registry, model):
    first = publish_codebook(registry, model, {})
    again = publish_codebook(registry, RQKMeans(3, (8, 16, 24)).fit(VECTORS), {})
    other = publish_codebook(registry, model, {"note": "x"}, latest=False)
    assert first.version == again.version != other.version
    assert load_codebook(registry).version == first.version
    assert load_codebook(registry, other.version).version == other.version


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not safetensors", "not a safetensors file"),
        (save({"weights": np.zeros((2, 2), np.float32)}), "holds tensors"),
        (save({"layer_0": np.zeros((2, 2), np.float64)}), "finite float32 matrices"),
        (save({"layer_0": np.full((2, 2), np.nan, np.float32)}), "finite float32 matrices"),
        (save({"layer_0": np.zeros((2, 2), np.float32), "layer_1": np.zeros((2, 3), np.float32)}), "one dimension"),
        (save({"layer_0": np.zeros((3, 2), np.float32)}), r"differ from codebook.json's \[2\]"),
    ],
)
def test_a_foreign_file_is_named_in_one_line(registry, content, message):
    registry.publish(KIND, {"sizes": [2]}, {FILE: content})
    with pytest.raises(BadInput, match=message) as caught:
        load_codebook(registry)
    assert FILE in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("damage", "message"), [("truncated", "truncated or altered"), ("altered", "sha256")])
def test_a_damaged_file_is_named_in_one_line(registry, model, damage, message):
    artefact = publish_codebook(registry, model, {})
    path = artefact.folder / FILE
    content = path.read_bytes()
    path.write_bytes(content[:-1] if damage == "truncated" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BadInput, match=message):
        load_codebook(registry)


@pytest.fixture(scope="module")
def published(tmp_path_factory, model) -> Registry:
    registry = Registry(tmp_path_factory.mktemp("flips"))
    publish_codebook(registry, model, {"fusion_version": "f1", "encoders": {"text": "e"}})
    return registry


@settings(max_examples=120, deadline=None)
@given(
    region=st.sampled_from(["length", "header", "tensors", "end", "manifest", "latest"]),
    place=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
def test_one_flipped_bit_anywhere_is_found_and_named_in_one_line(published, region, place, bit):
    """``length``, ``header``, ``tensors``: of the safetensors file (8 bytes, JSON, float32)."""
    artefact = published.load(KIND)
    path = {"manifest": artefact.folder / f"{KIND}.json", "latest": artefact.folder.parent / "latest"}.get(
        region, artefact.folder / FILE
    )
    whole = path.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    first, last = {
        "length": (0, 8),
        "header": (8, 8 + header),
        "tensors": (8 + header, len(whole)),
        "end": (len(whole) - 1, len(whole)),
    }.get(region, (0, len(whole.strip())))
    at = first + int(place * (last - first))
    path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :])
    try:
        with pytest.raises(BadInput) as caught:
            load_codebook(published)
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)
    finally:
        path.write_bytes(whole)


@settings(max_examples=40, deadline=None)
@given(kept=st.floats(0, 1, exclude_max=True), name=st.sampled_from([FILE, f"{KIND}.json"]))
def test_a_file_cut_anywhere_is_named_in_one_line(published, kept, name):
    path = published.load(KIND).folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * (len(whole.rstrip())))])
    try:
        with pytest.raises(BadInput, match=name):
            load_codebook(published)
    finally:
        path.write_bytes(whole)


@pytest.mark.slow
def test_loading_and_encoding_need_no_engine(registry, model):
    publish_codebook(registry, model, {})
    script = (
        "import sys; from pathlib import Path; import numpy as np\n"
        "from schemas.registry import Registry; from tokenization.codebook import load_codebook\n"
        f"load_codebook(Registry(Path({str(registry.root)!r}))).encode(np.zeros((2, 6)))\n"
        "print(sorted({'faiss', 'torch', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
