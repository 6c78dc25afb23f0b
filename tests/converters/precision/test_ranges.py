"""Ranges by channel of every tensor, and values of what activation functions read."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from edgesmith.converters.precision.ranges import POSITIONS, channel_ranges

GRAPH = """
<ir_version: 9, opset_import: ["" : 20]>
g (float[N, 3, 8, 8] images) => (float[N, 3] y)
<int64[2] plane = {2, 3}, int64[2] sizes = {0, -1}>
{
  a = Neg (images)
  s = Sigmoid (a)
  flat = Reshape (s, sizes)
  dims = Shape (a)
  y = ReduceMean <keepdims = 0> (a, plane)
}
"""


@pytest.fixture(scope="module")
def graph() -> onnx.ModelProto:
    return onnx.parser.parse_model(GRAPH)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [
        (rng.normal(0, 1, (1, 3, 8, 8)) * np.array([1, 10, 100]).reshape(1, 3, 1, 1)).astype(np.float32)
        for _ in range(5)
    ]


def test_extremes_are_those_of_all_images_by_channel(
    graph: onnx.ModelProto, images: list[np.ndarray]
) -> None:
    found = channel_ranges(graph, images)
    values = np.concatenate(images)
    np.testing.assert_array_equal(found["a"].low, -values.max((0, 2, 3)))
    np.testing.assert_array_equal(found["a"].high, -values.min((0, 2, 3)))
    np.testing.assert_allclose(found["s"].high, 1 / (1 + np.exp(values.min((0, 2, 3)))), rtol=1e-5)
    assert "dims" not in found  # integers have no range


def test_values_are_kept_of_arguments_of_activations_alone(
    graph: onnx.ModelProto, images: list[np.ndarray]
) -> None:
    found = channel_ranges(graph, images)
    assert found["s"].sample is None
    sample = found["a"].sample
    assert sample is not None
    assert sample.shape == (len(images) * POSITIONS, 3)
    # Each row holds the channels of one position of its image.
    pixels = {tuple(-p) for image in images for p in image[0].reshape(3, -1).T}
    assert {tuple(row.astype(np.float32)) for row in sample} <= pixels


def test_two_runs_give_the_same(graph: onnx.ModelProto, images: list[np.ndarray]) -> None:
    one, two = channel_ranges(graph, images), channel_ranges(graph, images)
    np.testing.assert_array_equal(one["a"].sample, two["a"].sample)


def test_a_factor_scales_everything(graph: onnx.ModelProto, images: list[np.ndarray]) -> None:
    found, factor = channel_ranges(graph, images)["a"], np.array([1.0, 0.1, 0.01])
    scaled = found.times(factor)
    np.testing.assert_allclose(scaled.low, found.low * factor)
    np.testing.assert_allclose(scaled.high, found.high * factor)
    assert scaled.sample is not None
    assert found.sample is not None
    np.testing.assert_allclose(scaled.sample, found.sample * factor)
