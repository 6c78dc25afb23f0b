"""Accuracy on labelled images, one file a task, and what one model loses against another."""

from edgesmith.sdk.evaluate.data import EvaluationData
from edgesmith.sdk.evaluate.paired import Paired, compare_many, compare_models, compare_unlabelled
from edgesmith.sdk.evaluate.run import Evaluation, evaluate

__all__ = [
    "Evaluation",
    "EvaluationData",
    "Paired",
    "compare_many",
    "compare_models",
    "compare_unlabelled",
    "evaluate",
]
