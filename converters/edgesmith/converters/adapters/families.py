"""The table of families, and the choice among them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from edgesmith.converters.adapters.base import Declined, Family, Head, Outputs, Undecided
from edgesmith.sdk.errors import RecipeError, SourceError
from edgesmith.sdk.manifest import Task

_HERE = "edgesmith.converters.adapters"
# task: {the recipe's model.head: module:class}
FAMILIES: dict[Task, dict[str, str]] = {
    "detect": {
        "yolox": f"{_HERE}.yolox:YoloxHead",
        "yolov5": f"{_HERE}.yolov5:Yolov5Head",
        "yolov3": f"{_HERE}.yolov3:Yolov3Head",
        "yolov8": f"{_HERE}.yolov8:Yolov8",
        "nanodet": f"{_HERE}.nanodet:NanoDetHead",
        "fastestdet": f"{_HERE}.fastestdet:FastestDetHead",
        "end_to_end": f"{_HERE}.end_to_end:EndToEnd",
        "detr": f"{_HERE}.detr:Detr",
        "centernet": f"{_HERE}.centernet:CenterNetHead",
        "cornernet": f"{_HERE}.cornernet:CornerNetHead",
        "torchvision": f"{_HERE}.torchvision:TorchvisionDetectors",
        "canonical": f"{_HERE}.canonical:CanonicalHead",
    },
    "classify": {"classifier": f"{_HERE}.classifier:ClassifierHead"},
    "segment": {"segmenter": f"{_HERE}.passthrough:SegmenterHead"},
    "tensor": {"tensors": f"{_HERE}.passthrough:TensorsHead"},
}


def load_family(task: Task, name: str) -> Family:
    """Import one family of the table."""
    module, attribute = FAMILIES[task][name].split(":")
    return cast(Family, getattr(importlib.import_module(module), attribute))


def choose(head: str, task: Task, seen: Outputs, python_path: Sequence[Path]) -> tuple[str, Head]:
    """The family that ``model.head`` means and its head for the outputs seen.

    ``auto`` tries every family of the task, and takes one only if no other fits.

    Raises:
        RecipeError: there is no such head, an option is not the head's, or ``auto`` finds none or
            several; ``key`` is the entry at fault.
        SourceError: the outputs are not what the named head, or the task, takes.
    """
    if ":" in head:
        from edgesmith.converters.adapters.user import UserHead

        if task != "detect":
            raise RecipeError(
                f'model.head = "{head}": a decode of your own goes with task "detect", not "{task}"',
                key="model.head",
            )
        return head, UserHead.from_outputs(head, seen, python_path)
    if head == "auto":
        return _only_fit(task, seen)
    if head not in FAMILIES[task]:
        known = ", ".join(("auto", *FAMILIES[task], *(("module:function",) if task == "detect" else ())))
        raise RecipeError(f'model.head = "{head}" is not a head of task "{task}": {known}', key="model.head")
    family = load_family(task, head)
    foreign = sorted(set(seen.options) - family.OPTIONS)
    if foreign:
        raise RecipeError(
            f"model.head_options: {_foreign(head, foreign, family)}", key=f"model.head_options.{foreign[0]}"
        )
    found = family.from_outputs(seen)
    if isinstance(found, Declined):
        raise SourceError(
            f'model.head = "{head}" does not fit the outputs {_seen(seen)}: {found.reason}'
            f"{_hint(task, head, seen)}"
        )
    return head, found


def _only_fit(task: Task, seen: Outputs) -> tuple[str, Head]:
    known = frozenset().union(*(load_family(task, name).OPTIONS for name in FAMILIES[task]))
    foreign = sorted(set(seen.options) - known)
    if foreign:
        raise RecipeError(
            f'model.head_options: no head of task "{task}" takes {", ".join(foreign)}; '
            f"the options are {', '.join(sorted(known)) or 'none'}",
            key=f"model.head_options.{foreign[0]}",
        )
    fits, declined = _tried(task, seen)
    open_ones = {name: no.reason for name, no in declined.items() if isinstance(no, Undecided)}
    if len(fits) == 1 and not open_ones:
        return fits.popitem()
    if fits or open_ones:
        candidates = {name: head.describe() for name, head in fits.items()} | open_ones
        names = " or ".join(f'"{name}"' for name in candidates)
        read = "; ".join(f"{name}: {what}" for name, what in candidates.items())
        missing = (
            "" if seen.labels is not None else ", or give labels, whose number decides between most heads"
        )
        raise RecipeError(
            f'model.head = "auto" is in doubt: the outputs {_seen(seen)} may be those of '
            f"{read}. Set model.head to {names}{missing}",
            key="model.head",
        )
    if task != "detect":
        reason = next(iter(declined.values())).reason
        raise SourceError(f'the outputs {_seen(seen)} do not fit task "{task}": {reason}')
    reasons = "; ".join(f"{name}: {no.reason}" for name, no in declined.items())
    raise RecipeError(
        f'model.head = "auto" finds no head for the outputs {_seen(seen)}. {reasons}. '
        'Write a decode from these outputs to boxes and scores and set model.head = "module:function"',
        key="model.head",
    )


def _tried(task: Task, seen: Outputs) -> tuple[dict[str, Head], dict[str, Declined]]:
    """Heads that fit, and why the others do not, by name."""
    fits: dict[str, Head] = {}
    declined: dict[str, Declined] = {}
    for name in FAMILIES[task]:
        family = load_family(task, name)
        foreign = sorted(set(seen.options) - family.OPTIONS)
        found = Declined(_foreign(name, foreign, family)) if foreign else family.from_outputs(seen)
        if isinstance(found, Declined):
            declined[name] = found
        else:
            fits[name] = found
    return fits, declined


def _foreign(name: str, foreign: Sequence[str], family: Family) -> str:
    taken = ", ".join(sorted(family.OPTIONS)) or "none"
    return f'head "{name}" takes no option {", ".join(foreign)}; it takes {taken}'


def _seen(seen: Outputs) -> str:
    labels = "no labels" if seen.labels is None else f"{seen.labels} labels"
    return f"[{seen.describe()}] with {labels}"


def _hint(task: Task, head: str, seen: Outputs) -> str:
    """Which other heads would fit, where one does."""
    fits = [name for name in _tried(task, seen)[0] if name != head]
    return f". These fit: {', '.join(fits)}" if fits else ""
