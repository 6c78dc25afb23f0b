"""Heads: each family's raw outputs to canonical tensors, before the export.

module -> Outputs (one run) -> choose (families.py) -> head -> [NMS in the graph] -> Adapted
torchvision's detectors, known by their class -> rebuilt (torchvision.py) -> [NMS in the graph] -> Adapted
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from edgesmith.converters.adapters.base import Adapted, Declined, Outputs, WithHead
from edgesmith.converters.adapters.canonical import check_values
from edgesmith.converters.adapters.families import choose
from edgesmith.converters.adapters.nms_graph import NMS_OUTPUTS, GraphNms, WithNms
from edgesmith.converters.adapters.torchvision import HEAD as TORCHVISION
from edgesmith.converters.adapters.torchvision import rebuilt
from edgesmith.sdk.errors import RecipeError
from edgesmith.sdk.manifest import Nms, Task

__all__ = ["Adapted", "adapt"]

logger = logging.getLogger(__name__)


def adapt(
    module: nn.Module,
    head: str,
    *,
    example: Tensor,
    task: Task,
    options: Mapping[str, object],
    nms: Nms | None,
    names: int | None,
    python_path: Sequence[Path],
) -> Adapted:
    """Wrap a trained module so that its forward gives the task's canonical tensors.

    The module is put in eval mode and run on ``example``, once to see its outputs and once more
    with the head. Height and width are those of the example from then on (but for task
    ``tensor``); the batch stays free.

    Args:
        module: takes images (N, C, H, W) float32.
        head: ``auto``, a name of ``families.FAMILIES``, or ``module:function``.
        example: one input (1, C, H, W) float32, preferably of a real image.
        task: ``detect``, ``classify``, ``segment`` or ``tensor``.
        options: ``model.head_options``.
        nms: for detectors; with ``where = "graph"`` the suppression goes into the module.
        names: number of class names, None where the recipe has none.
        python_path: folders searched for ``module:function``.

    Raises:
        RecipeError: the head, an option or the NMS setting cannot be used.
        SourceError: the module fails, or its outputs are not what the head takes.
    """
    if task == "detect" and head in ("auto", TORCHVISION):
        found = _from_torchvision(module, head, example, options=options, nms=nms, names=names)
        if found is not None:
            return found
    seen = Outputs.from_run(module, example, labels=names, options=options)
    family, decode = choose(head, task, seen, python_path)
    logger.info("head %s: %s", family, decode.describe())
    if nms is not None and nms.iou < 1 and getattr(decode, "ONE_BOX_AN_OBJECT", False):
        logger.warning(
            'head "%s" gives one box an object, and nms.iou = %g may take boxes away that the model keeps: '
            "set nms.iou = 1.0 in the recipe",
            family,
            nms.iou,
        )
    adapted: nn.Module = WithHead(module, decode).eval()
    output_names = decode.output_names
    if task == "detect":
        with torch.no_grad():
            boxes, scores = adapted(example)
        check_values(boxes, scores, family)
        if nms is not None and nms.where == "graph":
            adapted = WithNms(adapted, GraphNms(nms, rows=boxes.shape[1], classes=scores.shape[2])).eval()
            output_names = NMS_OUTPUTS
    return Adapted(adapted, output_names, family, decode.classes)


def _from_torchvision(
    module: nn.Module,
    head: str,
    example: Tensor,
    *,
    options: Mapping[str, object],
    nms: Nms | None,
    names: int | None,
) -> Adapted | None:
    """A detector of torchvision, rebuilt; None where the module is none and the head was not named."""
    detector = rebuilt(module, example=example, options=options, nms=nms, names=names)
    if isinstance(detector, Declined):
        if head == TORCHVISION:
            raise RecipeError(f'model.head = "{head}": {detector.reason}', key="model.head")
        return None
    logger.info("head %s: %s", TORCHVISION, detector.describe())
    detector.eval()
    with torch.no_grad():
        boxes, scores = detector(example)
    check_values(boxes, scores, TORCHVISION)
    adapted: nn.Module = detector
    output_names = detector.output_names
    if nms is not None and nms.where == "graph":
        adapted, output_names = detector.with_nms(nms, boxes.shape[1])
    return Adapted(adapted.eval(), output_names, TORCHVISION, detector.classes)
