"""What every source gives, and how a fault in the user's own code is told."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from edgesmith.sdk.errors import SourceError

if TYPE_CHECKING:
    import onnx
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A trained model in memory.

    Attributes:
        kind: the key of the recipe's ``[model]`` it came from.
        name: what it is, for people and for provenance.
        sha256: of the weights, program or graph file.
        module: in eval mode on the CPU, without gradients; None for a ready ONNX graph.
        model: the ready ONNX graph, else None.
        notes: what was decided on the way (the entry of a checkpoint that was taken, ...).
    """

    kind: str
    name: str
    sha256: str
    module: nn.Module | None = None
    model: onnx.ModelProto | None = None
    notes: tuple[str, ...] = ()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@contextlib.contextmanager
def search_path(folders: Sequence[Path]) -> Iterator[None]:
    """Put folders first on the import path, for the duration of the block only."""
    added = [str(folder) for folder in folders]
    sys.path[:0] = added
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for folder in added:
            with contextlib.suppress(ValueError):  # user code may have taken it out already
                sys.path.remove(folder)


def import_attribute(reference: str, folders: Sequence[Path], key: str) -> Any:
    """The object ``module:attribute``, its module searched in ``folders`` first.

    Raises:
        SourceError: there is no such module or attribute, or importing it failed.
    """
    name, _, attribute = reference.partition(":")
    if not name or not attribute:
        raise SourceError(
            f"recipe: {key}: {reference!r} must read module:attribute, as networks.yolox:yolox_nano"
        )
    _forget_namesake(name.partition(".")[0], folders)
    with search_path(folders):
        try:
            module: Any = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
                searched = ", ".join(str(f) for f in folders) or "no folder"
                raise SourceError(
                    f"recipe: {key}: there is no module {error.name} for {reference}; "
                    f"model.python_path searches {searched}"
                ) from error
            raise SourceError(told(f"recipe: {key}: importing {name} failed", error)) from error
        except (Exception, SystemExit) as error:
            raise SourceError(told(f"recipe: {key}: importing {name} failed", error)) from error
    for part in attribute.split("."):
        if not hasattr(module, part):
            offered = (
                ", ".join(n for n in vars(module) if not n.startswith("_")) if _is_module(module) else ""
            )
            raise SourceError(f"recipe: {key}: {name} has no {part}; it has {offered or 'nothing public'}")
        module = getattr(module, part)
    return module


def told(what: str, error: BaseException) -> str:
    """A message with the user's own exception, and the file and line it came from."""
    text = f"{what}: {type(error).__name__}: {error}".rstrip(": ")
    if isinstance(error, SyntaxError) and error.filename:
        return f"{text} ({os.path.basename(error.filename)}, line {error.lineno})"  # noqa: PTH119
    here = str(Path(__file__).parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((here, "<frozen"))
        and f"{os.sep}site-packages{os.sep}" not in frame.filename
        and f"{os.sep}importlib{os.sep}" not in frame.filename
    ]
    return (
        f"{text} (at {frames[-1].filename}, line {frames[-1].lineno}, in {frames[-1].name})"
        if frames
        else text
    )


def _is_module(value: object) -> bool:
    return isinstance(value, ModuleType)


def _forget_namesake(top: str, folders: Sequence[Path]) -> None:
    """Drop a loaded package of the same name that comes from elsewhere, so that the recipe's own is found."""
    loaded = sys.modules.get(top)
    holders = [f.resolve() for f in folders if (f / top).is_dir() or (f / f"{top}.py").is_file()]
    if loaded is None or not holders:
        return
    origins = (
        [loaded.__file__] if getattr(loaded, "__file__", None) else list(getattr(loaded, "__path__", []))
    )
    if any(Path(o).resolve().is_relative_to(holders[0]) for o in origins if o):
        return
    for name in [n for n in sys.modules if n == top or n.startswith(f"{top}.")]:
        del sys.modules[name]
