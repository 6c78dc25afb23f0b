"""The process in which TensorRT-RTX compiles a graph: ``python -m ...compile_worker FOLDER``.

A process of its own because the first logger that registers in a process receives the layer dump of every
build, and because a native crash must not end the conversion. Reads ``graph.onnx`` and ``job.json`` of the
folder and writes ``answer.json``. It needs no GPU: kernels are compiled later, on the device.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import msgspec

LAYERS = "Layers:\n"
TARGET = "SM86"  # the nearest that is offered to Orin's 8.7: the same generation, the same integer kernels
CANNOT_LOAD = 3  # exit status where the package does not load


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What to compile for: least, usual and largest batch, and the ``(H, W)`` of an input without a size."""

    batch: tuple[int, int, int]
    size: tuple[int, int]


class ParserError(msgspec.Struct, frozen=True, kw_only=True):
    """One error of the parser, as it came; ``node`` is -1 where it concerns the graph."""

    code: str
    node: int
    name: str
    operator: str
    text: str


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the builder did. ``layers`` is the dump, one compiled layer a line."""

    version: str
    compiled: bool
    seconds: float
    layers: str = ""
    parser: tuple[ParserError, ...] = ()
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def compile_graph(graph: bytes, job: Job) -> Answer:
    """Parse and build, with the layer dump switched on. Never raises for a graph that is refused."""
    import tensorrt_rtx_bindings as trt

    log = _logger(trt)
    begun = time.perf_counter()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        errors = tuple(_parser_error(parser.get_error(n)) for n in range(parser.num_errors))
        spent = time.perf_counter() - begun
        return Answer(version=str(trt.__version__), compiled=False, seconds=spent, parser=errors)
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1  # the count has to be set before the capability
    config.set_compute_capability(getattr(trt.ComputeCapability, TARGET), 0)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    _add_profile(builder, network, config, job)
    plan = builder.build_serialized_network(network, config)
    return Answer(
        version=str(trt.__version__),
        compiled=plan is not None,
        seconds=time.perf_counter() - begun,
        layers=log.layers,
        errors=tuple(log.errors),
        warnings=tuple(dict.fromkeys(log.warnings)),
    )


def _logger(trt: Any) -> Any:
    severity = trt.ILogger.Severity

    class Log(trt.ILogger):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # super() does not reach the native part
            self.layers = ""
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, level: Any, message: str) -> None:
            if level in (severity.ERROR, severity.INTERNAL_ERROR):
                self.errors.append(message)
            elif level == severity.WARNING:
                self.warnings.append(message)
            elif message.startswith(LAYERS):
                self.layers += message.removeprefix(LAYERS)

    return Log()


def _parser_error(error: Any) -> ParserError:
    return ParserError(
        code=str(error.code()).rpartition(".")[2],
        node=error.node(),
        name=error.node_name(),
        operator=error.node_operator(),
        text=error.desc(),
    )


def _add_profile(builder: Any, network: Any, config: Any, job: Job) -> None:
    """One optimization profile for the axes that are open: batch, height and width."""
    profile, needed = builder.create_optimization_profile(), False
    for number in range(network.num_inputs):
        value = network.get_input(number)
        shape = tuple(value.shape)
        if -1 not in shape:
            continue
        needed = True
        sizes = {0: None, 2: job.size[0], 3: job.size[1]}
        ranges = [
            [(count if sizes.get(axis) is None else sizes[axis]) if length == -1 else length
             for axis, length in enumerate(shape)]
            for count in job.batch
        ]  # fmt: skip
        profile.set_shape(value.name, *ranges)
    if needed:
        config.add_optimization_profile(profile)


def main(folder: Path) -> None:
    """Compile what lies in the folder, and leave the answer there."""
    job = msgspec.json.decode((folder / "job.json").read_bytes(), type=Job)
    try:
        answer = compile_graph((folder / "graph.onnx").read_bytes(), job)
    except ImportError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(CANNOT_LOAD)
    (folder / "answer.json").write_bytes(msgspec.json.encode(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
