"""TensorRT's calibration cache: the bytes that TensorRT reads, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgesmith.calibration.cache_file import Cache, plain_scale, read_cache, version_number, write_cache
from edgesmith.calibration.scale_table import Quantizer
from edgesmith.sdk.errors import CalibrationError


def test_the_text_is_the_one_that_tensorrt_writes() -> None:
    # 1/127 as a float32 is 0x3c010204, 0.5 is 0x3f000000.
    assert write_cache({"images": 1 / 127, "stem.0/Relu": 0.5}, version="10.3.0") == (
        "TRT-100300-EntropyCalibration2\nimages: 3c010204\nstem.0/Relu: 3f000000\n"
    )


def test_a_published_cache_is_read() -> None:
    text = (
        "TRT-7202-EntropyCalibration2\ndata: 3c008912\n"
        "(Unnamed Layer* 4) [Fully Connected]_output: 3d65992f\na: b: 3f800000\r\n\n"
    )
    cache = read_cache(text)
    assert cache.version == 7202
    assert cache.algorithm == "EntropyCalibration2"
    assert list(cache.scales) == ["data", "(Unnamed Layer* 4) [Fully Connected]_output", "a: b"]
    assert cache.scales["data"] * 127 == pytest.approx(0.9963, abs=1e-4)
    assert cache.scales["a: b"] == 1.0


def test_round_trip_is_exact_for_float32() -> None:
    draws = np.random.default_rng(0).lognormal(-3, 4, 200).astype(np.float32)
    scales = {f"layer.{n}/Conv": float(value) for n, value in enumerate(draws)}
    assert read_cache(write_cache(scales, version="8.5.2")) == Cache(8502, "EntropyCalibration2", scales)


@pytest.mark.parametrize(
    ("version", "number"), [("10.3.0", 100300), ("10.16.2.10", 101602), ("8.5.2", 8502), ("8.2.1", 8201)]
)
def test_version_numbers(version: str, number: int) -> None:
    assert version_number(version) == number


@pytest.mark.parametrize("version", ["", "10", "10.3", "ten.3.0", "10.3.0-rc1"])
def test_a_version_that_is_none(version: str) -> None:
    with pytest.raises(CalibrationError, match=r"give it as 10\.3\.0"):
        write_cache({}, version=version)


@pytest.mark.parametrize("scale", [0.0, -0.1, math.nan, math.inf, 1e-60, 1e60])
def test_only_positive_finite_scales_are_written(scale: float) -> None:
    with pytest.raises(CalibrationError, match="tensor x has the scale"):
        write_cache({"x": scale}, version="10.3.0")


@pytest.mark.parametrize("name", ["", " x", "two\nlines"])
def test_names_that_cannot_stand_in_a_line(name: str) -> None:
    with pytest.raises(CalibrationError, match="cannot be named"):
        write_cache({name: 1.0}, version="10.3.0")


HEAD = "TRT-100300-EntropyCalibration2\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: ''"),
        ("x: 3f800000\n", "line 1: 'x: 3f800000'"),
        (HEAD + "x 3f800000\n", "line 2: 'x 3f800000' is not"),
        (HEAD + "x: 3f800000\ny: 3f80zz00\n", "line 3: 'y: 3f80zz00' is not"),
        (HEAD + "x: 3f8000000\n", "line 2: 'x: 3f8000000' is not"),
        (HEAD + "x: bf800000\n", "line 2: tensor x has the scale -1, not"),
        (HEAD + "x: 7f800000\n", "line 2: tensor x has the scale inf, not"),
        (HEAD + "x: 0\n", "line 2: tensor x has the scale 0, not"),
        (HEAD + "x: 3f800000\nx: 3f000000\n", "line 3: tensor x stands here for the second time"),
    ],
)
def test_malformed_lines_are_named(text: str, message: str) -> None:
    with pytest.raises(CalibrationError) as caught:
        read_cache(text)
    assert message in str(caught.value)


def test_the_plain_scale_covers_what_the_quantizer_covers() -> None:
    assert plain_scale(Quantizer(scale=0.1)) == 0.1
    # 0..25.5 in steps of 0.1: integers -128..127 stand for 0..255 steps.
    assert plain_scale(Quantizer(scale=0.1, shift=128)) * 127 == pytest.approx(25.5)
    assert plain_scale(Quantizer(scale=0.1, shift=-100)) * 127 == pytest.approx(22.8)
    assert plain_scale(Quantizer(scale=0.1, factor=(0.5, 2.0, 1.0))) == pytest.approx(0.2)
