"""From a node of the graph back to the module of the user's that it came from.

Each node carries the dotted path of its module in its ONNX metadata, under :data:`MODULE_KEY`;
its name begins with that path (``stem.conv/Conv``), and a tensor is called like the node that
makes it. Nothing else of the exporter's metadata stays: stack traces hold paths of the machine.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir
from torch import nn

MODULE_KEY = "edgesmith.module"
_SCOPES = "pkg.torch.onnx.name_scopes"
_STACK = "pkg.torch.onnx.stack_trace"
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')
# Lines of the user's code, in order, by module path and operator.
Lines = dict[tuple[str | None, str], dict[str, None]]
# A module that is called several times: torch.export numbers the calls, `stem.conv@1`.
_CALL = re.compile(r"@\d+$")
_WEIGHTED = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "PRelu", "BatchNormalization", "LayerNormalization"}
)


@dataclass(frozen=True)
class Origin:
    """Names in the module that was exported, and where the user's own network sits inside it.

    ``prefix`` is the dotted path of the network in the exported module (``network``), empty
    where it is the network itself.
    """

    modules: frozenset[str]
    parameters: Mapping[str, int]
    prefix: str

    @classmethod
    def of(cls, exported: nn.Module, network: nn.Module) -> Origin:
        """The names of ``exported``, with ``network`` found in it by identity."""
        modules = dict(exported.named_modules(remove_duplicate=False))
        prefix = next((name for name, module in modules.items() if module is network), "")
        tensors = [
            *exported.named_parameters(remove_duplicate=False),
            *exported.named_buffers(remove_duplicate=False),
        ]
        return cls(frozenset(modules), {name: id(tensor) for name, tensor in tensors}, prefix)

    def inner(self, path: str) -> str | None:
        """A path in the exported module as one in the user's network; None outside of it."""
        if not self.prefix or path == self.prefix:
            return "" if self.prefix else path
        return path.removeprefix(f"{self.prefix}.") if path.startswith(f"{self.prefix}.") else None


def module_path(node: onnx.NodeProto | ir.Node) -> str | None:
    """The dotted path in ``model.named_modules()`` that a node came from; ``""`` is the model itself.

    None for what the conversion added (the decode of the head), and for graphs without module names.
    """
    if isinstance(node, ir.Node):
        return node.metadata_props.get(MODULE_KEY)
    return next((p.value for p in node.metadata_props if p.key == MODULE_KEY), None)


def line_of(node: ir.Node) -> str | None:
    """``file, line n, in forward``: the innermost line of the user's own code that a node came from.

    Known only before :func:`annotate`, and only where torch's exporter made the graph.
    """
    frames = _FRAME.findall(node.metadata_props.get(_STACK, ""))
    own = [frame for frame in frames if "site-packages" not in frame[0] and not frame[0].startswith("<")]
    if not frames:
        return None
    file, line, function = (own or frames)[-1]
    return f"{file}, line {line}, in {function}"


def annotate(model: ir.Model, origin: Origin | None) -> None:
    """Write each node's module path, and names that begin with it; drop all other metadata.

    ``origin`` is None for a ready graph: its own scopes, weight and node names are what there is.
    Weights get the names that they have in the user's network.
    """
    labels: dict[int, str] = {}
    for node in model.graph:
        scope = _scope(node, origin)
        owner = _owner(node, scope, origin)
        path = owner if owner is not None else scope
        inner = path if origin is None or path is None else origin.inner(path)
        node.metadata_props.clear()
        if inner is not None:
            node.metadata_props[MODULE_KEY] = inner
        labels[id(node)] = inner if inner is not None else (path or "")
    strip(model)
    if origin is not None:
        _shorten_weights(model.graph, origin)
    _rename(model, labels)


def strip(model: ir.Model) -> None:
    """Take out documentation and metadata, but for the module paths."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.doc_string = None
    model.graph.doc_string = None
    for node in model.graph:
        node.doc_string = None
        path = node.metadata_props.get(MODULE_KEY)
        node.metadata_props.clear()
        if path is not None:
            node.metadata_props[MODULE_KEY] = path
        for value in node.outputs:
            value.metadata_props.clear()
            value.doc_string = None
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
        value.doc_string = None


def paths_by_name(model: ir.Model) -> dict[str, str]:
    """Module path by node name and by output name, to find nodes again after foreign tools."""
    found: dict[str, str] = {}
    for node in model.graph:
        path = module_path(node)
        if path is None:
            continue
        for name in [node.name, *(v.name for v in node.outputs)]:
            if name:
                found[name] = path
    return found


def restore(model: ir.Model, paths: Mapping[str, str]) -> None:
    """Put paths of :func:`paths_by_name` back; a new node takes that of what it reads, and is named so."""
    labels: dict[int, str] = {}
    for node in model.graph:
        names = [node.name, *(v.name for v in node.outputs)]
        named = next((n for n in names if n and "/" in n), None)
        path = next((paths[n] for n in names if n and n in paths), None)
        if path is None and named is None:
            feeders = [v.producer() for v in node.inputs if v is not None]
            path = next((p for f in feeders if f is not None and (p := module_path(f)) is not None), None)
        node.metadata_props.clear()
        if path is not None:
            node.metadata_props[MODULE_KEY] = path
        labels[id(node)] = path if path is not None else (named or "").rpartition("/")[0]
    _rename(model, labels)


def _scope(node: ir.Node, origin: Origin | None) -> str | None:
    """The innermost module among the scopes that the exporter wrote."""
    text = node.metadata_props.get(_SCOPES)
    if text is None:
        return _from_name(node.name or "") if origin is None else None
    try:
        scopes = [_CALL.sub("", str(s)) for s in ast.literal_eval(text)]
    except (ValueError, SyntaxError):
        return None
    if origin is None:
        return scopes[-2] if len(scopes) > 1 else ""
    return next((s for s in reversed(scopes) if s in origin.modules), None)


def _from_name(name: str) -> str | None:
    """``layer1.0.conv1`` of ``/layer1/layer1.0/conv1/Conv``, as the TorchScript exporter names nodes."""
    if not name.startswith("/"):
        return None
    path = ""
    for part in name.split("/")[1:-1]:
        path = part if not path or part.startswith(f"{path}.") else f"{path}.{part}"
    return path


def _shorten_weights(graph: ir.Graph, origin: Origin) -> None:
    """Take the wrapper's prefix off the names of the weights."""
    for name, value in list(graph.initializers.items()):
        inner = origin.inner(name)
        if inner and inner != name and inner not in graph.initializers:
            graph.initializers.pop(name)
            value.name = inner
            graph.initializers.add(value)


def _owner(node: ir.Node, scope: str | None, origin: Origin | None) -> str | None:
    """The module that owns the weight of a node, where the scope is another's.

    The exporter folds norms into convolutions and gives the result the norm's scope; retraced
    programs have no scopes at all. The weight still has its name.
    """
    if node.op_type not in _WEIGHTED:
        return None
    for value in node.inputs[1:]:
        if value is None or not value.is_initializer() or not value.name or "." not in value.name:
            continue
        owner, _, leaf = value.name.rpartition(".")
        if origin is None:
            return owner if leaf in ("weight", "bias") else None
        if owner not in origin.modules or value.name not in origin.parameters:
            continue
        if scope is not None and origin.parameters.get(f"{scope}.{leaf}") == origin.parameters[value.name]:
            return scope  # a tied weight: exported under the name of its first owner
        return owner
    return None


def _rename(model: ir.Model, labels: Mapping[int, str]) -> None:
    """Name nodes ``path/Op``, numbered where that is not unique, and their tensors after them."""
    taken = {v.name for v in model.graph.inputs} | set(model.graph.initializers)
    taken |= {v.name for v in model.graph.outputs}
    fixed = {id(v) for v in model.graph.outputs}
    counts: dict[str, int] = {}
    for node in model.graph:
        label = labels[id(node)]
        stem = f"{label}/{node.op_type}" if label else f"/{node.op_type}"
        name = stem
        while name in taken or name in counts:
            counts[stem] = counts.get(stem, 0) + 1
            name = f"{stem}_{counts[stem]}"
        counts.setdefault(name, 0)
        node.name = name
        for index, value in enumerate(node.outputs):
            if value.name and id(value) not in fixed:
                value.name = name if index == 0 else f"{name}.{index}"


def unclaimed(model: ir.Model) -> list[str]:
    """Names of convolutions and matrix products without a module path."""
    kinds = ("Conv", "ConvTranspose", "Gemm", "MatMul")
    return [n.name or "" for n in model.graph if n.op_type in kinds and module_path(n) is None]
