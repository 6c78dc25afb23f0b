"""Foreign networks, images, and a small exporter for the adapters' tests."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

Arrays = dict[str, NDArray[Any]]


class Fixed(nn.Module):
    """Returns what it was made with, whatever the image."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result

    def forward(self, images: Tensor) -> Any:
        return self.result


@pytest.fixture(scope="session")
def fixed() -> type[Fixed]:
    """A module that returns what it was made with."""
    return Fixed


@pytest.fixture(scope="session")
def noise() -> Callable[..., tuple[Tensor, ...]]:
    """Seeded normal noise, one tensor a shape: logits of some network."""

    def make(*shapes: tuple[int, ...], seed: int = 0) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(shape, generator=generator) * 2 for shape in shapes)

    return make


@pytest.fixture(scope="session")
def foreign(assets: Path) -> Callable[[str, str], tuple[ModuleType, nn.Module]]:
    """A network's file of the assets and the network with its trained weights: ``(file, factory)``."""

    def load(file: str, factory: str) -> tuple[ModuleType, nn.Module]:
        path = assets / "networks" / f"{file}.py"
        spec = importlib.util.spec_from_file_location(f"foreign_{file}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        network: nn.Module = getattr(module, factory)()
        network.load_state_dict(load_file(assets / "weights" / f"{factory}.safetensors"))
        return module, network

    return load


@pytest.fixture(scope="session")
def pictures(assets: Path) -> Callable[[int], list[NDArray[np.uint8]]]:
    """The first ``n`` labelled pictures, BGR uint8."""

    def read(count: int) -> list[NDArray[np.uint8]]:
        paths = sorted((assets / "coco_val").glob("*.jpg"))[:count]
        assert len(paths) == count
        images = [cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR) for path in paths]
        return [np.asarray(image, np.uint8) for image in images]

    return read


@pytest.fixture(scope="session")
def exported() -> Callable[..., onnx.ModelProto]:
    """``exported(module, inputs, output_names)``: ONNX of opset 20 with a free batch."""

    def export(module: nn.Module, inputs: tuple[Tensor, ...], output_names: Sequence[str]) -> onnx.ModelProto:
        batch = torch.export.Dim("batch")
        with warnings.catch_warnings():
            # Two inputs of one batch: torch tells that their axes have one name, which is meant.
            warnings.filterwarnings("ignore", message="# The axis name: batch will not be used")
            program = torch.onnx.export(
                module.eval(),
                tuple(torch.cat((x, x)) for x in inputs),
                dynamo=True,
                opset_version=20,
                input_names=[f"input_{i}" for i in range(len(inputs))],
                output_names=list(output_names),
                dynamic_shapes=tuple({0: batch} for _ in inputs),
                verbose=False,
            )
        assert program is not None
        return program.model_proto

    return export


@pytest.fixture(scope="session")
def session() -> Callable[[onnx.ModelProto], Callable[..., Arrays]]:
    """``session(model)``: a function from input arrays to the outputs by name, on one thread."""

    def open_session(model: onnx.ModelProto) -> Callable[..., Arrays]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        opened = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        names = [output.name for output in opened.get_outputs()]
        inputs = [value.name for value in opened.get_inputs()]

        def run(*arrays: NDArray[Any]) -> Arrays:
            return dict(zip(names, opened.run(None, dict(zip(inputs, arrays, strict=True))), strict=True))

        return run

    return open_session
