"""The device side: frames in, results out.

    camera -> Frame -> preprocess -> backend -> decode -> Detections -> sinks

Needs numpy, msgspec, OpenCV and one inference library; never torch or onnx. A name is imported when
it is first used: reading a bundle needs none of OpenCV, and the command line starts at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgesmith.sdk.bundle import Bundle
    from edgesmith.sdk.cameras import Camera, CameraState, CameraStatus, Frame, open_camera, read_image
    from edgesmith.sdk.errors import EdgesmithError
    from edgesmith.sdk.loop.capture_loop import CaptureLoop
    from edgesmith.sdk.loop.cascade import Cascade, ClassifiedDetections
    from edgesmith.sdk.loop.result import Result
    from edgesmith.sdk.loop.track import Tracker, TrackSettings
    from edgesmith.sdk.manifest import Manifest, Preprocess
    from edgesmith.sdk.maps import Segmentation, Tensors
    from edgesmith.sdk.models import Classifier, Detector, Segmenter, TensorModel, load_model
    from edgesmith.sdk.preprocess import Geometry, prepare, prepared
    from edgesmith.sdk.results import Classification, Classifications, Detection, Detections
    from edgesmith.sdk.selftest import SelfTest, self_test
    from edgesmith.sdk.sinks.open import open_sink

__all__ = [
    # models and their answers
    "Classification",
    "Classifications",
    "Classifier",
    "Detection",
    "Detections",
    "Detector",
    "Segmentation",
    "Segmenter",
    "TensorModel",
    "Tensors",
    "load_model",
    # frames
    "Camera",
    "CameraState",
    "CameraStatus",
    "Frame",
    "open_camera",
    "read_image",
    # loops, what comes of them, and where it goes
    "CaptureLoop",
    "Cascade",
    "ClassifiedDetections",
    "Result",
    "TrackSettings",
    "Tracker",
    "open_sink",
    # the bundle
    "Bundle",
    "Manifest",
    "SelfTest",
    "self_test",
    # the one preprocess
    "Geometry",
    "Preprocess",
    "prepare",
    "prepared",
    # errors
    "EdgesmithError",
]
_HOMES = {
    "bundle": ("Bundle",),
    "cameras": ("Camera", "CameraState", "CameraStatus", "Frame", "open_camera", "read_image"),
    "errors": ("EdgesmithError",),
    "loop.capture_loop": ("CaptureLoop",),
    "loop.cascade": ("Cascade", "ClassifiedDetections"),
    "loop.result": ("Result",),
    "loop.track": ("TrackSettings", "Tracker"),
    "manifest": ("Manifest", "Preprocess"),
    "maps": ("Segmentation", "Tensors"),
    "models": ("Classifier", "Detector", "Segmenter", "TensorModel", "load_model"),
    "preprocess": ("Geometry", "prepare", "prepared"),
    "results": ("Classification", "Classifications", "Detection", "Detections"),
    "selftest": ("SelfTest", "self_test"),
    "sinks.open": ("open_sink",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
            globals()[name] = value  # found at once from now on
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
