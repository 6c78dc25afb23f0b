"""The recipe's tables for training stages: ``[prune]``, ``[distill]``, ``[qat]``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from edgesmith.sdk.manifest import Positive, Share

Above0 = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
TEACHERS = ("factory", "program", "zoo", "bundle")


class TrainTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``train`` of a stage: how it trains.

    The rate falls along half a cosine (Loshchilov and Hutter 2017) from ``rate`` to 0, after ``warmup``
    (share of all steps). ``clip``: the most that the norm of all gradients may be, 0 for none. ``numbers``
    are Lightning Fabric's names. ``augment``: ``flip`` (left and right), ``shift`` (by up to an eighth of the
    side, black beyond the edge), ``crop`` (a window of half to all of the area); it goes with classifiers.
    ``norm``: whether BatchNorm learns its statistics on. ``held_out``: share of the training images on which
    the best epoch is chosen, ``patience``: epochs without a better one after which training ends.
    ``checkpoint_s``: seconds between two checkpoints.
    """

    epochs: Positive = 10
    batch: Positive = 64
    rate: Above0 = 0.01
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: Share = 0.9
    decay: NotNegative = 5e-4
    warmup: Share = 0.0
    clip: NotNegative = 5.0
    numbers: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    augment: tuple[str, ...] = ("flip", "shift")
    norm: Literal["train", "frozen"] = "train"
    held_out: Share = 0.05
    patience: Positive | None = None
    workers: Annotated[int, msgspec.Meta(ge=0)] = 0
    checkpoint_s: NotNegative = 60.0


class PruneTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[prune]``: channels taken out of a trained model.

    ``keep`` is the share of ``target`` that remains: multiply-accumulates, parameters, latency in onnxruntime
    on one core of this machine, or the roofline estimate for ``target.device``; 1 takes no channel out.
    ``importance``: what a channel is worth, by the filters that make it (``l1``, ``l2``), by all weights
    that it touches (``group``), by the BatchNorm's factor (``bn-scale``), by the loss without it
    (``taylor``), by its values on images (``activation``). ``round_to``: channels stay in steps of this,
    ``auto`` takes it from the device. ``untouched``: name patterns of layers that keep all channels.
    ``most``: the largest share that one layer may lose. ``steps``: rounds of pruning and tuning.
    ``sparsity``: ``2:4`` leaves two of four weights along the input channels. Without ``train`` nothing is
    tuned after pruning.
    """

    target: Literal["macs", "parameters", "latency", "estimate"] = "macs"
    keep: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.5
    importance: Literal["group", "l1", "l2", "bn-scale", "taylor", "activation"] = "group"
    scope: Literal["global", "uniform"] = "global"
    round_to: Positive | Literal["auto"] = "auto"
    untouched: tuple[str, ...] = ()
    most: Share = 0.75
    steps: Positive = 1
    sparsity: Literal["2:4"] | None = None
    images: Positive = 256
    train: TrainTable | None = None


class TeacherTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``distill.teacher``: exactly one of a module, an exported program or a bundle."""

    factory: str | None = None
    program: str | None = None
    zoo: str | None = None
    bundle: str | None = None
    weights: str | None = None
    python_path: tuple[str, ...] = ()
    head: str = "auto"
    head_options: dict[str, Any] = {}

    def __post_init__(self) -> None:
        given = [name for name in TEACHERS if getattr(self, name) is not None]
        if len(given) != 1:
            said = f"got {' and '.join(given)}" if given else "got none"
            raise ValueError(f"needs exactly one of {', '.join(TEACHERS)}; {said}")


class DistillTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[distill]``: the model learns from a teacher's answers; without ``teacher`` from itself as it was.

    ``temperature`` softens a classifier's answers. ``labels``: share of the labels' loss beside the
    teacher's, where there are labels. ``features``: pairs ``"student.layer=teacher.layer"`` whose maps are
    compared, by ``attention`` maps or through a learned projection (``fitnet``), at ``feature_weight``.
    ``box_weight``: of a detector's boxes beside its classes.
    """

    teacher: TeacherTable | None = None
    temperature: Above0 = 4.0
    labels: Share = 0.1
    features: tuple[str, ...] = ()
    feature_loss: Literal["attention", "fitnet"] = "attention"
    feature_weight: NotNegative = 100.0
    box_weight: NotNegative = 2.0
    train: TrainTable = TrainTable()


class QatTrain(TrainTable, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``qat.train``: as of the other stages, gentler; BatchNorm is in the weights by then."""

    epochs: Positive = 30
    batch: Positive = 16
    rate: Above0 = 1e-4
    optimizer: Literal["sgd", "adamw"] = "adamw"
    decay: NotNegative = 0.0
    augment: tuple[str, ...] = ("flip", "crop")
    norm: Literal["train", "frozen"] = "frozen"
    held_out: Share = 0.1


class QatTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[qat]``: weights and scales learn under INT8's rounding, from the float model's answers.

    ``scales``: ``learned`` (LSQ) or ``fixed`` as calibrated. ``repairs``: of ``factor``, ``offset``,
    ``smooth``, in front of the rounding while it learns; none leaves a plain graph. ``temperature`` as in
    ``[distill]``.
    """

    scales: Literal["learned", "fixed"] = "learned"
    repairs: tuple[str, ...] = ("factor", "offset")
    temperature: Above0 = 1.0
    train: QatTrain = QatTrain()


_TRAIN = {
    "": "How the stage trains: the whole table.",
    ".epochs": "Passes over the training images.",
    ".batch": "Images a step, over all processes.",
    ".rate": "Learning rate at the start.",
    ".optimizer": "Optimizer.",
    ".momentum": "Momentum of sgd.",
    ".decay": "Weight decay.",
    ".warmup": "Share of the steps in which the rate rises.",
    ".clip": "Most that the gradients' norm may be; 0: no limit.",
    ".numbers": "Number formats of training.",
    ".augment": "Changes of the images, as flip,shift,crop.",
    ".norm": "Whether BatchNorm learns its statistics on.",
    ".held_out": "Share of images that chooses the best epoch.",
    ".patience": "Epochs without a better one before the end.",
    ".workers": "Processes that read images.",
    ".checkpoint_s": "Seconds between checkpoints.",
}
HELP: dict[str, str] = {
    "prune": "Table of the pruning stage.",
    "prune.target": "What is to become less.",
    "prune.keep": "Share of it that remains.",
    "prune.importance": "What a channel is worth.",
    "prune.scope": "One ranking of all channels, or the same share of each layer.",
    "prune.round_to": "Channels stay in steps of this.",
    "prune.untouched": "Name patterns of layers that keep all channels.",
    "prune.most": "Largest share that a layer may lose.",
    "prune.steps": "Rounds of pruning and tuning.",
    "prune.sparsity": "2:4 for sparse tensor cores.",
    "prune.images": "Images for taylor and activation.",
    **{f"prune.train{key}": text for key, text in _TRAIN.items()},
    "distill": "Table of the distillation stage.",
    "distill.teacher": "The whole table.",
    "distill.teacher.factory": "Teacher from module:function.",
    "distill.teacher.program": "Teacher from an exported program (.pt2).",
    "distill.teacher.zoo": "Teacher from torchvision or timm.",
    "distill.teacher.bundle": "Teacher from a bundle's float graph.",
    "distill.teacher.weights": "State dict of the teacher.",
    "distill.teacher.python_path": "Folders searched for the teacher's module.",
    "distill.teacher.head": "Adapter of the teacher's head.",
    "distill.teacher.head_options": "Anchors, strides and the like of the teacher's head.",
    "distill.temperature": "Softens a classifier's answers.",
    "distill.labels": "Share of the labels' loss.",
    "distill.features": "Pairs student.layer=teacher.layer.",
    "distill.feature_loss": "How feature maps are compared.",
    "distill.feature_weight": "Weight of the feature maps.",
    "distill.box_weight": "Weight of a detector's boxes.",
    **{f"distill.train{key}": text for key, text in _TRAIN.items() if key},
    "qat": "Table of quantization-aware training.",
    "qat.scales": "Whether scales learn too.",
    "qat.repairs": "Arithmetic in front of the rounding.",
    "qat.temperature": "Softens a classifier's answers.",
    **{f"qat.train{key}": text for key, text in _TRAIN.items() if key},
}
# Keys whose values are files or folders, and those that are lists of names.
PATHS = (
    "distill.teacher.program",
    "distill.teacher.bundle",
    "distill.teacher.weights",
    "distill.teacher.python_path",
)
NAMES: dict[str, tuple[str, ...]] = {
    **{f"{stage}.train.augment": ("flip", "shift", "crop") for stage in ("prune", "distill", "qat")},
    "qat.repairs": ("factor", "offset", "smooth"),
}
