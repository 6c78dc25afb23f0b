"""From a trained PyTorch model to a bundle, on the dev box.

recipe -> sources -> adapters -> export -> passes -> parity -> bundle; :mod:`.convert` lists the stages.
"""

from edgesmith.converters.convert import convert
from edgesmith.converters.outcome import ConvertReport
from edgesmith.converters.recipe import (
    Data,
    Evaluation,
    Input,
    Model,
    NmsTable,
    PrecisionTable,
    Recipe,
    Target,
)

__all__ = [
    "ConvertReport",
    "Data",
    "Evaluation",
    "Input",
    "Model",
    "NmsTable",
    "PrecisionTable",
    "Recipe",
    "Target",
    "convert",
]
