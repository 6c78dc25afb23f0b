from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgesmith.sdk.serve.pictures import decode_picture, picture_size
from edgesmith.sdk.serve.refusal import Refusal

PIXELS = np.random.default_rng(3).integers(0, 256, (37, 53, 3), np.uint8)


def encoded(kind: str, *options: int) -> bytes:
    return bytes(cv2.imencode(kind, PIXELS, list(options))[1].tobytes())


@pytest.mark.parametrize(
    "data",
    [
        encoded(".jpg"),
        encoded(".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        encoded(".jpg", cv2.IMWRITE_JPEG_RST_INTERVAL, 1),
        encoded(".png"),
        encoded(".webp", cv2.IMWRITE_WEBP_QUALITY, 80),
        encoded(".webp", cv2.IMWRITE_WEBP_QUALITY, 101),
        encoded(".bmp"),
    ],
    ids=["jpeg", "progressive", "restarts", "png", "webp", "webp-lossless", "bmp"],
)
def test_the_size_is_read_without_decoding(data: bytes) -> None:
    assert picture_size(data) == (53, 37)
    assert decode_picture(data).shape == (37, 53, 3)


@pytest.mark.assets
def test_the_size_of_real_photographs(assets: Path) -> None:
    photographs = sorted((assets / "coco_val").glob("*.jpg"))[:20]
    assert photographs
    for path in photographs:
        data = path.read_bytes()
        height, width = decode_picture(data).shape[:2]
        assert picture_size(data) == (width, height)


def exif_thumbnail(data: bytes) -> bytes:
    """The JPEG with another, whole JPEG inside of a segment at its head, as cameras write it."""
    inner = encoded(".jpg", cv2.IMWRITE_JPEG_QUALITY, 5)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(inner) + 2) + inner + data[2:]


def test_a_thumbnail_is_not_the_picture() -> None:
    big = bytes(cv2.imencode(".jpg", np.zeros((90, 120, 3), np.uint8))[1].tobytes())
    assert picture_size(exif_thumbnail(big)) == (120, 90)


@pytest.mark.parametrize("kind", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.2, 0.6, 0.98])
def test_what_is_cut_off_is_refused(kind: str, share: float) -> None:
    data = encoded(kind)
    data = exif_thumbnail(data) if kind == ".jpg" else data
    with pytest.raises(Refusal) as caught:
        picture_size(data[: int(share * len(data))])
    assert caught.value.status in (400, 415)


def bomb_png(width: int, height: int) -> bytes:
    """A sound PNG of zeros: a thousandth of a byte for each pixel, and less."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((1 + (width + 7) // 8) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_bomb_tells_its_size_first() -> None:
    data = bomb_png(20_000, 20_000)
    assert len(data) < 100_000
    assert picture_size(data) == (20_000, 20_000)


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a" + bytes(50), b"\x00" * 64, b"<svg/>", b"II*\x00" + bytes(60)]
)
def test_other_kinds_are_refused_by_name(data: bytes) -> None:
    with pytest.raises(Refusal, match="JPEG, PNG, WebP or BMP") as caught:
        picture_size(data)
    assert caught.value.status == 415


def test_a_million_segments_do_not_hold_up_the_service() -> None:
    with pytest.raises(Refusal, match="no frame and scan"):
        picture_size(b"\xff\xd8" + b"\xff\xe0\x00\x02" * 1_000_000)


def test_damage_inside_is_refused_when_it_is_decoded() -> None:
    data = bytearray(encoded(".png"))
    data[60:90] = bytes(30)
    with pytest.raises(Refusal) as caught:
        decode_picture(bytes(data))
    assert caught.value.status == 400


def test_the_pixels_are_those_of_a_file(tmp_path: Path, picture: Callable[..., bytes]) -> None:
    from edgesmith.sdk.cameras import read_image

    (tmp_path / "a.png").write_bytes(encoded(".png"))
    assert np.array_equal(decode_picture(encoded(".png")), read_image(tmp_path / "a.png"))
