"""The onnxruntime backend as this machine has it: on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgesmith.sdk.backends import onnxruntime as backend_module
from edgesmith.sdk.backends.base import Options
from edgesmith.sdk.backends.onnxruntime import (
    cuda_unavailable,
    open_cpu,
    tensorrt_ep_unavailable,
)
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.errors import BackendError, BindingError

MakeBundle = Callable[..., Path]


def test_a_run_and_a_batch_that_does_not_fit(make_bundle: MakeBundle) -> None:
    backend = open_cpu(Bundle.open(make_bundle()), "float", Options(threads=1))
    assert backend.run(np.zeros((2, 3, 32, 32), np.float32))["boxes"].shape == (2, 3, 4)
    with pytest.raises(BindingError, match=r"could not run float32 \(2, 3, 32, 31\)"):
        backend.run(np.zeros((2, 3, 32, 31), np.float32))
    assert getattr(backend, "on_device", None) is None


def test_a_clone_outlives_the_first(make_bundle: MakeBundle) -> None:
    backend = open_cpu(Bundle.open(make_bundle()), "float", Options(threads=1))
    other = backend.clone()
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.run(np.zeros((1, 3, 32, 32), np.float32))
    with pytest.raises(BackendError, match="closed"):
        backend.clone()
    assert other.run(np.zeros((1, 3, 32, 32), np.float32))["scores"].shape == (1, 3, 1)


def test_what_is_not_built_in_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    built = SimpleNamespace(get_available_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(backend_module, "_library", lambda: built)
    assert "has no CUDA: install edgesmith[gpu]" in (cuda_unavailable() or "")
    assert "has no TensorRT: install edgesmith[gpu]" in (tensorrt_ep_unavailable() or "")
    every = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(built, "get_available_providers", lambda: every)
    assert cuda_unavailable() is None
    assert tensorrt_ep_unavailable() is None
