"""A module with canonical outputs to a slim ONNX graph whose nodes name their modules."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common
from torch import nn

from edgesmith.converters.passes.fold_batchnorm import FoldBatchNorm
from edgesmith.converters.rewrites import rewritten
from edgesmith.converters.trace import (
    Lines,
    Origin,
    annotate,
    line_of,
    module_path,
    paths_by_name,
    restore,
    strip,
)
from edgesmith.sdk.errors import ExportError, UnsupportedOperatorError
from edgesmith.sdk.manifest import Batch

log = logging.getLogger(__name__)
OPSET = 20
INPUT = "images"


def export_module(
    module: nn.Module,
    network: nn.Module,
    *,
    output_names: Sequence[str],
    channels: int,
    size: tuple[int, int] | None,
    batch: Batch,
    lines: Lines | None = None,
) -> onnx.ModelProto:
    """Export ``module``, in which the user's ``network`` sits, at opset 20.

    Args:
        module: images (N, C, H, W) to a tuple of tensors, one for each of ``output_names``.
        network: the user's own module, for the module paths.
        output_names: names of the graph's outputs, in order.
        channels: C.
        size: (H, W), or None for a graph of any height and width.
        batch: fixed, or a range: then the batch axis is symbolic.
        lines: filled with the lines of the user's code that nodes came from.

    Raises:
        ExportError: the module cannot be traced; the message names the place in the user's code.
        UnsupportedOperatorError: an operator has no ONNX counterpart.
    """
    program = _traced(module, network, _example(channels, size, batch), _axes(size, batch))
    with quiet():
        program = rewritten(program)
        try:
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=list(output_names),
                optimize=True,
                verbose=False,
            )
        except Exception as error:
            # The exporter wraps what its translations raise; the class differs from release to release.
            raise _told_conversion(error, program, module, network) from error
    if exported is None:
        raise ExportError("the exporter of torch gave no program back; try another version of torch")
    model = exported.model
    places = [(node, line_of(node)) for node in model.graph] if lines is not None else []
    annotate(model, Origin.of(module, network))
    for node, line in places:
        if lines is not None and line is not None:
            lines.setdefault((module_path(node), node.op_type), {})[line] = None
    _check_interface(model, batch, size, output_names)
    name_axes(model, batch, size)
    return finished(model)


def slim(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Fold BatchNorm, then simplify; every node keeps its module path.

    Raises:
        ExportError: the simplifier failed on the graph.
    """
    model = ir.from_proto(proto)
    common.RemoveInitializersFromInputsPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    result = FoldBatchNorm()(model)
    for place in result.declined:
        log.info("BatchNorm stays at %s: %s", place.node, place.reason)
    paths = paths_by_name(model)
    import onnxslim  # brings its own table of patterns, by import

    try:
        with quiet():
            slimmed = onnxslim.slim(ir.to_proto(result.model))
    except Exception as error:
        # onnxslim raises plain Exceptions of many kinds.
        raise ExportError(
            f"onnxslim failed on the exported graph ({type(error).__name__}: {error}); "
            "export the model with plain operators, or with another version of onnxslim"
        ) from error
    model = ir.from_proto(slimmed)
    restore(model, paths)
    return finished(model)


def finished(model: ir.Model) -> onnx.ModelProto:
    """The graph as it is stored: checked, shapes inferred, nothing of this machine in it."""
    strip(model)
    model.producer_name, model.producer_version = "edgesmith", None
    model.graph.name = "main"
    common.TopologicalSortPass()(model)
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]
    proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    onnx.checker.check_model(proto)
    return proto


def _example(channels: int, size: tuple[int, int] | None, batch: Batch) -> torch.Tensor:
    # A symbolic axis is traced with a value of its own: 0 and 1 would be taken for constants.
    count = batch.opt if batch.fixed else max(2, batch.opt)
    height, width = size or (48, 64)
    return torch.zeros(count, channels, height, width)


def _axes(size: tuple[int, int] | None, batch: Batch) -> dict[int, Any]:
    axes: dict[int, Any] = {}
    if not batch.fixed:
        axes[0] = torch.export.Dim("batch", min=batch.min, max=max(batch.max, 2))
    if size is None:
        axes[2], axes[3] = torch.export.Dim("height", min=2), torch.export.Dim("width", min=2)
    return axes


def _traced(
    module: nn.Module, network: nn.Module, example: torch.Tensor, axes: dict[int, Any]
) -> torch.export.ExportedProgram:
    with quiet(), torch.no_grad():
        try:
            return torch.export.export(
                module, (example,), dynamic_shapes=(axes,) if axes else None, strict=False
            )
        except Exception as error:
            # Whatever the user's forward raises comes through here, beside torch's own errors.
            raise _told_tracing(error, network, example, axes) from error


def _told_tracing(
    error: Exception, network: nn.Module, example: torch.Tensor, axes: dict[int, Any]
) -> ExportError:
    """Why tracing failed: the module path, the line of the user's code, and what to change."""
    place = _place(error, network)
    text = str(error)
    shape = tuple(example.shape)
    if "onstraints violated" in text or "specialized it to be a constant" in text:
        names = " and ".join(str(axis.__name__) for axis in axes.values())
        return ExportError(
            f"the model fixes an axis that should stay open ({names}){place}: a size is computed as a plain "
            "number, as in x.view(int(n), -1); use x.flatten(1) or x.shape, or set input.batch to one number"
        )
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    if "data-dependent" in text or "GuardOnDataDependent" in type(error).__name__:
        return ExportError(
            f"the model decides by the values of a tensor{place}, and a graph cannot: {first}. Replace the "
            "`if` or the index with torch.where or a mask, or leave that part out of the exported forward"
        )
    return ExportError(
        f"the model cannot be traced on an input of {shape}{place}: {type(error).__name__}: {first}"
    )


def _place(error: BaseException, network: nn.Module) -> str:
    """`` in module a.b (file, line n)``: the innermost module whose forward was running."""
    names = {id(m): n for n, m in network.named_modules()}
    path: str | None = None
    frame_at: tuple[str, int] | None = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and id(owner) in names:
            path = names[id(owner)]
        file = frame.f_code.co_filename
        if path is not None and "site-packages" not in file and not file.startswith("<"):
            frame_at = (file, line)
    if path is None:
        return ""
    where = f" (at {frame_at[0]}, line {frame_at[1]})" if frame_at else ""
    return f" in module {path or type(network).__name__}{where}"


_NO_FUNCTION = re.compile(r"No ONNX function found for <OpOverload\(op='([^']+)'")


def _told_conversion(
    error: Exception, program: torch.export.ExportedProgram, module: nn.Module, network: nn.Module
) -> ExportError:
    """Which operator ONNX lacks and which module called it, from the exporter's chain of errors."""
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    text = "\n".join(str(e) for e in chain)
    found = _NO_FUNCTION.search(text)
    if found is None:
        last = next((line.strip() for line in str(chain[-1]).splitlines() if line.strip()), "")
        return ExportError(
            f"the traced model cannot be written as ONNX at opset {OPSET}: {type(chain[-1]).__name__}: {last}"
        )
    operator, path = _caller(found[1].replace("::", "."), program, Origin.of(module, network))
    where = f" in module {path or type(network).__name__}" if path is not None else ""
    return UnsupportedOperatorError(
        f"{operator}{where} has no counterpart in ONNX opset {OPSET}: write that step with other operators, "
        "or leave it out of the exported forward and do it after the model",
        operator=operator,
        module=path,
    )


def _caller(operator: str, program: torch.export.ExportedProgram, origin: Origin) -> tuple[str, str | None]:
    """The operator as the model called it, and the module that did.

    The exporter decomposes operators before it translates them (``aten.special_bessel_j0`` becomes
    ``prims.bessel_j0``), so the last part of the name has to do where the whole is not found.
    """
    targets = [
        (str(node.target), node) for graph in (program.graph, program.run_decompositions().graph)
        for node in graph.nodes if node.op == "call_function"
    ]  # fmt: skip
    exact = [(t, n) for t, n in targets if t.startswith(f"{operator}.") or t == operator]
    alike = [(t, n) for t, n in targets if operator.rpartition(".")[2] in t]
    for target, node in exact or alike:
        stack = node.meta.get("nn_module_stack") or {}
        known = [str(path) for path, _ in stack.values() if str(path) in origin.modules]
        return ".".join(target.split(".")[:2]), origin.inner(known[-1]) if known else None
    return operator, None


def _check_interface(
    model: ir.Model, batch: Batch, size: tuple[int, int] | None, output_names: Sequence[str]
) -> None:
    """The exporter falls back to fixed axes without an error; that is not what was asked."""
    shape = model.graph.inputs[0].shape
    assert shape is not None
    if not batch.fixed and isinstance(shape[0], int):
        raise ExportError(
            f"the exported graph takes {shape[0]} images at a time although input.batch is a range; "
            "use x.flatten(1) or x.shape in the model in place of fixed sizes, or set one number"
        )
    if size is None and (isinstance(shape[2], int) or isinstance(shape[3], int)):
        raise ExportError(f"the exported graph takes {shape[2]} x {shape[3]} only; set input.size to it")
    names = [value.name for value in model.graph.outputs]
    if names != list(output_names):
        got, wanted = ", ".join(map(str, names)), ", ".join(output_names)
        raise ExportError(
            f"the exported graph has the outputs {got}, not {wanted}: "
            "two outputs are the same tensor, or one is a constant"
        )


def name_axes(model: ir.Model, batch: Batch, size: tuple[int, int] | None) -> None:
    """Call the symbolic axes ``batch``, ``height`` and ``width``, in the input and in the outputs."""
    shape = model.graph.inputs[0].shape
    assert shape is not None
    wanted = {
        0: None if batch.fixed else "batch",
        2: None if size else "height",
        3: None if size else "width",
    }
    names: dict[str, str] = {}
    for axis, name in wanted.items():
        dim = shape[axis]
        if name is not None and not isinstance(dim, int):
            names[str(dim.value)] = name
    for value in [*model.graph.inputs, *model.graph.outputs]:
        if value.shape is None:
            continue
        dims = [d if isinstance(d, int) else str(d.value) for d in value.shape]
        value.shape = ir.Shape([d if isinstance(d, int) else _substituted(d, names) for d in dims])


def _substituted(text: str, names: Mapping[str, str]) -> str:
    return re.sub(r"\w+", lambda m: names.get(m[0], m[0]), text)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress lines and no deprecation notes of the exporters' own code while they run."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        # What these packages warn about is their own use of each other; faults come as exceptions,
        # and what the graph computes is compared afterwards.
        warnings.filterwarnings("ignore", module=r"(torch|onnxscript|onnx_ir|onnxslim|copyreg)(\.|$)")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        # nn.LSTM and nn.GRU gather their weights in a list in every forward; the weights are buffers too.
        warnings.filterwarnings("ignore", message=r"The tensor attributes? .*_flat_weights")
        yield
