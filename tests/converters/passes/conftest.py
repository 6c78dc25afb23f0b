"""Small graphs written as text, run as they stand, with and without their roundings; and compiled."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from edgesmith.calibration.scale_table import Quantizer
from edgesmith.calibration.sites import sites_of
from edgesmith.converters import compile_check as checking
from edgesmith.converters.passes.insert_qdq import quantized_weight

Parsed = Callable[..., ir.Model]


@pytest.fixture
def parsed() -> Parsed:
    """A graph from text; a keyword argument is a constant: its array, or the shape of a seeded one."""

    def make(text: str, **constants: NDArray[np.float32] | tuple[int, ...]) -> ir.Model:
        proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> {text}')
        random = np.random.default_rng(11)
        for name, given in constants.items():
            if isinstance(given, tuple):
                spread = 1.5 / np.sqrt(np.prod(given[1:])) if len(given) > 1 else 0.3
                given = random.normal(0, spread, given).astype(np.float32)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(given, name))
        onnx.checker.check_model(proto)
        proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        return ir.serde.deserialize_model(proto)

    return make


@pytest.fixture
def ran() -> Callable[[ir.Model, NDArray[np.float32]], list[NDArray[Any]]]:
    """A model's outputs in onnxruntime, no node optimised away; the graph is checked first."""

    def run(model: ir.Model, image: NDArray[np.float32]) -> list[NDArray[Any]]:
        proto = ir.to_proto(model)
        onnx.checker.check_model(proto, full_check=True)
        settings = onnxruntime.SessionOptions()
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        settings.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            proto.SerializeToString(), settings, providers=["CPUExecutionProvider"]
        )
        return list(session.run(None, {session.get_inputs()[0].name: image}))

    return run


@pytest.fixture
def bare() -> Callable[[ir.Model], ir.Model]:
    """A quantized graph without its roundings: the Q and DQ of activations taken out."""

    def strip(model: ir.Model) -> ir.Model:
        model = ir.serde.deserialize_model(ir.to_proto(model))
        for node in list(model.graph):
            if node.op_type == "QuantizeLinear":
                source = node.inputs[0]
                assert source is not None
                for use in list(node.outputs[0].uses()):
                    ir.convenience.replace_all_uses_with(use.node.outputs[0], source)
                    model.graph.remove(use.node, safe=True)
                model.graph.remove(node, safe=True)
        return model

    return strip


@pytest.fixture
def on_grid() -> Callable[[ir.Model, Mapping[str, Quantizer]], ir.Model]:
    """A float graph whose weights are those that the integers stand for: all that is left is arithmetic."""

    def rounded(model: ir.Model, quantizers: Mapping[str, Quantizer]) -> ir.Model:
        model = ir.serde.deserialize_model(ir.to_proto(model))
        for site in sites_of(model):
            if site.activation not in quantizers:
                continue
            weight, scale = quantized_weight(site, quantizers[site.activation].factor)
            integers = np.clip(np.rint(weight / scale), -127, 127)
            ratio = np.divide(integers * scale, weight, out=np.zeros_like(weight), where=weight != 0)
            name = f"{site.name}/on_grid"
            array = (site.weight * ratio).astype(np.float32)
            value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
            model.graph.initializers[name] = value
            site.node.replace_input_with(1, value)
        return model

    return rounded


@pytest.fixture(scope="session")
def placed() -> Callable[[ir.Model, Collection[str]], dict[str, str]]:
    """Compile for a GPU; the type that each named layer reads. Skips where the builder is not installed."""

    def compile_for(model: ir.Model, layers: Collection[str]) -> dict[str, str]:
        if importlib.util.find_spec(checking.PACKAGE) is None:
            pytest.skip("the extra trt-check is not installed")
        report = checking.compile_check(ir.to_proto(model).SerializeToString(), meant_int8=layers)
        if report.outcome == "not-installed":
            pytest.skip("the builder does not load here")
        assert report.compiled, report.errors
        return dict.fromkeys(report.int8, "Int8") | {
            layer.node: layer.runs_in for layer in report.float_instead
        }

    return compile_for
