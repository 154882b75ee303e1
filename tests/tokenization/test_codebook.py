"""The codebook artefact: equal bytes after a round trip, one line for what is damaged."""

import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save

from schemas.errors import BadInput
from schemas.registry import Registry
from tests.tokenization.vector_cases import matrix
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
