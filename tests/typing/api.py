"""Checked by mypy, never run: what a caller's type checker sees of the public calls."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from typing_extensions import assert_type

from edgesmith.sdk import (
    Classifications,
    Classifier,
    Detection,
    Detections,
    Detector,
    Segmentation,
    Segmenter,
    TensorModel,
    Tensors,
)

Frame8 = NDArray[np.uint8]


def calls(frame: Frame8) -> None:
    detector = Detector.load("model.edge")
    assert_type(detector, Detector)
    assert_type(detector(frame), Detections)
    assert_type(detector([frame, frame], score=0.5), list[Detections])
    assert_type(detector.clone(), Detector)
    assert_type(detector(frame)[0], Detection)
    assert_type(detector(frame)[:2], Detections)
    assert_type(detector(frame).boxes, NDArray[np.float32])
    assert_type(Classifier.load("model.edge")(frame), Classifications)
    assert_type(Segmenter.load("model.edge")(frame), Segmentation)
    assert_type(Segmenter.load("model.edge")([frame]), list[Segmentation])
    assert_type(TensorModel.load("model.edge")(frame), Tensors)
