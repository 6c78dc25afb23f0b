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
from edgesmith.converters.recipe_training import (
    DistillTable,
    PruneTable,
    QatTable,
    QatTrain,
    TeacherTable,
    TrainTable,
)

__all__ = [
    "ConvertReport",
    "Data",
    "DistillTable",
    "Evaluation",
    "Input",
    "Model",
    "NmsTable",
    "PrecisionTable",
    "PruneTable",
    "QatTable",
    "QatTrain",
    "Recipe",
    "Target",
    "TeacherTable",
    "TrainTable",
    "convert",
]
