"""The roofline of small graphs, worked out by hand, and of trained networks whose size is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesmith.device_profiles import DeviceProfile, Figure, load_profile
from edgesmith.sdk.board.roofline import Estimate, estimate
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.errors import BundleError, ConfigError, DeviceProfileError
from edgesmith.sdk.onnx_reader import read_outline

# orin-nano-8gb in its usual mode: 1024 cores x 2 x 625 MHz, and what its profile states.
FP32, FP16, INT8, BANDWIDTH = 1.28e12, 10.2e12, 20.5e12, 68e9


def nano() -> DeviceProfile:
    return load_profile("orin-nano-8gb")


def graph(
    nodes: Sequence[onnx.NodeProto],
    x: Sequence[int | str],
    weights: dict[str, tuple[int, ...]],
    integers: Sequence[str] = (),
    *,
    shapes: bool = True,
) -> bytes:
    """A model from ``x`` to ``z``; the shapes between come from onnx's own inference."""
    tensors = [
        numpy_helper.from_array(np.zeros(shape, np.int8 if name in integers else np.float32), name)
        for name, shape in weights.items()
    ]
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        list(nodes), "g", [value("x", TensorProto.FLOAT, x)], [value("z", TensorProto.FLOAT, None)], tensors
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)])
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    if not shapes:
        del inferred.graph.value_info[:]
    return bytes(inferred.SerializeToString())


def conv(x: str, w: str, y: str, *, kernel: int = 3, group: int = 1) -> onnx.NodeProto:
    return helper.make_node("Conv", [x, w], [y], name=f"{y}/Conv", pads=[kernel // 2] * 4, group=group)


def of(model: bytes, **settings: object) -> Estimate:
    return estimate(read_outline(model), settings.pop("device", nano()), **settings)  # type: ignore[arg-type]


TWO = graph(
    [conv("x", "w", "y"), helper.make_node("Relu", ["y"], ["r"]), conv("r", "v", "z", group=32)],
    (1, 16, 8, 8),
    {"w": (32, 16, 3, 3), "v": (32, 1, 3, 3)},
)


def test_a_convolution_by_hand() -> None:
    first, second = of(TWO).layers
    assert first.operators == ("Conv", "Relu")
    assert first.macs == 32 * 8 * 8 * 16 * 9 == 294_912
    assert first.flops == 2 * 294_912 + 2048  # one operation a value for the Relu
    assert first.weights == 32 * 16 * 9 == 4608
    # x has 1024 values of 4 bytes whatever the engine computes in; r has 2048.
    moved = {p: (c.bytes_read, c.bytes_written) for p, c in first.costs.items()}
    assert moved == {
        "fp32": (4096 + 4 * 4608, 4 * 2048),
        "fp16": (4096 + 2 * 4608, 2 * 2048),
        "int8": (4096 + 4608, 2 * 2048),  # the depthwise layer, which reads r, stays in float
    }
    fp32, fp16, int8 = (first.costs[p] for p in ("fp32", "fp16", "int8"))
    assert fp32.compute_us == pytest.approx((2 * 294_912 + 2048) / FP32 * 1e6)
    assert fp32.memory_us == pytest.approx((4096 + 18_432 + 8192) / BANDWIDTH * 1e6)
    assert (fp32.bound, fp32.time_us) == ("compute", fp32.compute_us)
    assert fp16.compute_us == pytest.approx(2 * 294_912 / FP16 * 1e6)
    assert fp16.bound == "memory"
    assert fp16.time_us == fp16.memory_us == pytest.approx(17_408 / BANDWIDTH * 1e6)
    # 16 channels in are filled up to 32.
    assert int8.compute_us == pytest.approx(2 * 2 * 294_912 / INT8 * 1e6)
    assert first.int8_gain == pytest.approx(17_408 / 12_800)
    assert first.no_gain == ""
    assert (int8.int8, second.costs["int8"].int8) == (True, False)
    assert second.no_gain == "depthwise: not on tensor cores"
    assert second.costs["fp16"].compute_us == pytest.approx(2 * 32 * 64 * 9 / FP32 * 1e6)
    assert second.int8_gain == 1


def test_totals_are_sums_and_memory_is_what_lives_at_once() -> None:
    found = of(TWO)
    assert found.macs == 294_912 + 18_432
    assert found.weights == 4608 + 288
    for precision, total in found.totals.items():
        times = [layer.costs[precision].time_us for layer in found.layers]
        assert total.time_ms == pytest.approx(sum(times) / 1e3)
    assert found.totals["fp32"].memory_bound_ms == pytest.approx(found.layers[1].costs["fp32"].time_us / 1e3)
    # While the second layer runs: r (2048 values) and z (2048 of 4 bytes); x is gone.
    assert [t.activation_bytes for t in found.totals.values()] == [16_384, 12_288, 12_288]
    assert [t.weight_bytes for t in found.totals.values()] == [4 * 4896, 2 * 4896, 4608 + 2 * 288]
    assert found.int8_gain == pytest.approx(found.totals["fp16"].time_ms / found.totals["int8"].time_ms)


def test_the_mode_sets_the_peaks() -> None:
    found = of(TWO, mode="super")
    assert (found.mode, found.bandwidth_gb_s) == ("super", 102)
    assert found.peaks == pytest.approx({"fp32": 1024 * 2 * 1020e6 / 1e12, "fp16": 16.7, "int8": 33.4})
    base = of(TWO)
    assert base.layers[1].costs["fp16"].time_us / found.layers[1].costs["fp16"].time_us == pytest.approx(1.5)


def test_few_channels_bring_nothing() -> None:
    (layer,) = of(graph([conv("x", "w", "z")], (1, 3, 64, 64), {"w": (32, 3, 3, 3)})).layers
    assert layer.no_gain == "few channels: 3 in, 32 out"
    assert layer.int8_gain == 1
    # Tensor cores take 8 channels where 3 are asked for.
    assert layer.costs["fp16"].compute_us == pytest.approx(2 * layer.macs * 8 / 3 / FP16 * 1e6)


def test_a_sum_is_fused_and_reads_the_other_branch() -> None:
    nodes = [
        conv("x", "w", "a", kernel=1),
        conv("a", "v", "b", kernel=1),
        helper.make_node("Add", ["a", "b"], ["z"]),
    ]
    first, second = of(graph(nodes, (1, 16, 4, 4), {"w": (16, 16, 1, 1), "v": (16, 16, 1, 1)})).layers
    assert second.operators == ("Conv", "Add")
    # a is read once by the layer; its 256 values and the 256 weights.
    assert second.costs["fp16"].bytes_read == 2 * 256 + 2 * 256
    assert first.costs["fp16"].bytes_written == 2 * 256


def test_reshapes_cost_nothing_and_copies_pass_integers_on() -> None:
    nodes = [
        conv("x", "w", "a", kernel=1),
        helper.make_node("Concat", ["a", "a"], ["c"], axis=1),
        conv("c", "v", "d", kernel=1),
        helper.make_node("Flatten", ["d"], ["z"]),
    ]
    layers = of(graph(nodes, (1, 16, 4, 4), {"w": (16, 16, 1, 1), "v": (16, 32, 1, 1)})).layers
    assert [layer.operators for layer in layers] == [("Conv",), ("Concat",), ("Conv",)]
    assert [layer.costs["int8"].bytes_written for layer in layers] == [256, 512, 4 * 256]
    assert [layer.costs["int8"].int8 for layer in layers] == [True, False, True]
    assert layers[1].costs["fp16"].bytes_written == 1024


def test_a_graph_with_integers_has_its_own_choice() -> None:
    nodes = [
        conv("x", "w", "a", kernel=1),
        helper.make_node("QuantizeLinear", ["a", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["b"]),
        helper.make_node("DequantizeLinear", ["v", "scale", "zero"], ["v_float"]),
        conv("b", "v_float", "z", kernel=1),
    ]
    shapes: dict[str, tuple[int, ...]] = {"w": (32, 32, 1, 1), "v": (32, 32, 1, 1), "scale": (), "zero": ()}
    first, second = of(graph(nodes, (1, 32, 4, 4), shapes, ("v", "zero"))).layers
    assert [layer.costs["int8"].int8 for layer in (first, second)] == [False, True]
    assert first.no_gain == "kept in float by the graph"
    assert (first.weights, second.weights) == (1024, 1024)
    assert first.costs["int8"].bytes_written == second.costs["int8"].bytes_read - 1024 == 512
    assert first.costs["fp16"].bytes_written == 1024


def test_products_of_matrices() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Transpose", ["a"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["a", "t"], ["b"]),
        helper.make_node("Gemm", ["b", "v"], ["z"], transB=1),
    ]
    layers = of(graph(nodes, (4, 32), {"w": (32, 64), "v": (48, 4)})).layers
    assert [layer.macs for layer in layers] == [4 * 64 * 32, 0, 4 * 4 * 64, 4 * 48 * 4]
    # Two activations cannot be quantized as a layer with weights is.
    assert [layer.costs["int8"].int8 for layer in layers] == [True, False, False, False]


def test_a_batch_that_varies_counts_as_asked() -> None:
    model = graph([conv("x", "w", "z")], ("N", 16, 8, 8), {"w": (32, 16, 3, 3)})
    assert of(model, batch=4).macs == 4 * of(model).macs == 4 * 294_912


def test_other_axes_must_be_fixed_and_shapes_stated() -> None:
    with pytest.raises(ConfigError, match=r"m\.onnx: the size of tensor 'x' varies"):
        of(graph([conv("x", "w", "z")], (1, 16, "H", "W"), {"w": (32, 16, 3, 3)}), where="m.onnx")
    nodes = [conv("x", "w", "y"), conv("y", "w", "z")]
    with pytest.raises(BundleError, match="does not state the shape of tensor 'y'"):
        of(graph(nodes, (1, 16, 8, 8), {"w": (16, 16, 3, 3)}, shapes=False))


@pytest.mark.parametrize(
    ("device", "mode", "why"),
    [
        ("generic", None, "generic: no estimate, the profile has no figures"),
        ("agx-xavier", None, "agx-xavier: no estimate, bundles do not run there: JetPack for Xavier"),
        ("orin-nano-8gb", "turbo", "has no mode 'turbo'; it has base, super"),
    ],
)
def test_devices_that_cannot_be_estimated(device: str, mode: str | None, why: str) -> None:
    with pytest.raises(DeviceProfileError, match=why):
        of(TWO, device=load_profile(device), mode=mode)


def test_too_much_for_the_memory_is_a_warning() -> None:
    assert of(TWO).warnings == ()
    assert all(t.fits for t in of(TWO).totals.values())
    small = Figure(value=3e-5, source="made up", status="unverified")  # 30 kB
    found = of(TWO, device=msgspec.structs.replace(nano(), memory_gb=small))
    assert [t.fits for t in found.totals.values()] == [False, True, True]
    (warning,) = found.warnings
    assert warning.startswith("fp32 does not fit")
    assert found.unverified == ("RAM",)


def test_unknown_arithmetic_is_named() -> None:
    einsum = helper.make_node("Einsum", ["x", "x"], ["z"], equation="ij,ij->ij")
    found = of(graph([einsum], (4, 4), {}))
    assert found.warnings == ("only bytes are counted of operators whose arithmetic is not known: Einsum",)
    assert (found.layers[0].uncounted, found.layers[0].flops) == (("Einsum",), 0)


@pytest.mark.assets
@pytest.mark.parametrize(
    ("name", "macs", "rounding", "depthwise"),
    [
        # Published: 1.08 GFLOPs at 416, two a multiply-accumulate, normalisation counted as well.
        pytest.param("yolox_nano", 0.54e9, 0.05, 30, marks=pytest.mark.slow),
        # Published: 41 million each.
        pytest.param("mobilenet_v1_025", 41e6, 0.01, 13, marks=pytest.mark.slow),
        ("resnet20_cifar", 41e6, 0.02, 0),
    ],
)
def test_the_size_of_trained_networks(
    asset_bundle: Callable[..., Path], name: str, macs: float, rounding: float, depthwise: int
) -> None:
    bundle = Bundle.open(asset_bundle(name, precision__mode="fp32"))
    variant = bundle.manifest.variants["float"]
    found = of(bundle.read(variant.member))
    assert found.macs == pytest.approx(macs, rel=rounding)
    assert found.warnings == ()
    times = {p: t.time_ms for p, t in found.totals.items()}
    assert times["fp32"] > times["fp16"] > times["int8"]
    assert sum(layer.no_gain.startswith("depthwise") for layer in found.layers) == depthwise
