"""The rules that TensorRT has and its parser does not enforce, checked before anything is written.

for finding in lint(model):
    print(finding)
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from edgesmith.converters.operators import OLDEST
from edgesmith.converters.passes.finding import Finding
from edgesmith.converters.passes.lint_operators import operator_findings
from edgesmith.converters.passes.lint_quantization import quantization_findings
from edgesmith.sdk.errors import ExportError, UnsupportedOperatorError

OPSETS = (19, 20)  # taken by every TensorRT from 10.3 on, with FP16 scales
SHOWN = 5
_OPERATOR_RULES = frozenset(
    {"operator", "integer-operator", "custom-operator", "operator-setting", "operator-version", "topk-limit"}
)


def lint(model: ir.Model) -> tuple[Finding, ...]:
    """Every place that breaks a rule, in the order of the graph, operators first."""
    opset = model.graph.opset_imports.get("", model.graph.opset_imports.get("ai.onnx", 0))
    return (*_opset(opset), *operator_findings(model), *quantization_findings(model, opset))


def require_operators(model: ir.Model, tensorrt: str = OLDEST) -> None:
    """Refuse a graph with operators that TensorRT does not take, whatever its precision.

    Raises:
        UnsupportedOperatorError: the message names the first few, with node, module path and what helps.
    """
    _refuse(tuple(operator_findings(model, tensorrt)))


def require_clean(model: ir.Model) -> None:
    """Refuse a graph that breaks a rule.

    Raises:
        UnsupportedOperatorError: the first finding is an operator that TensorRT lacks.
        ExportError: it is another one. The message names the first few, with node and module path.
    """
    _refuse(lint(model))


def _refuse(findings: tuple[Finding, ...]) -> None:
    if not findings:
        return
    rest = len(findings) - SHOWN
    message = "TensorRT would not run this graph as it is meant: " + "\n  ".join(
        ["", *map(str, findings[:SHOWN]), *([f"and {rest} more"] if rest > 0 else [])]
    )
    first = findings[0]
    if first.rule in _OPERATOR_RULES:
        raise UnsupportedOperatorError(message, operator=first.operator, module=first.module)
    raise ExportError(message)


def _opset(opset: int) -> Iterator[Finding]:
    if not OPSETS[0] <= opset <= OPSETS[1]:
        yield Finding(
            rule="opset",
            node="",
            operator="",
            module=None,
            what=f"the graph is of opset {opset}",
            mend=f"export at opset {OPSETS[0]} or {OPSETS[1]}, which every TensorRT from 10.3 on takes",
        )
