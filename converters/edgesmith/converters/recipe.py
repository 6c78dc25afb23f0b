"""What is asked of a conversion: the recipe, from TOML, from a dictionary or from Python.

    recipe = Recipe.from_toml("recipe.toml", {"precision.mode": "fp32"})
    recipe = Recipe(task="classify", model=Model(factory="nets:small", weights="w.safetensors"),
                    input=Input(size=(224, 224)))

Every fault is a :class:`~edgesmith.sdk.errors.RecipeError` that names the dotted key. Files are
written as the user wrote them and resolved against the folder of the recipe (``recipe.base``);
nothing is opened here beyond a check that they exist.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgesmith.converters.recipe_keys import (
    PATH_KEYS,
    dotted,
    floats_of,
    from_here,
    glob_finds,
    leaf_keys,
    put_at,
    refuse_unknown,
    refuse_unlisted,
    texts_of,
    value_at,
)
from edgesmith.converters.recipe_training import DistillTable, PruneTable, QatTable
from edgesmith.sdk.errors import RecipeError
from edgesmith.sdk.manifest import Batch, Color, Fit, Nms, Positive, Preprocess, Share, Task

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SOURCES = ("factory", "program", "torchscript", "onnx", "zoo")
# The usual way each task's networks are trained; see DESIGN.md, the recipe.
DEFAULT_FIT: dict[str, Fit] = {
    "detect": "letterbox",
    "classify": "resize-crop",
    "segment": "stretch",
    "tensor": "none",
}
HOST_CANDIDATES, GRAPH_CANDIDATES = 3000, 300
Number = float | int


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table of the recipe."""


class Model(Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[model]``: exactly one source, and how its head is read.

    ``head``: ``auto``, an adapter's name, ``canonical``, or ``module:function``.
    ``weights`` goes with ``factory`` and ``zoo``; ``python_path`` are folders searched for the
    modules that ``factory`` and ``head`` name.
    """

    factory: str | None = None
    program: str | None = None
    torchscript: str | None = None
    onnx: str | None = None
    zoo: str | None = None
    weights: str | None = None
    python_path: tuple[str, ...] = ()
    head: str = "auto"
    head_options: dict[str, Any] = {}
    license: str | None = None

    def __post_init__(self) -> None:
        given = [name for name in SOURCES if getattr(self, name) is not None]
        if len(given) != 1:
            said = f"got {' and '.join(given)}" if given else "got none"
            raise ValueError(f"needs exactly one source of {', '.join(SOURCES)}; {said}")
        if self.weights is not None and given[0] not in ("factory", "zoo"):
            raise ValueError(f"weights goes with factory or zoo; {given[0]} holds its own")
        if given == ["factory"] and self.weights is None:
            raise ValueError("factory needs weights, the file with the trained state dict")

    @property
    def source(self) -> str:
        """The kind of source that is given, one of :data:`SOURCES`."""
        return next(name for name in SOURCES if getattr(self, name) is not None)


class Input(Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[input]``: what the network was trained with, see :class:`edgesmith.sdk.preprocess.Preprocess`.

    ``size`` is ``(H, W)`` in pixels, a single number for a square. ``scale``, ``mean`` and ``std`` take
    a number, or a list in the order of ``color``. ``batch`` is a number or ``{min, opt, max}``.
    """

    size: tuple[int, int] | int | None = None
    batch: Positive | Batch = 1
    fit: Fit | None = None
    anchor: Literal["center", "top-left"] = "center"
    pad: int = 114
    upscale: bool = True
    color: Color = "rgb"
    scale: Number | tuple[Number, ...] = 1 / 255
    mean: Number | tuple[Number, ...] = 0.0
    std: Number | tuple[Number, ...] = 1.0
    interpolation: Literal["linear", "area", "cubic", "nearest"] = "linear"
    antialias: bool = False
    shorter_side: Positive | None = None
    rounding: Literal["round", "floor"] = "round"


class NmsTable(Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[nms]``, for detectors; ``candidates`` defaults to 3,000 on the host and 300 in the graph."""

    where: Literal["host", "graph"] = "host"
    score: Share = 0.25
    evaluation_score: Share = 0.001
    iou: Share = 0.65
    classes: Literal["best", "all"] = "best"
    candidates: Positive | None = None
    max_detections: Positive = 100


class Evaluation(Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``data.evaluation``: labelled images, disjoint from the calibration images.

    With ``annotations`` (COCO JSON), ``labels`` (csv ``file,class``), ``masks`` and ``mask_values``
    (the pixel value of each class, in class order), ``metric = "psnr"`` with ``downscale``, or folders
    by class.
    """

    images: str
    annotations: str | None = None
    labels: str | None = None
    masks: str | None = None
    mask_values: tuple[int, ...] | None = None
    metric: Literal["psnr"] | None = None
    downscale: Positive | None = None


class Data(Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[data]``: folders, list files, globs or ``.npz`` with images. ``seed`` draws every split."""

    calibration: str | None = None
    search: str | None = None
    evaluation: Evaluation | None = None
    training: str | None = None
    seed: int = 0


class PrecisionTable(Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[precision]``: number formats, and how much may go (``max_drop``: 0.5 points, or 0.3 dB of PSNR)."""

    mode: Literal["fp32", "auto", "fp16", "int8"] = "fp32"
    rest: Literal["fp16", "fp32"] = "fp16"
    max_drop: float | None = None
    method: Literal["auto", "minmax", "percentile", "entropy", "mse"] = "auto"
    repairs: Literal["auto"] | tuple[str, ...] = "auto"
    keep_float: tuple[str, ...] = ()
    accept_drop: bool = False


class Target(Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[target]``: the device the bundle is for, and which variants travel in it beside the chosen graph.

    ``variants`` = ``auto`` takes along all that are inside the budget; ``dla`` is the number of a DLA core.
    """

    device: str = "generic"
    variants: Literal["auto"] | tuple[str, ...] = "auto"
    dla: int | None = None


class Recipe(Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole recipe. ``labels`` is a file with one class name a line, or a list.

    Fields may be given from Python without conversion; :meth:`checked` then validates the whole,
    and :func:`edgesmith.converters.convert` calls it.
    """

    task: Task
    labels: str | tuple[str, ...] | None = None
    model: Model
    input: Input = Input()
    nms: NmsTable | None = None
    data: Data = Data()
    precision: PrecisionTable = PrecisionTable()
    target: Target = Target()
    prune: PruneTable | None = None
    distill: DistillTable | None = None
    qat: QatTable | None = None
    base: str = ""

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> Recipe:
        """Read a recipe file.

        Args:
            path: the file.
            overrides: values by dotted key (``{"precision.mode": "fp32"}``) in place of the file's;
                files among them are relative to the current directory.

        Raises:
            RecipeError: the file is missing or not TOML, or an entry cannot be used.
        """
        path = Path(path)
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RecipeError(f"{path}: cannot read the recipe: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise RecipeError(f"{path}: a recipe is a UTF-8 text file: {error.reason}") from error
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"{path}: not valid TOML: {error}") from error
        for key, value in (overrides or {}).items():
            put_at(table, key, from_here(key, value))
        return cls.from_dict(table, base=path.resolve().parent, where=str(path))

    @classmethod
    def from_dict(
        cls, table: Mapping[str, Any], base: str | os.PathLike[str] = "", *, where: str = "recipe"
    ) -> Recipe:
        """A recipe from nested dictionaries; paths are relative to ``base`` (default: the current directory).

        Raises:
            RecipeError: an entry cannot be used; ``key`` is its dotted name.
        """
        refuse_unknown(cls, table, where)
        if "base" in table:
            raise RecipeError(f"{where}: base: unknown key", key="base")
        for key in ("task", "model"):
            if key not in table:
                raise RecipeError(f"{where}: {key}: this key is required", key=key)
        try:
            recipe = msgspec.convert({**table, "base": str(Path(base).resolve())}, cls)
        except msgspec.ValidationError as error:
            key, text = dotted(error, cls)
            raise RecipeError(f"{where}: {key}: {text}", key=key) from error
        recipe._check(where)
        return recipe

    def checked(self) -> Recipe:
        """The same recipe once every field was validated, as :meth:`from_dict` does.

        Raises:
            RecipeError: a field has the wrong type or value.
        """
        table = msgspec.to_builtins(self)
        base = table.pop("base")
        return Recipe.from_dict({k: v for k, v in table.items() if v is not None}, base=base)

    def resolve(self, path: str) -> Path:
        """A path of the recipe as an absolute one."""
        return Path(self.base or Path.cwd()) / path

    @property
    def batch(self) -> Batch:
        """``input.batch`` as a range."""
        batch = self.input.batch
        return Batch(min=batch, opt=batch, max=batch) if isinstance(batch, int) else batch

    def preprocess(self) -> Preprocess:
        """``[input]`` with the defaults of the task, as it stands in the manifest.

        Raises:
            RecipeError: the entries contradict each other.
        """
        given = self.input
        size = (given.size, given.size) if isinstance(given.size, int) else given.size
        scale, mean, std = _arithmetic(given)
        try:
            return Preprocess(
                size=size,
                fit=given.fit or DEFAULT_FIT[self.task],
                anchor=given.anchor,
                pad=given.pad,
                upscale=given.upscale,
                color=given.color,
                scale=scale,
                mean=mean,
                std=std,
                interpolation=given.interpolation,
                antialias=given.antialias,
                shorter_side=given.shorter_side,
                rounding=given.rounding,
            )
        except ValueError as error:
            raise RecipeError(f"recipe: input: {error}", key="input") from error

    def nms_spec(self) -> Nms | None:
        """``[nms]`` as it stands in the manifest; None for a task without boxes."""
        if self.task != "detect":
            return None
        given = self.nms or NmsTable()
        usual = GRAPH_CANDIDATES if given.where == "graph" else HOST_CANDIDATES
        return Nms(
            where=given.where,
            score=given.score,
            evaluation_score=given.evaluation_score,
            iou=given.iou,
            classes=given.classes,
            candidates=given.candidates or usual,
            max_detections=given.max_detections,
        )

    def names(self) -> tuple[str, ...]:
        """The class names, empty where there are none.

        Raises:
            RecipeError: the file of ``labels`` cannot be read, or holds no name.
        """
        if self.labels is None or isinstance(self.labels, tuple):
            return tuple(self.labels or ())
        path = self.resolve(self.labels)
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"recipe: labels: {path}: cannot be read: {error}", key="labels") from error
        while lines and not lines[-1].strip():
            lines.pop()
        names = tuple(line.strip() for line in lines)
        if not names or not all(names):
            where = f"line {names.index('') + 1} is empty" if names else "the file is empty"
            raise RecipeError(f"recipe: labels: {path}: one name a line, but {where}", key="labels")
        return names

    def shown(self, path: str) -> str:
        """A path as it may stand in the bundle: without the folders of this machine."""
        given = Path(path)
        if not given.is_absolute():
            return path
        inside = bool(self.base) and given.is_relative_to(self.base)
        return given.relative_to(self.base).as_posix() if inside else given.name

    def plain(self) -> dict[str, Any]:
        """The recipe as a dictionary without defaults, for the bundle: no path of this machine is in it."""
        table: dict[str, Any] = {}
        blank = msgspec.to_builtins(Recipe(task=self.task, model=Model(zoo="")))
        full = msgspec.to_builtins(self)
        for key in leaf_keys(Recipe):
            value, usual = value_at(full, key), value_at(blank, key)
            if key in ("base", "model.zoo") and not value:
                continue
            if key == "base" or value is None or (value == usual and key != "task"):
                continue
            if key in PATH_KEYS and isinstance(value, str):
                value = self.shown(value)
            elif key in PATH_KEYS and key != "labels":
                value = [self.shown(v) for v in value]
            put_at(table, key, list(value) if isinstance(value, tuple) else value)
        return table

    def _check(self, where: str) -> None:
        """What goes across tables: sizes, NMS without boxes, files that do not exist."""
        if self.input.size is None and (self.input.fit or DEFAULT_FIT[self.task]) != "none":
            raise RecipeError(f"{where}: input.size: required, [height, width] in pixels", key="input.size")
        if self.input.size is None and self.task != "tensor":
            raise RecipeError(
                f'{where}: input.size: required, only task "tensor" takes any size', key="input.size"
            )
        self.preprocess()
        if self.nms is not None and self.task != "detect":
            raise RecipeError(f'{where}: nms: goes with task "detect" only', key="nms")
        table = msgspec.to_builtins(self)
        refuse_unlisted(table, where)
        for key in PATH_KEYS:
            given = value_at(table, key)
            for value in texts_of(given if key != "labels" or isinstance(given, str) else None):
                path = self.resolve(value)
                if not (path.exists() or glob_finds(path)):
                    raise RecipeError(f"{where}: {key}: there is no file or folder {path}", key=key)


def _arithmetic(given: Input) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
    """Scale, mean and std as the manifest has them; a scale by channel moves into mean and std.

    (p * s - m) / d  =  (p - m / s) / (d / s)
    """
    mean, std = floats_of(given.mean), floats_of(given.std)
    scales = floats_of(given.scale)
    if len(set(scales)) == 1:
        return scales[0], mean, std
    channels = 1 if given.color == "y" else 3
    if len(scales) != channels or 0 in scales:
        raise RecipeError(
            f"recipe: input.scale: takes a number or {channels} numbers other than zero, got {list(scales)}",
            key="input.scale",
        )
    means, stds = mean * (channels // len(mean) or 1), std * (channels // len(std) or 1)
    return (
        1.0,
        tuple(m / s for m, s in zip(means, scales, strict=False)),
        tuple(d / s for d, s in zip(stds, scales, strict=False)),
    )
