"""The one preprocess, against plain OpenCV code and torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgesmith.sdk.errors import CameraFormatError
from edgesmith.sdk.manifest import Preprocess
from edgesmith.sdk.preprocess import prepare, prepared

Picture = NDArray[np.uint8]
SIZES = [(480, 640), (640, 480), (333, 517), (416, 416), (100, 60), (7, 5), (1, 1), (1, 9), (720, 1280)]

YOLOX = Preprocess(size=(416, 416), anchor="top-left", color="bgr", scale=1.0, rounding="floor")
FASTESTDET = Preprocess(size=(352, 352), fit="stretch", color="bgr")
MOBILENET = Preprocess(size=(224, 224), fit="resize-crop", shorter_side=256, scale=1 / 127.5, mean=(1.0,))


def picture(height: int, width: int, seed: int = 0) -> Picture:
    """Smooth shapes with noise on them: neither flat nor white noise."""
    rng = np.random.default_rng((seed, height, width))
    coarse = rng.integers(0, 256, (max(height // 8, 1), max(width // 8, 1), 3)).astype(np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, 3)
    return np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)


def raw(preprocess: Preprocess, frame: Picture) -> NDArray[np.float64]:
    """Our input as pixel values ``(H, W, C)``."""
    tensor, _ = prepared(preprocess, frame)
    return np.asarray(np.rint(tensor[0].transpose(1, 2, 0) / preprocess.scale), np.float64)


@pytest.mark.parametrize("size", SIZES)
def test_letterbox_to_the_top_left(size: tuple[int, int]) -> None:
    frame = picture(*size)
    ratio = min(416 / size[0], 416 / size[1])
    rows, columns = max(int(size[0] * ratio), 1), max(int(size[1] * ratio), 1)
    expected = np.full((416, 416, 3), 114, np.uint8)
    expected[:rows, :columns] = cv2.resize(frame, (columns, rows), interpolation=cv2.INTER_LINEAR)
    tensor, geometry = prepared(YOLOX, frame)
    np.testing.assert_array_equal(tensor[0], expected.transpose(2, 0, 1).astype(np.float32))
    assert (geometry.offset_x, geometry.offset_y) == (0.0, 0.0)
    assert (geometry.scale_x, geometry.scale_y) == (columns / size[1], rows / size[0])


@pytest.mark.parametrize("upscale", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_letterbox_in_the_middle(size: tuple[int, int], upscale: bool) -> None:
    frame = picture(*size)
    ratio = min(256 / size[0], 320 / size[1])
    if not upscale:
        ratio = min(ratio, 1.0)
    rows, columns = max(round(size[0] * ratio), 1), max(round(size[1] * ratio), 1)
    top, left = (256 - rows) // 2, (320 - columns) // 2
    small = cv2.resize(frame, (columns, rows), interpolation=cv2.INTER_LINEAR)
    expected = cv2.copyMakeBorder(
        small, top, 256 - rows - top, left, 320 - columns - left, cv2.BORDER_CONSTANT, value=(7, 7, 7)
    )
    ours = Preprocess(size=(256, 320), pad=7, color="bgr", scale=1.0, upscale=upscale)
    np.testing.assert_array_equal(raw(ours, frame), expected)
    _, geometry = prepared(ours, frame)
    assert (geometry.offset_x, geometry.offset_y) == (left, top)
    if not upscale and max(size) <= 256:
        np.testing.assert_array_equal(expected[top : top + rows, left : left + columns], frame)


@pytest.mark.parametrize("interpolation", ["linear", "area", "cubic", "nearest"])
@pytest.mark.parametrize("size", SIZES)
def test_stretch(size: tuple[int, int], interpolation: Any) -> None:
    frame = picture(*size)
    flag = getattr(cv2, f"INTER_{interpolation.upper()}")
    expected = cv2.resize(frame, (120, 90), interpolation=flag)[..., ::-1]
    ours = Preprocess(size=(90, 120), fit="stretch", scale=1.0, interpolation=interpolation)
    np.testing.assert_array_equal(raw(ours, frame), expected)


@pytest.mark.parametrize("size", [s for s in SIZES if min(s) > 1])
def test_resize_and_crop(size: tuple[int, int]) -> None:
    frame = picture(*size)
    ratio = 73 / min(size)
    rows, columns = max(73, round(size[0] * ratio)), max(73, round(size[1] * ratio))
    big = cv2.resize(frame, (columns, rows), interpolation=cv2.INTER_LINEAR)
    top, left = (rows - 64) // 2, (columns - 64) // 2
    ours = Preprocess(size=(64, 64), fit="resize-crop", color="bgr", scale=1.0)  # 64 * 256 / 224 = 73
    np.testing.assert_array_equal(raw(ours, frame), big[top : top + 64, left : left + 64])


def test_no_fit_takes_the_frame_as_it_is() -> None:
    frame = picture(33, 47)
    np.testing.assert_array_equal(raw(Preprocess(size=None, fit="none", scale=1.0), frame), frame[..., ::-1])
    exact = Preprocess(size=(33, 47), fit="none", scale=1.0, color="bgr")
    np.testing.assert_array_equal(raw(exact, frame), frame)
    with pytest.raises(CameraFormatError, match=r"takes frames of 33 x 47 .* got 47 x 33"):
        prepared(exact, picture(47, 33))


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_values_follow_the_formula(color: Any) -> None:
    frame = picture(40, 50)
    ours = Preprocess(
        size=None, fit="none", color=color, scale=0.5, mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, -6.0)
    )
    x = frame.astype(np.float64)[..., :: -1 if color == "rgb" else 1]
    expected = ((x * 0.5 - np.array([1.0, 2.0, 3.0])) / np.array([4.0, 5.0, -6.0])).transpose(2, 0, 1)
    np.testing.assert_allclose(prepared(ours, frame)[0][0], expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("size", [None, (24, 31)])
def test_luma(size: tuple[int, int] | None) -> None:
    frame = picture(64, 47)
    luma = cv2.cvtColor(frame, cv2.COLOR_BGR2YCrCb)[..., 0]
    if size is not None:
        luma = cv2.resize(np.ascontiguousarray(luma), size[::-1], interpolation=cv2.INTER_LINEAR)
    ours = Preprocess(size=size, fit="stretch" if size else "none", color="y")
    tensor, _ = prepared(ours, frame)
    assert tensor.shape == (1, 1, *luma.shape)
    np.testing.assert_allclose(tensor[0, 0], luma / 255, atol=1e-7)


@pytest.mark.parametrize("color", ["rgb", "bgr", "y"])
@pytest.mark.parametrize("fit", ["letterbox", "stretch", "resize-crop"])
def test_nhwc_holds_the_same_pixels(fit: Any, color: Any) -> None:
    frame = picture(75, 113)
    floats = Preprocess(size=(48, 48), fit=fit, color=color, scale=1.0)
    bytes_ = msgspec.structs.replace(floats, layout="nhwc")
    tensor, geometry = prepared(bytes_, frame)
    assert tensor.dtype == np.uint8
    assert tensor.shape == (1, 48, 48, 1 if color == "y" else 3)
    np.testing.assert_array_equal(tensor[0], raw(floats, frame))
    assert geometry == prepared(floats, frame)[1]


@pytest.mark.parametrize("kind", ["linear", "cubic"])
@pytest.mark.parametrize(
    ("size", "new"), [((300, 401), (64, 96)), ((97, 64), (96, 31)), ((20, 30), (55, 77)), ((33, 5), (1, 1))]
)
def test_antialias_is_that_of_torch(size: tuple[int, int], new: tuple[int, int], kind: Any) -> None:
    frame = picture(*size)
    ours = Preprocess(size=new, fit="stretch", color="bgr", scale=1.0, interpolation=kind, antialias=True)
    planes = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    mode = "bilinear" if kind == "linear" else "bicubic"
    theirs = torch.nn.functional.interpolate(planes, new, mode=mode, antialias=True, align_corners=False)
    difference = np.abs(raw(ours, frame) - theirs[0].permute(1, 2, 0).numpy().clip(0, 255))
    assert difference.max() <= 0.501  # we round to a pixel value, torch does not


@pytest.mark.parametrize(
    "preprocess", [YOLOX, FASTESTDET, MOBILENET, Preprocess(size=None, fit="none", color="y")]
)
def test_the_memory_layout_of_a_frame_does_not_matter(preprocess: Preprocess) -> None:
    whole = picture(120, 160)
    views = {
        "every other pixel": whole[::2, ::2],
        "upside down": whole[::-1],
        "mirrored": whole[:, ::-1],
        "colours reversed": whole[..., ::-1],
        "a window": whole[10:71, 20:91],
        "columns first": np.asfortranarray(whole),
        "turned": whole.transpose(1, 0, 2),
        "read only": _frozen(whole),
    }
    for name, view in views.items():
        expected, _ = prepared(preprocess, np.array(view, order="C"))
        np.testing.assert_array_equal(prepared(preprocess, view)[0], expected, err_msg=name)


def _frozen(x: NDArray[Any]) -> NDArray[Any]:
    x = x.copy()
    x.flags.writeable = False
    return x


def test_the_frame_is_not_changed() -> None:
    frame = picture(64, 64)
    before = frame.copy()
    for fit, size in (("none", None), ("letterbox", (64, 64)), ("stretch", (64, 64))):
        prepared(Preprocess(size=size, fit=fit), frame)  # type: ignore[arg-type]
    np.testing.assert_array_equal(frame, before)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"got uint8 \(4, 4\); convert grey"),
        (np.zeros((4, 4, 4), np.uint8), r"got uint8 \(4, 4, 4\)"),
        (np.zeros((4, 4, 1), np.uint8), r"got uint8 \(4, 4, 1\)"),
        (np.zeros((0, 4, 3), np.uint8), r"got uint8 \(0, 4, 3\)"),
        (np.zeros((4, 4, 3), np.float32), r"got float32 \(4, 4, 3\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"got uint8 \(1, 4, 4, 3\)"),
        ([[[0, 0, 0]]], "numpy array, got list"),
        (None, "numpy array, got NoneType"),
    ],
)
def test_what_is_no_frame_is_refused(frame: Any, message: str) -> None:
    with pytest.raises(CameraFormatError, match=message):
        prepared(YOLOX, frame)


@pytest.mark.parametrize(
    "out",
    [
        None,
        np.empty((3, 416, 415), np.float32),
        np.empty((1, 3, 416, 416), np.float32),
        np.empty((3, 416, 416), np.float64),
        np.empty((3, 416, 832), np.float32)[..., ::2],
        _frozen(np.empty((3, 416, 416), np.float32)),
    ],
)
def test_an_output_that_does_not_fit_is_refused(out: Any) -> None:
    with pytest.raises(CameraFormatError, match=r"writable C-contiguous float32 array of \(3, 416, 416\)"):
        prepare(YOLOX, picture(20, 20), out=out)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mean": (1.0, 2.0)}, "mean has 2 values; color 'rgb' takes 1 or 3"),
        ({"std": (1.0, 1.0, 0.0)}, "std holds a zero"),
        ({"mean": (float("nan"),)}, "mean is not finite"),
        ({"scale": 0.0}, "scale must be"),
        ({"scale": float("inf")}, "scale must be"),
        ({"pad": 256}, "pad is 256"),
        ({"size": None}, "needs a size"),
        ({"size": (0, 4)}, r"size is \(0, 4\)"),
        ({"size": (4, 16385)}, "size is"),
        ({"shorter_side": 9}, "goes with fit"),
        ({"fit": "resize-crop", "shorter_side": 7}, "less than the size"),
        ({"antialias": True, "interpolation": "area"}, "antialias goes with"),
    ],
)
def test_contradictions_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocess(**{"size": (8, 8), **values})
    plain = {"size": [8, 8], **{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}}
    if all(v == v and v != float("inf") for v in _numbers(plain)):  # JSON has no other numbers
        with pytest.raises(msgspec.ValidationError, match=message):
            msgspec.json.decode(msgspec.json.encode(plain), type=Preprocess)


def _numbers(tree: dict[str, Any]) -> Iterator[float]:
    for value in tree.values():
        yield from (v for v in (value if isinstance(value, list) else [value]) if isinstance(v, float))


def test_it_survives_the_manifest() -> None:
    for p in (YOLOX, FASTESTDET, MOBILENET, Preprocess(size=None, fit="none", color="y")):
        again = msgspec.json.decode(msgspec.json.encode(p), type=Preprocess)
        assert again == p
        assert hash(again) == hash(p)


FITS = st.sampled_from(["letterbox", "stretch", "resize-crop"])


@settings(max_examples=150, deadline=None)
@given(
    frame=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    fit=FITS,
    anchor=st.sampled_from(["center", "top-left"]),
    upscale=st.booleans(),
    rounding=st.sampled_from(["round", "floor"]),
    color=st.sampled_from(["rgb", "bgr", "y"]),
    antialias=st.booleans(),
    layout=st.sampled_from(["nchw", "nhwc"]),
)
def test_every_element_is_written(frame: tuple[int, int], size: tuple[int, int], **options: Any) -> None:
    # All pixels of the frame are 200: what is not 200 must be padding, 9, and lie outside the frame.
    ours = Preprocess(size=size, pad=9, scale=1.0, **options)
    shape = ours.tensor_shape(*frame)
    floats = ours.layout == "nchw"
    out = np.full(shape, np.nan if floats else 123, np.float32 if floats else np.uint8)
    geometry = prepare(ours, np.full((*frame, 3), 200, np.uint8), out=out)
    pixels = out.transpose(1, 2, 0) if floats else out
    top, left = round(geometry.offset_y), round(geometry.offset_x)
    bottom = top + round(frame[0] * geometry.scale_y)
    right = left + round(frame[1] * geometry.scale_x)
    expected = np.full((*size, 1), 9.0)
    expected[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = 200.0
    np.testing.assert_array_equal(pixels, np.broadcast_to(expected, pixels.shape))
    if ours.fit != "letterbox":
        assert (pixels == 200).all()


@settings(max_examples=150, deadline=None)
@given(
    frame=st.tuples(st.integers(2, 3000), st.integers(2, 3000)),
    size=st.tuples(st.integers(16, 1280), st.integers(16, 1280)),
    options=st.fixed_dictionaries({"fit": FITS, "anchor": st.sampled_from(["center", "top-left"])}),
    seed=st.integers(0, 99),
)
def test_boxes_go_there_and_back(
    frame: tuple[int, int], size: tuple[int, int], options: dict[str, Any], seed: int
) -> None:
    # Cutting a square out of a sliver would first enlarge it a hundredfold.
    assume(options["fit"] != "resize-crop" or max(frame) <= 4 * min(frame))
    _, geometry = prepared(Preprocess(size=size, **options), np.zeros((*frame, 3), np.uint8))
    corners = np.random.default_rng(seed).uniform(0, 1, (20, 2, 2)) * (frame[1], frame[0])
    boxes = np.concatenate((corners.min(1), corners.max(1)), 1).astype(np.float32)
    there = geometry.boxes_to_input(boxes)
    np.testing.assert_allclose(geometry.boxes_to_image(there), boxes, rtol=1e-4, atol=0.02)
    points = geometry.points_to_image(there[:, :2])
    np.testing.assert_allclose(points, boxes[:, :2], rtol=1e-4, atol=0.02)
    assert there.dtype == points.dtype == np.float32
    outside = geometry.boxes_to_image(np.array([[-1e4, -1e4, 1e5, 1e5]], np.float32))
    np.testing.assert_array_equal(outside, [[0, 0, frame[1], frame[0]]])
    assert geometry.boxes_to_image(np.empty((0, 4), np.float32)).shape == (0, 4)


@pytest.mark.parametrize("fit", ["letterbox", "stretch", "resize-crop"])
def test_the_geometry_says_where_a_mark_lies(fit: Any) -> None:
    # A white rectangle of the frame must be found in the input where boxes_to_input puts it.
    frame = np.zeros((240, 320, 3), np.uint8)
    frame[100:140, 130:190] = 255
    tensor, geometry = prepared(Preprocess(size=(160, 192), fit=fit, pad=0), frame)
    ys, xs = np.nonzero(tensor[0, 0] > 0.5)
    found = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    expected = geometry.boxes_to_input(np.array([[130, 100, 190, 140]], np.float32))[0]
    np.testing.assert_allclose(found, expected, atol=0.75)


@pytest.mark.parametrize(
    ("fit", "step"), list(itertools.product(["letterbox", "stretch", "resize-crop", "none"], [1, 8]))
)
def test_a_map_is_laid_over_the_frame(fit: Any, step: int) -> None:
    # A plane is unchanged by bilinear interpolation, so its values on the frame are known.
    height, width = (192, 256) if fit == "none" else (151, 203)
    preprocess = Preprocess(size=(192, 256), fit=fit)
    _, geometry = prepared(preprocess, picture(height, width))
    y, x = np.mgrid[: 192 // step, : 256 // step].astype(np.float32)
    plane = 2 * (x + 0.5) * step + 3 * (y + 0.5) * step  # a function of input pixels
    mapped = geometry.map_to_image(plane)
    assert mapped.shape == (height, width)
    assert mapped.dtype == np.float32
    y, x = np.mgrid[:height, :width].astype(np.float32) + 0.5
    in_x, in_y = x * geometry.scale_x + geometry.offset_x, y * geometry.scale_y + geometry.offset_y
    # Beyond the outermost centres of the map the nearest value stands.
    half = step / 2
    expected = 2 * in_x.clip(half, 256 - half) + 3 * in_y.clip(half, 192 - half)
    np.testing.assert_allclose(mapped, expected, atol=step * 5 / 32)  # OpenCV's steps of 1/32 pixel
