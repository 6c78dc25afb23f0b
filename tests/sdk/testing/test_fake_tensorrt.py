"""The fake TensorRT keeps to the documented contract."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from edgesmith.sdk.onnx_reader import read_outline
from edgesmith.sdk.testing.fake_runtime import HostMemory
from edgesmith.sdk.testing.fake_tensorrt import FakeTensorRT, make
from edgesmith.sdk.testing.simulated import read_plan

GRAPH = onnx.parser.parse_model(
    """
    <ir_version: 9, opset_import: ["" : 20]>
    agraph (float[N, 3, 4, 4] images) => (float[N, 3] logits, float[N, 3, 4, 4] half)
    <int64[2] plane = {2, 3}, float two = {2.0}>
    { logits = ReduceMean <keepdims = 0> (images, plane) [cut] half = Div (images, two) }
    """
).SerializeToString()


def built(
    trt: Any, *, profile: bool = True, typed: bool = True, **flags: bool
) -> tuple[bytes | None, list[str]]:
    """The plan, and what the log says."""
    log = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(log)
    bit = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if typed else 0
    network = builder.create_network(bit)
    assert trt.OnnxParser(network, log).parse(GRAPH)
    config = builder.create_builder_config()
    for name in flags:
        config.set_flag(getattr(trt.BuilderFlag, name))
    if profile:
        ranges = builder.create_optimization_profile()
        ranges.set_shape("images", (1, 3, 4, 4), (2, 3, 4, 4), (4, 3, 4, 4))
        config.add_optimization_profile(ranges)
    return builder.build_serialized_network(network, config), [text for _, text in log.lines]


@pytest.fixture
def memory() -> HostMemory:
    return HostMemory()


@pytest.fixture
def trt(memory: HostMemory) -> Any:
    return FakeTensorRT(cuda=memory)


def opened(trt: Any) -> tuple[Any, Any]:
    log = trt.Logger()
    engine = trt.Runtime(log).deserialize_cuda_engine(built(trt)[0])
    return engine.create_execution_context(), log


def bound(trt: Any, memory: HostMemory, count: int = 2) -> tuple[Any, Any, np.ndarray[Any, Any]]:
    """A context with everything set; its log; the images."""
    context, log = opened(trt)
    images = np.random.default_rng(0).random((count, 3, 4, 4), np.float32)
    assert context.set_input_shape("images", images.shape)
    for name in ("images", "logits", "half"):
        size = int(np.prod(context.get_tensor_shape(name))) * 4
        assert context.set_tensor_address(name, memory.allocate(size))
    memory.write(context.get_tensor_address("images"), images.view(np.uint8).reshape(-1))
    return context, log, images


def test_it_computes(trt: Any, memory: HostMemory) -> None:
    context, _, images = bound(trt, memory)
    assert context.get_tensor_shape("logits") == (2, 3)
    assert context.execute_async_v3(1)
    got = memory.read(context.get_tensor_address("half"), 2 * 48 * 4).view(np.float32)
    np.testing.assert_allclose(got.reshape(images.shape), images / 2)


def test_a_run_with_something_missing_is_false_and_logged(trt: Any, memory: HostMemory) -> None:
    context, log = opened(trt)
    assert context.infer_shapes() == ["images"]
    assert not context.execute_async_v3(1)
    assert context.set_input_shape("images", (1, 3, 4, 4))
    assert context.set_tensor_address("images", memory.allocate(192))
    assert not context.execute_async_v3(1)
    assert "address or allocator is set for tensor logits" in log.lines[-1][1]
    assert not context.set_tensor_address("nothing", 1)


@pytest.mark.parametrize("shape", [(5, 3, 4, 4), (0, 3, 4, 4), (1, 3, 5, 4), (1, 3, 4)])
def test_a_shape_out_of_the_profile_is_false_and_logged(trt: Any, shape: tuple[int, ...]) -> None:
    context, log = opened(trt)
    assert not context.set_input_shape("images", shape)
    assert "profile" in log.lines[-1][1]


def test_memory_that_was_freed_is_an_error(trt: Any, memory: HostMemory) -> None:
    context, _, _ = bound(trt, memory)
    memory.free(context.get_tensor_address("images"))
    with pytest.raises(KeyError):
        context.execute_async_v3(1)


def test_capture_needs_a_run_outside_of_it_first(trt: Any, memory: HostMemory) -> None:
    context, log, _ = bound(trt, memory)
    capturing = True
    memory.is_capturing = lambda stream: capturing  # type: ignore[method-assign]
    assert not context.execute_async_v3(1)
    assert "run once outside of it first" in log.lines[-1][1]
    capturing = False
    assert context.execute_async_v3(1)
    capturing = True
    assert context.execute_async_v3(1)
    assert context.set_input_shape("images", (1, 3, 4, 4))
    assert not context.execute_async_v3(1)


def test_a_context_without_its_scratch_memory_does_not_run(trt: Any, memory: HostMemory) -> None:
    engine = trt.Runtime(trt.Logger()).deserialize_cuda_engine(built(trt)[0])
    context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    assert context.set_input_shape("images", (1, 3, 4, 4))
    for name in ("images", "logits", "half"):
        assert context.set_tensor_address(name, memory.allocate(192))
    assert not context.execute_async_v3(1)
    size = engine.device_memory_size_v2
    context.set_device_memory(memory.allocate(size), size)
    assert context.execute_async_v3(1)


@pytest.mark.parametrize(
    ("made", "runs", "said"),
    [
        (
            {"version": "10.13.3"},
            {},
            "not compatible with this version of TensorRT, expecting library version 10.3",
        ),
        ({"compute_capability": (8, 6)}, {}, "incompatible device, expecting compute 8.7 got compute 8.6"),
        ({"version": "1.7.1"}, {}, "Serialization"),
    ],
)
def test_a_plan_of_elsewhere_gives_none(made: dict[str, Any], runs: dict[str, Any], said: str) -> None:
    plan, _ = built(FakeTensorRT(**made))
    trt: Any = FakeTensorRT(**runs)
    log = trt.Logger()
    assert trt.Runtime(log).deserialize_cuda_engine(plan) is None
    assert said in log.lines[-1][1]


def test_a_changed_plan_gives_none(trt: Any) -> None:
    plan = bytearray(built(trt)[0] or b"")
    plan[-1] ^= 1
    log = trt.Logger()
    assert trt.Runtime(log).deserialize_cuda_engine(bytes(plan)) is None
    assert trt.Runtime(log).deserialize_cuda_engine(bytes(plan[:40])) is None


def test_a_version_compatible_plan_loads_later_if_that_is_allowed() -> None:
    plan, _ = built(FakeTensorRT(version="10.3.0"), VERSION_COMPATIBLE=True)
    later: Any = FakeTensorRT(version="10.13.3")
    runtime = later.Runtime(later.Logger())
    assert runtime.deserialize_cuda_engine(plan) is None
    runtime.engine_host_code_allowed = True
    assert runtime.deserialize_cuda_engine(plan) is not None
    next_major: Any = FakeTensorRT(version="11.4.1")
    runtime = next_major.Runtime(next_major.Logger())
    runtime.engine_host_code_allowed = True
    assert runtime.deserialize_cuda_engine(plan) is None


def test_the_header_is_that_of_real_plans() -> None:
    assert (built(FakeTensorRT(version="10.13.3.9"))[0] or b"")[24:28] == bytes((10, 13, 3, 9))
    rtx = built(FakeTensorRT(version="1.7.1.116"))[0] or b""
    assert (rtx[:4], rtx[24:28], int.from_bytes(rtx[16:24], "little")) == (
        b"vtrt",
        bytes((1, 7, 1, 116)),
        len(rtx),
    )


def test_a_build_without_a_profile_gives_none(trt: Any) -> None:
    plan, said = built(trt, profile=False)
    assert plan is None
    assert "no optimization profile has been defined" in said[-1]


def test_builder_precisions_do_not_go_with_strong_types(trt: Any) -> None:
    plan, said = built(trt, FP16=True)
    assert plan is None
    assert "BuilderFlag FP16 is set on a strongly typed network" in said[-1]
    assert built(trt, typed=False, FP16=True)[0] is not None
    assert not hasattr(make(version="11.4.1").BuilderFlag, "FP16")


def test_the_monitor_can_cancel(trt: Any) -> None:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def step_complete(self, phase_name: str, step: int) -> bool:
            return step < 3

    log = trt.Logger()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    assert trt.OnnxParser(network, log).parse(GRAPH)
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("images", (1, 3, 4, 4), (1, 3, 4, 4), (1, 3, 4, 4))
    config.add_optimization_profile(profile)
    config.progress_monitor = Monitor()
    assert builder.build_serialized_network(network, config) is None
    assert "BuildCanceled" in log.lines[-1][1]


def test_what_the_parser_refuses_has_node_and_code(trt: Any) -> None:
    parser = trt.OnnxParser(trt.Builder(trt.Logger()).create_network(0), trt.Logger())
    assert not parser.parse(b"not a model")
    assert parser.get_error(0).code() == trt.ErrorCode.MODEL_DESERIALIZE_FAILED
    odd = onnx.parser.parse_model(
        """
        <ir_version: 9, opset_import: ["" : 20]>
        agraph (uint8[2, 2] a, uint8[2, 2] b) => (int32[2, 2] c) { [odd] c = MatMulInteger (a, b) }
        """
    )
    assert not parser.parse(odd.SerializeToString())
    error = parser.get_error(0)
    assert (error.node_name(), error.node_operator(), error.desc()) == ("odd", "MatMulInteger", "false")


def test_planted_faults_name_a_graph_by_format_or_hash(memory: HostMemory) -> None:
    for wrong in (("fp32",), ("int8",)):
        trt: Any = FakeTensorRT(cuda=memory, wrong=wrong)
        context, _, images = bound(trt, memory)
        assert context.execute_async_v3(1)
        got = memory.read(context.get_tensor_address("logits"), 24).view(np.float32).reshape(2, 3)
        off = 1.0 if wrong == ("fp32",) else 0.0
        np.testing.assert_allclose(got, images.mean((2, 3)) + off, rtol=1e-5)


def test_the_outline_is_that_of_onnx() -> None:
    outline, model = read_outline(GRAPH), onnx.load_from_string(GRAPH)
    assert [(n.name, n.operator, n.inputs, n.outputs) for n in outline.nodes] == [
        (n.name, n.op_type, tuple(n.input), tuple(n.output)) for n in model.graph.node
    ]
    assert outline.inputs == (("images", "float32", (-1, 3, 4, 4)),)
    assert outline.weights == {"plane": "int64", "two": "float32"}
    for at in range(1, len(GRAPH), 7):
        try:
            read_outline(GRAPH[:at])
        except ValueError:
            continue  # cut in the middle of a field; elsewhere it is a shorter model
    with pytest.raises(ValueError, match="no graph"):
        read_outline(b"")


def test_a_fake_is_made_from_its_specification() -> None:
    trt = FakeTensorRT(version="10.3.0", compute_capability=(8, 7), num_DLA_cores=2)
    assert trt.simulated.num_DLA_cores == 2
    assert read_plan(built(trt)[0] or b"", rtx=False).compute_capability == (8, 7)
    with pytest.raises(TypeError, match="no such fake TensorRT"):
        make(colour="red")
