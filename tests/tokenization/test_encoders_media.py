"""Media files are read with limits, and every refusal is one reason for quarantine."""

import os
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from tokenization.encoders.base import MediaLimits, Unreadable
from tokenization.encoders.media import decode_picture, decode_sound, media_hash, read_media

LIMITS = MediaLimits(max_bytes=10_000, max_pixels=5_000, max_seconds=2)


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def wave(seconds: float, rate: int, channels: int = 1, kind: str = "WAV") -> bytes:
    time = np.arange(int(seconds * rate)) / rate
    stream = BytesIO()
    soundfile.write(stream, np.tile(0.5 * np.sin(2 * np.pi * 440 * time)[:, None], channels), rate, format=kind)
    return stream.getvalue()


class TestReading:
    def test_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "with space %20.bin"
        path.write_bytes(b"content")
        assert read_media(f"file://{path}", LIMITS) == b"content"

    @pytest.mark.parametrize(
        "uri", ["/etc/hostname", "http://example.com/a.png", "file:relative.png", "file://host/a.png", "s3://b/c", ""]
    )
    def test_other_addresses_are_refused(self, uri: str) -> None:
        with pytest.raises(Unreadable, match=r"not an absolute file:// address|No such file"):
            read_media(uri, LIMITS)

    def test_missing_large_and_irregular_files(self, tmp_path: Path) -> None:
        with pytest.raises(Unreadable, match="No such file"):
            read_media(f"file://{tmp_path}/absent.png", LIMITS)
        (tmp_path / "large").write_bytes(bytes(10_001))
        with pytest.raises(Unreadable, match=r"10001 bytes, more than embed.max_media_bytes"):
            read_media(f"file://{tmp_path}/large", LIMITS)
        with pytest.raises(Unreadable, match=r"Is a directory|not a regular file"):
            read_media(f"file://{tmp_path}", LIMITS)
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(Unreadable, match="not a regular file"):
            read_media(f"file://{tmp_path}/pipe", LIMITS)
        with pytest.raises(Unreadable, match="null"):
            read_media("file:///a\0b", LIMITS)

    def test_the_hash_of_several_files_depends_on_their_order(self) -> None:
        assert media_hash([b"abc"]) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        assert len({media_hash([b"a"]), media_hash([b"a", b"b"]), media_hash([b"b", b"a"]), media_hash([b"ab"])}) == 4


class TestPictures:
    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
    def test_formats(self, kind: str) -> None:
        pixels = decode_picture(encoded(Image.new("RGB", (20, 10), (200, 30, 30)), kind), LIMITS)
        assert pixels.shape == (10, 20, 3)
        assert pixels.dtype == np.uint8
        assert np.abs(pixels.astype(int) - [200, 30, 30]).max() < 12

    @pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "I;16", "F"])
    def test_modes(self, mode: str) -> None:
        kind = "TIFF" if mode in ("CMYK", "I;16", "F") else "PNG"
        assert decode_picture(encoded(Image.new(mode, (6, 4)), kind), LIMITS).shape == (4, 6, 3)

    def test_transparency_is_over_white(self) -> None:
        assert (decode_picture(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 0))), LIMITS) == 255).all()

    def test_a_turned_photo_is_put_upright(self) -> None:
        turned = Image.Exif()
        turned[0x0112] = 6
        content = encoded(Image.new("RGB", (20, 10)), "JPEG", exif=turned.tobytes())
        assert decode_picture(content, LIMITS).shape == (20, 10, 3)

    def test_a_bomb_is_refused_by_its_header(self) -> None:
        def chunk(name: bytes, body: bytes) -> bytes:
            return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

        for side, said in ((100, "10000 pixels, more than embed.max_media_pixels"), (60_000, "DecompressionBomb")):
            header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
            bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
            with pytest.raises(Unreadable, match=said):
                decode_picture(bomb, LIMITS)

    def test_broken_content(self) -> None:
        whole = encoded(Image.effect_noise((60, 60), 50).convert("RGB"), "JPEG")
        for content in (
            b"",
            b"not a picture",
            whole[:300],
            whole[: len(whole) // 2],
            b"%!PS-Adobe-3.0 EPSF-3.0\n",
            wave(0.1, 8000),
        ):
            with pytest.raises(Unreadable, match="not a readable picture"):
                decode_picture(content, LIMITS)


class TestSounds:
    @pytest.mark.parametrize(("rate", "kind"), [(8000, "WAV"), (16000, "FLAC"), (44100, "OGG"), (44100, "MP3"), (48000, "WAV")])
    def test_formats_and_rates(self, rate: int, kind: str) -> None:
        samples = decode_sound(wave(1.0, rate, 2, kind), LIMITS)
        assert samples.dtype == np.float32
        assert len(samples) == pytest.approx(16_000, rel=0.15)
        middle = samples[4000:12000]
        assert np.abs(np.fft.rfft(middle * np.hanning(len(middle)))).argmax() == pytest.approx(440 / 2, abs=1)

    def test_only_the_beginning_of_long_sound_is_read(self) -> None:
        assert len(decode_sound(wave(5, 8000), LIMITS)) == 2 * 16_000

    def test_broken_content(self) -> None:
        for content in (b"", b"not sound", encoded(Image.new("RGB", (4, 4))), b"RIFF\xff\xff\xff\xffWAVEfmt "):
            with pytest.raises(Unreadable, match="not readable sound"):
                decode_sound(content, LIMITS)

    def test_silly_headers(self) -> None:
        with pytest.raises(Unreadable, match="sound without samples"):
            decode_sound(wave(0, 8000), LIMITS)
        with pytest.raises(Unreadable, match="200000 samples a second"):
            decode_sound(wave(0.01, 200_000), LIMITS)
        with pytest.raises(Unreadable, match="20 channels"):
            decode_sound(wave(0.01, 8000, 20), LIMITS)

    def test_samples_that_are_no_numbers(self) -> None:
        stream = BytesIO()
        soundfile.write(stream, np.array([0.1, np.nan, 0.2], np.float32), 16_000, format="WAV", subtype="FLOAT")
        with pytest.raises(Unreadable, match="no numbers"):
            decode_sound(stream.getvalue(), LIMITS)
