"""``docs/operators.md``, made from the table of operators.

python -m edgesmith.converters.operators_page docs/operators.md
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from edgesmith.converters.operators import OLDEST, REWRITES, Operator, every_operator

HEAD = f"""# Operators

Which ONNX operators TensorRT takes, from {OLDEST} on, what it refuses of them, and what helps.
`edgesmith explain` looks a model through against this table before anything is built, and `edgesmith convert`
refuses what stands under "Refused", each time with the module path in your model.

This page is made from `converters/edgesmith/converters/operators.py`: change that, then run
`python -m edgesmith.converters.operators_page docs/operators.md`. "Tried" means that a graph with the
operator went through the parser and the builder here; the others stand in TensorRT's own list.
"""


def page() -> str:
    """The whole page as Markdown."""
    operators = every_operator()
    refused = [one for one in operators if one.verdict == "refused"]
    limited = [one for one in operators if one.verdict == "limits"]
    plain = [one for one in operators if one.verdict == "taken"]
    later = [one for one in operators if one.since != OLDEST]
    parts = [
        HEAD,
        "## Refused\n",
        _table(("operator", "do this instead", "tried"), [(_code(o), o.advice, _tried(o)) for o in refused]),
        "## Taken with limits\n",
        _table(
            ("operator", "what is refused or costs", "do this instead", "tried"),
            [(_code(o), o.limits, o.advice, _tried(o)) for o in limited],
        ),
        "## Later than the oldest TensorRT\n",
        _table(("operator", "from", "before that"), [(_code(o), o.since, o.advice) for o in later]),
        "## Rewritten by the conversion\n",
        _table(
            ("operator", "becomes", "by"),
            [(f"`{one.operator}`", one.becomes, f"`{one.module}`") for one in REWRITES],
        ),
        "## Taken\n",
        "Tried: " + ", ".join(_code(o) for o in plain if o.tried) + ".\n",
        "Documented: " + ", ".join(_code(o) for o in plain if not o.tried) + ".\n",
    ]
    return "\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _code(one: Operator) -> str:
    return f"`{one.name}`"


def _tried(one: Operator) -> str:
    return "yes" if one.tried else ""


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
