"""The bundle's self-test: pictures and what the graph makes of them, the same bytes every time."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray

from edgesmith.calibration.images import tensors
from edgesmith.converters.runners import Outputs, graph_runner, outputs_of
from edgesmith.sdk.errors import ExportError
from edgesmith.sdk.manifest import Batch, Nms, Preprocess
from edgesmith.sdk.preprocess import Frame8, prepared
from edgesmith.sdk.selftest import as_seen, sample, sample_name

PICTURES = 2
# Enough pixels for every preprocess to have something to resize, and a bundle that stays small.
LONGEST_SIDE = 640
# Numbers of one output that are kept; class maps of large pictures have tens of millions.
MOST_VALUES = 400_000
# Of a graph that takes any size, whose outputs grow with its input.
ANY_SIZE = 160
# What another engine may differ by, in float32 with TF32 and other kernels: half a pixel moves no box
# that matters, two thousandths no score, and a hundredth of the range no class.
BOX_PIXELS = 0.5
SCORE = 2e-3
SHARE_OF_RANGE = 1e-2
# With NMS in the graph the rows are in order of score, and near ties swap between engines: the
# scores in their order are compared, the boxes that go with them are not.
NMS_TOLERANCES = {"scores": SCORE, "candidate_scores": SCORE, "count": 1.0}


def golden_pictures(images: Sequence[Frame8], preprocess: Preprocess) -> list[Frame8]:
    """The first pictures, at the size at which the preprocess leaves them as they are.

    Where the graph takes any size all get one size, to share a tensor.
    """
    if preprocess.size is not None:
        return [_without_resize(image, preprocess) for image in images[:PICTURES]]
    chosen = [_shrunk(image, ANY_SIZE) for image in images[:PICTURES]]
    height, width = (min(c.shape[axis] for c in chosen) for axis in (0, 1))
    return [np.ascontiguousarray(c[:height, :width]) for c in chosen]


def resize_check(image: Frame8, preprocess: Preprocess) -> tuple[Frame8, Frame8] | None:
    """A picture that is resized on its way in, and what the network sees of it, uint8 ``(H, W, C)``.

    None where the preprocess resizes nothing.
    """
    if preprocess.fit == "none":
        return None
    small = _shrunk(image)
    seen = as_seen(preprocess, small).transpose(1, 2, 0)
    return small, np.ascontiguousarray(seen.astype(np.uint8))


def _without_resize(image: Frame8, preprocess: Preprocess) -> Frame8:
    geometry = prepared(preprocess, image)[1]
    size = round(geometry.scale_x * geometry.width), round(geometry.scale_y * geometry.height)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _shrunk(image: Frame8, longest: int = LONGEST_SIDE) -> Frame8:
    factor = longest / max(image.shape[:2])
    if factor >= 1:
        return image
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def golden_outputs(
    model: onnx.ModelProto, pictures: Sequence[Frame8], preprocess: Preprocess, batch: Batch, nms: Nms | None
) -> dict[str, NDArray[Any]]:
    """What the graph gives for the pictures, by output, stacked along the batch axis."""
    rows: list[Outputs] = outputs_of(graph_runner(model), tensors(pictures, preprocess), batch)
    compared = NMS_TOLERANCES if nms is not None and nms.where == "graph" else rows[0]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0] if name in compared}


def sampled(expected: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The arrays as they are stored: of large maps every n-th row and column, to keep a bundle small."""
    return {sample_name(name, n := _step(values)): sample(values, n) for name, values in expected.items()}


def _step(values: NDArray[Any]) -> int:
    """The least step that leaves at most :data:`MOST_VALUES` of an output; 1 where it is no map."""
    if values.ndim < 4:
        return 1
    step = 1
    while sample(values, step).size > MOST_VALUES:
        step += 1
    return step


def tolerances(expected: Mapping[str, NDArray[Any]], nms: Nms | None) -> dict[str, float]:
    """The largest absolute difference allowed for each output, in its own units."""
    if nms is not None and nms.where == "graph":
        return {name: NMS_TOLERANCES[name] for name in expected}
    if nms is not None:
        return {name: BOX_PIXELS if name == "boxes" else SCORE for name in expected}
    return {name: SHARE_OF_RANGE * (float(np.ptp(values)) or 1.0) for name, values in expected.items()}


def png(image: Frame8) -> bytes:
    """A picture, losslessly."""
    done, data = cv2.imencode(".png", image)
    if not done:
        raise ExportError(f"OpenCV could not write a picture of {image.shape} as PNG")
    return data.tobytes()


def npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """An ``.npz`` without the time of day: the same arrays give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(arrays):
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(arrays[name]), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content.getvalue())
    return buffer.getvalue()
