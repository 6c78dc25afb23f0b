"""The recipe's keys by dotted name: which there are, what a misspelt one was meant to be."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect as types

from edgesmith.converters.recipe_training import NAMES as TRAINING_NAMES
from edgesmith.converters.recipe_training import PATHS as TRAINING_PATHS
from edgesmith.sdk.errors import RecipeError

# Keys whose values are files or folders.
PATH_KEYS = (
    "labels", "model.weights", "model.program", "model.torchscript", "model.onnx", "model.python_path",
    "data.calibration", "data.search", "data.training",
    "data.evaluation.images", "data.evaluation.annotations", "data.evaluation.labels",
    "data.evaluation.masks",
    *TRAINING_PATHS,
)  # fmt: skip

# Keys whose values are lists of names, and the names that there are.
NAME_LISTS: dict[str, tuple[str, ...]] = {
    "precision.repairs": ("factor", "offset", "bias", "smooth", "fold", "equalize", "adaround"),
    "target.variants": ("fp16", "int8-plain", "x86"),
    **TRAINING_NAMES,
}


def table_of(kind: types.Type) -> type[msgspec.Struct] | None:
    """The struct of a field that is a table of the recipe (also an optional one), else None."""
    options = kind.types if isinstance(kind, types.UnionType) else (kind,)
    structs = [t.cls for t in options if isinstance(t, types.StructType)]
    others = [t for t in options if not isinstance(t, types.StructType | types.NoneType)]
    return structs[0] if len(structs) == 1 and not others else None


def fields_of(struct: type[msgspec.Struct]) -> dict[str, types.Type]:
    """Field types by name."""
    info = types.type_info(struct)
    assert isinstance(info, types.StructType)
    return {field.encode_name: field.type for field in info.fields}


def leaf_keys(struct: type[msgspec.Struct], prefix: str = "") -> Iterator[str]:
    """Every dotted key that holds a value and not a table of its own."""
    for name, kind in fields_of(struct).items():
        inner = table_of(kind)
        if inner is None:
            yield prefix + name
        else:
            yield from leaf_keys(inner, f"{prefix}{name}.")


def refuse_unknown(
    root: type[msgspec.Struct],
    table: Mapping[str, Any],
    where: str,
    struct: type[msgspec.Struct] | None = None,
    prefix: str = "",
) -> None:
    """Refuse keys that the recipe ``root`` does not know, by dotted name.

    ``struct`` is the table that stands under ``prefix``.

    Raises:
        RecipeError: a key is unknown; the message proposes the nearest known one.
    """
    fields = fields_of(struct or root)
    for name, value in table.items():
        key = f"{prefix}{name}"
        if name not in fields or key == "base":
            raise RecipeError(f"{where}: {key}: unknown key{_meant(root, key, fields, prefix)}", key=key)
        inner = table_of(fields[name])
        if inner is not None and isinstance(value, Mapping):
            refuse_unknown(root, value, where, inner, f"{key}.")


def _meant(root: type[msgspec.Struct], key: str, fields: Iterable[str], prefix: str) -> str:
    """The nearest key of the same table, else of the whole recipe by its last part."""
    here = [f"{prefix}{name}" for name in fields if name != "base"]
    near = difflib.get_close_matches(key, here, 1, 0.75)
    if not near:
        everywhere = {k.rsplit(".", 1)[-1]: k for k in leaf_keys(root) if k != "base"}
        found = difflib.get_close_matches(key.rsplit(".", 1)[-1], everywhere, 1, 0.75)
        near = [everywhere[name] for name in found]
    if near:
        return f"; did you mean {near[0]}?"
    return f"; here go {', '.join(here)}"


_AT = re.compile(r"^(?P<text>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.DOTALL)
_PLAIN = {"str": "text", "int": "a number", "float": "a number", "array": "a list", "object": "a table",
          "bool": "true or false", "null": "nothing", "dict": "a table", "list": "a list"}  # fmt: skip


def dotted(error: msgspec.ValidationError, root: type[msgspec.Struct]) -> tuple[str, str]:
    """The dotted key at fault and what is wrong with it, in plain words."""
    match = _AT.match(str(error))
    assert match is not None
    key = (match["path"] or "$").removeprefix("$").removeprefix(".") or "recipe"
    text = match["text"]
    text = text[:1].lower() + text[1:]
    if text.startswith("invalid enum value"):
        choices = choices_of(root, key.split("[")[0])
        return key, f"{text.removeprefix('invalid enum value ')} is not among {', '.join(choices)}"
    return key, re.sub(r"`([a-z |]+)`", lambda m: _words(m[1]), text)


def _words(union: str) -> str:
    """msgspec's ``int | array | null`` as ``a number or a list``."""
    names = [_PLAIN.get(name, name) for name in union.split(" | ")]
    shown = [n for n in dict.fromkeys(names) if n != "nothing"] or ["nothing"]
    return " or ".join(shown)


def choices_of(root: type[msgspec.Struct], key: str) -> tuple[str, ...]:
    """The texts that a key may be, where they are listed."""
    kind: types.Type | None = None
    struct: type[msgspec.Struct] | None = root
    for part in key.split("."):
        kind = fields_of(struct).get(part) if struct is not None else None
        struct = table_of(kind) if kind is not None else None
    options = kind.types if isinstance(kind, types.UnionType) else (kind,)
    return tuple(str(v) for t in options if isinstance(t, types.LiteralType) for v in t.values)


def texts_of(value: object) -> list[str]:
    """The texts of a text, or of a list."""
    if isinstance(value, str):
        return [value]
    return [v for v in value if isinstance(v, str)] if isinstance(value, list | tuple) else []


def glob_finds(path: Path) -> bool:
    """Whether the last parts of a path are a pattern that finds something."""
    if not any(c in str(path) for c in "*?["):
        return False
    root = path
    while any(c in str(root) for c in "*?["):
        root = root.parent
    return next(root.glob(str(path.relative_to(root))), None) is not None


def from_here(key: str, value: Any) -> Any:
    """A path given on the command line is relative to where the command runs."""
    if key in PATH_KEYS and key != "labels":
        if isinstance(value, str):
            return str(Path.cwd() / value)
        return [str(Path.cwd() / v) for v in value] if isinstance(value, list | tuple) else value
    if key == "labels" and isinstance(value, str):
        return str(Path.cwd() / value)
    if key == "data.evaluation" and isinstance(value, Mapping):
        return {k: from_here(f"{key}.{k}", v) for k, v in value.items()}
    return value


def refuse_unlisted(table: Mapping[str, Any], where: str) -> None:
    """Refuse a name that is not among those of its list (:data:`NAME_LISTS`).

    Raises:
        RecipeError: says which name, and which there are.
    """
    for key, known in NAME_LISTS.items():
        given = value_at(table, key)
        for name in () if isinstance(given, str) else given or ():
            if name not in known:
                raise RecipeError(f"{where}: {key}: no {name!r}; there are {', '.join(known)}", key=key)


def value_at(table: Mapping[str, Any], key: str) -> Any:
    """What stands at a dotted key, None where nothing does."""
    value: Any = table
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def put_at(table: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, making the tables on the way."""
    *parents, last = key.split(".")
    for part in parents:
        inner = table.get(part)
        table[part] = dict(inner) if isinstance(inner, Mapping) else {}
        table = table[part]
    table[last] = value


def floats_of(value: float | tuple[float, ...]) -> tuple[float, ...]:
    """A number, or several, as floats."""
    return tuple(float(v) for v in value) if isinstance(value, tuple) else (float(value),)
