"""One place in a graph that breaks a rule of TensorRT's."""

from __future__ import annotations

import msgspec
import onnx_ir as ir

from edgesmith.calibration.sites import MODULE_KEY


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A broken rule: where, what is there, and the change that mends it.

    ``node`` is empty where the graph as a whole is at fault; ``module`` is the dotted path in the user's
    model where it is known, ``operator`` the kind of node.
    """

    rule: str
    node: str
    operator: str
    module: str | None
    what: str
    mend: str

    @classmethod
    def at(cls, rule: str, node: ir.Node, what: str, mend: str) -> Finding:
        """A finding at a node."""
        return cls(
            rule=rule,
            node=label(node),
            operator=node.op_type,
            module=node.metadata_props.get(MODULE_KEY),
            what=what,
            mend=mend,
        )

    def __str__(self) -> str:
        module = f" (module {self.module})" if self.module else ""
        place = f"{self.operator} {self.node}{module}: " if self.node else ""
        return f"{place}{self.what}; {self.mend} [{self.rule}]"


def label(node: ir.Node) -> str:
    """The node's name, else that of what it makes."""
    return node.name or (node.outputs[0].name if node.outputs else None) or ""
