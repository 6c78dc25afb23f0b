"""Compile a graph for a GPU of Orin's generation, on a machine without one, and read what runs in INT8.

    report = compile_check(graph, meant_int8=["stem/Conv"], batch=Batch(min=1, opt=1, max=4))
    report.require()

TensorRT-RTX has the same ONNX parser and compiler as TensorRT. What it refuses, TensorRT refuses too, but
for the few operators of :data:`TENSORRT_ONLY`; where it puts a layer in float, so, as a rule, does TensorRT.
Nothing that it builds runs on a Jetson: only what it says counts.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from edgesmith.calibration.sites import MODULE_KEY
from edgesmith.converters.compile_worker import CANNOT_LOAD, Answer, Job, ParserError
from edgesmith.sdk.errors import ExportError, UnsupportedOperatorError
from edgesmith.sdk.manifest import Batch

log = logging.getLogger(__name__)
PACKAGE = "tensorrt_rtx_bindings"
# Refused by RTX, which has no plugins and no data-dependent shapes; TensorRT 10 takes them.
TENSORRT_ONLY = frozenset({"NonMaxSuppression", "NonZero", "RoiAlign", "DeformConv"})
_HELPERS = frozenset(
    {"kgen", "signal", "wait", "maxpool", "avgpool"}
)  # layers that hold no weighted operator
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=\[|\s|$)")
_CUDA_NOISE = re.compile(r"catchCudaError|cudaError \d+")
_SOURCE = re.compile(r"\s*(?:In \w+ at |\[\w+\.cpp::)\S+\]?")
_WRAPPED = re.compile(r"^(?:\[?\S*::\S*\s*)*Error Code \d+: [^(]*\(?")


class FloatLayer(msgspec.Struct, frozen=True, kw_only=True):
    """A layer that was meant for INT8 and runs otherwise.

    ``runs_in`` is the type that the compiled layer reads (``Float``, ``Half``), empty where no compiled
    layer holds the node.
    """

    node: str
    module: str | None
    runs_in: str

    def __str__(self) -> str:
        place = f" (module {self.module})" if self.module else ""
        return f"{self.node}{place} {f'runs in {self.runs_in}' if self.runs_in else 'was optimised away'}"


class CompileError(msgspec.Struct, frozen=True, kw_only=True):
    """Why the graph was not compiled; ``node`` is empty where no node is at fault.

    ``tensorrt_only`` is true where RTX alone lacks the operator and TensorRT has it.
    """

    code: str
    node: str
    operator: str
    module: str | None
    text: str
    tensorrt_only: bool = False

    def __str__(self) -> str:
        if not self.node:
            return self.text
        place = f" in module {self.module}" if self.module else ""
        return f"{self.operator or 'node'} {self.node}{place}: {self.text}"


class CompileReport(msgspec.Struct, frozen=True, kw_only=True):
    """What compiling showed.

    ``outcome``: ``not-installed`` (the package is absent, or does not load) says nothing about the graph.
    ``layers`` counts compiled layers, ``int8`` names the nodes meant for INT8 that run so, ``float_instead``
    the others.
    """

    outcome: Literal["compiled", "refused", "not-installed"]
    version: str = ""
    seconds: float = 0.0
    layers: int = 0
    int8: tuple[str, ...] = ()
    float_instead: tuple[FloatLayer, ...] = ()
    errors: tuple[CompileError, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def compiled(self) -> bool:
        """True where the builder made a plan."""
        return self.outcome == "compiled"

    def require(self, *, placement: bool = True) -> None:
        """Raise unless the graph compiled (or could not be tried), and, on request, everything runs in INT8.

        A graph that only RTX refuses passes, with a warning in the log.

        Raises:
            UnsupportedOperatorError: an operator is not supported.
            ExportError: the graph is refused for another reason, or a layer fell to float.
        """
        if self.errors:
            first = self.errors[0]
            if first.tensorrt_only:
                log.warning("%s: not compiled here; TensorRT itself has this operator", first)
                return
            message = f"TensorRT does not take the graph: {first}"
            if first.code.startswith("UNSUPPORTED") or "Plugin not found" in first.text:
                raise UnsupportedOperatorError(
                    f"{message}; write that step with other operators, or do it after the model",
                    operator=first.operator,
                    module=first.module,
                )
            raise ExportError(message)
        if placement and self.float_instead:
            shown = "; ".join(str(layer) for layer in self.float_instead[:5])
            more = len(self.float_instead) - 5
            raise ExportError(
                f"{len(self.float_instead)} layers that are quantized would not run in INT8: {shown}"
                f"{f'; and {more} more' if more > 0 else ''}. Put the Q/DQ pair directly in front of each, "
                "or list them in precision.keep_float"
            )


def compile_check(
    graph: bytes,
    *,
    meant_int8: Collection[str] = (),
    batch: Batch | None = None,
    size: tuple[int, int] = (640, 640),
    timeout: float = 600.0,
) -> CompileReport:
    """Compile an ONNX graph with TensorRT-RTX for compute capability 8.6.

    Args:
        graph: the ONNX model.
        meant_int8: names of the nodes (Conv, Gemm, MatMul) that were quantized.
        batch: range of a symbolic batch axis; 1 where it is not given.
        size: ``(H, W)`` in pixels for a graph of any height and width.
        timeout: seconds after which the builder is given up.

    Raises:
        ExportError: the bytes are not an ONNX model, or ``meant_int8`` names a node that is not in it.
    """
    nodes = _nodes(graph)
    absent = [name for name in meant_int8 if name not in nodes]
    if absent:
        raise ExportError(f"the graph has no node named {absent[0]}: it cannot have been meant for INT8")
    if importlib.util.find_spec(PACKAGE) is None:
        log.info("compile check left out: pip install 'edgesmith[trt-check]'")
        return CompileReport(outcome="not-installed")
    batch = batch or Batch()
    answer = _ask(graph, Job(batch=(batch.min, batch.opt, batch.max), size=size), timeout)
    if isinstance(answer, _Unusable):
        log.warning("compile check left out: %s", answer.reason)
        return CompileReport(outcome="not-installed", warnings=(answer.reason,))
    if isinstance(answer, str):
        error = CompileError(code="BUILDER", node="", operator="", module=None, text=answer)
        return CompileReport(outcome="refused", errors=(error,))
    if not answer.compiled:
        return CompileReport(
            outcome="refused",
            version=answer.version,
            seconds=answer.seconds,
            errors=_errors(answer, nodes),
            warnings=_cleaned(answer.warnings),
        )
    types = layer_types(answer.layers)
    runs = {name: types.get(name, ()) for name in meant_int8}
    wrong = {name: found for name, found in runs.items() if set(found) != {"Int8"}}
    return CompileReport(
        outcome="compiled",
        version=answer.version,
        seconds=answer.seconds,
        layers=len(_layer_lines(answer.layers)),
        int8=tuple(name for name in runs if name not in wrong),
        float_instead=tuple(
            FloatLayer(
                node=name, module=_module(nodes[name]), runs_in=next((t for t in found if t != "Int8"), "")
            )
            for name, found in wrong.items()
        ),
        warnings=_cleaned(answer.warnings),
    )


def layer_types(dump: str) -> dict[str, tuple[str, ...]]:
    """The type of the first input of each compiled layer that does a node's work, by node name.

    Of the layers whose metadata names a weighted node, those that quantize or add in front of it or behind it
    are generated pointwise kernels (``kgen``). Where no other layer names it, the kernel did the work itself.
    """
    found: dict[str, list[str]] = {}
    pointwise: dict[str, list[str]] = {}
    for line in _layer_lines(dump):
        kind = re.search(r", LayerType: (\w+)", line)
        first = re.search(r"Datatype: (\w+)", line.partition(", Outputs:")[0].partition("Constants:")[0])
        if kind is None or first is None or (kind[1] in _HELPERS and kind[1] != "kgen"):
            continue
        target = pointwise if kind[1] == "kgen" else found
        for name in _NODE.findall(line.rpartition("Metadata:")[2]):
            target.setdefault(name, []).append(first[1])
    return {name: tuple(found.get(name) or pointwise[name]) for name in {**pointwise, **found}}


def _layer_lines(dump: str) -> list[str]:
    return [line for line in dump.splitlines() if line.startswith("Name: ")]


@dataclass(frozen=True)
class _Unusable:
    """The package is there and does not load."""

    reason: str


def _ask(graph: bytes, job: Job, timeout: float) -> Answer | _Unusable | str:
    """The builder's answer, or how it ended without one."""
    with tempfile.TemporaryDirectory(prefix="edgesmith-compile-") as name:
        folder = Path(name)
        (folder / "graph.onnx").write_bytes(graph)
        (folder / "job.json").write_bytes(msgspec.json.encode(job))
        command = [sys.executable, "-m", "edgesmith.converters.compile_worker", name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired:
            return f"the builder was stopped after {timeout:g} s"
        answer = folder / "answer.json"
        if done.returncode == 0 and answer.is_file():
            return msgspec.json.decode(answer.read_bytes(), type=Answer)
    if done.returncode < 0:
        return f"the builder crashed ({signal.Signals(-done.returncode).name})"
    last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message")
    if done.returncode == CANNOT_LOAD:
        return _Unusable(last.strip())
    return f"the builder ended without an answer: {last.strip()}"


def _nodes(graph: bytes) -> dict[str, onnx.NodeProto]:
    try:
        model = onnx.load_from_string(graph)
    except DecodeError as error:
        raise ExportError("the bytes are not an ONNX model") from error
    return {node.name: node for node in model.graph.node}


def _module(node: onnx.NodeProto | None) -> str | None:
    properties = node.metadata_props if node is not None else []
    return next((p.value for p in properties if p.key == MODULE_KEY), None)


def _errors(answer: Answer, nodes: Mapping[str, onnx.NodeProto]) -> tuple[CompileError, ...]:
    """The errors of the parser, else those of the build, which are only in its log."""
    if answer.parser:
        return tuple(_of_parser(error, nodes) for error in answer.parser)
    texts = [text for text in answer.errors if not _CUDA_NOISE.search(text)] or ["no reason was logged"]
    return tuple(_of_build(text, nodes) for text in dict.fromkeys(texts))


def _of_parser(error: ParserError, nodes: Mapping[str, onnx.NodeProto]) -> CompileError:
    lines = [line for line in error.text.splitlines() if not _CUDA_NOISE.search(line)]
    if lines and error.name and lines[0] == f"Invalid Node - {error.name}":
        lines = lines[1:]
    text = _clean(lines[0], error.name) if lines else error.code
    if text == "false":  # the parser's whole message for an operator that it does not know
        text = "this operator is not supported"
    node = nodes.get(error.name)
    return CompileError(
        code=error.code,
        node=error.name or (f"number {error.node}" if error.node >= 0 else ""),
        operator=error.operator,
        module=_module(node),
        text=text,
        tensorrt_only=error.operator in TENSORRT_ONLY,
    )


def _of_build(text: str, nodes: Mapping[str, onnx.NodeProto]) -> CompileError:
    # The longest name: that of a Conv is a part of the name of the Q/DQ in front of it.
    name = max((n for n in nodes if n and n in text), key=len, default="")
    node = nodes.get(name)
    operator = node.op_type if node is not None else ""
    return CompileError(
        code="BUILD",
        node=name,
        operator=operator,
        module=_module(node),
        text=_clean(text, name),
        tensorrt_only=operator in TENSORRT_ONLY,
    )


def _clean(text: str, node: str = "") -> str:
    """The sentence, without the places in NVIDIA's sources, the failed C++ condition and the node's name."""
    shorter = _WRAPPED.sub("", _SOURCE.sub("", text).strip()).strip()
    if shorter.endswith(")") and shorter.count(")") > shorter.count("("):
        shorter = shorter[:-1]
    if quoted := re.search(r'&& "([^"]+)"$', shorter):
        shorter = quoted[1]
    if shorter.startswith("Assertion failed: "):
        shorter = shorter.removeprefix("Assertion failed: ")
        shorter = shorter.partition(": ")[2] or shorter
    if node:
        shorter = re.sub(rf"^(?:I\w+ )?(?:{re.escape(node)}: )+", "", shorter)
    return shorter.strip() or text


def _cleaned(warnings: Collection[str]) -> tuple[str, ...]:
    # A node of our graphs never reads or makes 64-bit integers at the graph's edge.
    return tuple(dict.fromkeys(_clean(w) for w in warnings if "has Int64 binding" not in w))
