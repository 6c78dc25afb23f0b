"""Accuracy on labelled images, one file a task."""

from edgesmith.sdk.evaluate.data import EvaluationData
from edgesmith.sdk.evaluate.run import Evaluation, evaluate

__all__ = ["Evaluation", "EvaluationData", "evaluate"]
