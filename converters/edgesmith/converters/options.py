"""One command line option for each key of the recipe, made from its structs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click
from msgspec import inspect as types

from edgesmith.converters.recipe import Recipe
from edgesmith.converters.recipe_keys import choices_of, fields_of, table_of
from edgesmith.converters.recipe_training import HELP as TRAINING_HELP

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

F = TypeVar("F", bound=Callable[..., Any])
# What each key is, in one line; a test holds this list and the recipe's keys together.
HELP: dict[str, str] = {
    "task": "What the model does.",
    "labels": "File with one class name a line, or a list.",
    "model.factory": "module:function that makes the network.",
    "model.program": "Exported program (.pt2).",
    "model.torchscript": "TorchScript archive.",
    "model.onnx": "Ready ONNX graph with canonical outputs.",
    "model.zoo": "torchvision:NAME or timm:NAME.",
    "model.weights": "State dict: .safetensors, .pt, .pth, .ckpt.",
    "model.python_path": "Folders searched for the factory's module.",
    "model.head": "auto, an adapter's name, canonical, or module:function.",
    "model.head_options": "Table with what the head needs, as {strides = [8, 16, 32]}.",
    "model.license": "Licence of the trained model.",
    "input.size": "Height and width in pixels, as 416,416.",
    "input.batch": "Images a run, a number or {min = 1, opt = 4, max = 8}.",
    "input.fit": "How a frame is brought to the size.",
    "input.anchor": "Where the picture lies in a letterbox.",
    "input.pad": "Pixel value 0..255 around it.",
    "input.upscale": "Whether a small picture is enlarged.",
    "input.color": "Channel order of the network.",
    "input.scale": "Factor on pixels 0..255: value = (pixel x scale - mean) / std.",
    "input.mean": "A number, or one a channel.",
    "input.std": "A number, or one a channel.",
    "input.interpolation": "Filter of the resize.",
    "input.antialias": "Widen the filter when shrinking, as Pillow does.",
    "input.shorter_side": "Shorter side in pixels before the centre crop.",
    "input.rounding": "How the resized size becomes whole.",
    "nms": "The whole table.",
    "nms.where": "Where suppression runs.",
    "nms.score": "Score threshold of a call.",
    "nms.evaluation_score": "Score threshold of an evaluation.",
    "nms.iou": "Overlap above which the lower-scored box goes.",
    "nms.classes": "One class a box, or all over the threshold.",
    "nms.candidates": "Boxes that enter the suppression.",
    "nms.max_detections": "Most detections an image.",
    "data.calibration": "Calibration images: folder, list file, glob or .npz.",
    "data.search": "Images for the precision search.",
    "data.evaluation": "The whole table, as {images = \"val\", labels = \"val.csv\"}.",
    "data.evaluation.images": "Labelled images.",
    "data.evaluation.annotations": "COCO JSON.",
    "data.evaluation.labels": "csv with file,class.",
    "data.evaluation.masks": "Folder with masks.",
    "data.evaluation.mask_values": "Pixel value of each class in a mask.",
    "data.evaluation.metric": "psnr, for image enhancement.",
    "data.evaluation.downscale": "Factor by which images are made small for psnr.",
    "data.training": "Training images.",
    "data.seed": "Draws every split.",
    "precision.mode": "Number format: fp32, fp16, int8, or the mix that keeps the budget.",
    "precision.rest": "What is not INT8.",
    "precision.max_drop": "Points of accuracy that may go.",
    "precision.method": "How ranges become scales.",
    "precision.repairs": "auto, or a list of repairs.",
    "precision.keep_float": "Name patterns of layers that stay in float.",
    "precision.accept_drop": "Write the bundle although the budget is missed.",
    "target.device": "A device profile, see `edgesmith devices`.",
    "target.variants": "auto, or a list of variants.",
    "target.dla": "DLA core.",
    **TRAINING_HELP,
}  # fmt: skip


def keys(struct: Any = Recipe, prefix: str = "") -> Iterator[tuple[str, types.Type]]:
    """Every dotted key with its type; an optional table comes before its own keys."""
    for name, kind in fields_of(struct).items():
        if name == "base":
            continue
        inner = table_of(kind)
        if inner is None:
            yield f"{prefix}{name}", kind
            continue
        if isinstance(kind, types.UnionType):
            yield f"{prefix}{name}", kind
        yield from keys(inner, f"{prefix}{name}.")


def recipe_options(command: F) -> F:
    """Add ``--KEY VALUE`` for each key; the command gets ``overrides``, a dictionary by dotted key."""
    for key, kind in reversed(list(keys())):
        choices = choices_of(Recipe, key)
        closed = choices and not _open(kind)
        option = click.option(
            f"--{key}",
            key.replace(".", "__"),
            metavar="|".join(choices) if closed else "VALUE",
            expose_value=False,
            callback=_keep(key, kind),
            help=HELP[key],
        )
        command = option(command)
    return command


def _keep(key: str, kind: types.Type) -> Callable[[click.Context, click.Parameter, str | None], None]:
    def callback(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
        if value is not None:
            ctx.ensure_object(dict).setdefault("overrides", {})[key] = parsed(value, kind)

    return callback


def parsed(text: str, kind: types.Type) -> Any:
    """A value as the recipe's TOML would have it.

    ``416,416`` is a list where the key takes one; tables and lists may be TOML or JSON; what the
    key takes as text stays text.
    """
    options = kind.types if isinstance(kind, types.UnionType) else (kind,)
    lists = any(isinstance(t, types.VarTupleType | types.TupleType) for t in options)
    texts = any(isinstance(t, types.StrType | types.LiteralType) for t in options)
    structured = text.lstrip()[:1] in ("[", "{")
    if structured and (lists or not texts):
        return _structured(text)
    if texts and not (lists and "," in text):
        literals = [v for t in options if isinstance(t, types.LiteralType) for v in t.values]
        plain_lists = lists and not any(isinstance(t, types.StrType) for t in options)
        return [text] if plain_lists and text not in literals else text
    if "," in text and lists:
        return [_scalar(part.strip()) for part in text.split(",")]
    value = _scalar(text)
    return [value] if lists and not _scalars(options) else value


def _open(kind: types.Type) -> bool:
    options = kind.types if isinstance(kind, types.UnionType) else (kind,)
    return any(not isinstance(t, types.LiteralType | types.NoneType) for t in options)


def _scalars(options: tuple[types.Type, ...]) -> bool:
    return any(isinstance(t, types.IntType | types.FloatType | types.BoolType) for t in options)


def _structured(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        pass
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise click.BadParameter(f"{text!r} is neither TOML nor JSON: {error}") from error


def _scalar(text: str) -> Any:
    """A number or true/false where the text is one, else the text itself."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, int | float | bool) else text
