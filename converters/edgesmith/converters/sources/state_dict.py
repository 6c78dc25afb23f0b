"""State dicts: read from a file without ever running code in it, and fitted to a module."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgesmith.sdk.errors import SourceError

State = dict[str, torch.Tensor]
# Where training code keeps the state dict inside a checkpoint, the most explicit name first.
ENTRIES = (
    "state_dict",
    "model_state_dict",
    "model",
    "network",
    "net",
    "module",
    "params",
    "weights",
    "ema",
    "params_ema",
)
# What wrappers (DataParallel, torch.compile, training classes) put before every key.
PREFIXES = ("module.", "model.", "_orig_mod.", "net.", "network.", "state_dict.")
WRAPPERS_DEEP = 3
SHOWN = 8
_HOW = 'torch.save(model.state_dict(), "weights.pt")'


def read_state_dict(path: Path) -> tuple[State, list[str]]:
    """The state dict of a ``.safetensors``, ``.pt``, ``.pth`` or ``.ckpt`` file, and what was taken.

    Raises:
        SourceError: the file is no state dict, or holds pickled Python objects.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path), []
        except (SafetensorError, OSError) as error:
            raise SourceError(f"{path}: not a sound safetensors file: {error}") from error
    _refuse_programs(path)
    try:
        # The scalars and dtypes of numpy are data; training code often logs a metric as one.
        rebuild: Any = np.float64(0).__reduce__()[0]
        scalars: list[Any] = [np.dtype, *{type(np.dtype(c)) for c in "?bhilqBHILQefd"}, rebuild]
        with torch.serialization.safe_globals(scalars):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not (found := _which(error)):
            raise SourceError(
                f"{path}: not a sound PyTorch file; save the state dict again: {_HOW}"
            ) from error
        raise SourceError(
            f"{path}: holds pickled Python objects ({found}); unpickling runs code, so it is not read. "
            f"Save the state dict where the model was trained: {_HOW}"
        ) from error
    except Exception as error:
        # On bytes that are no pickle at all the restricted unpickler raises whatever its steps raise.
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SourceError(f"{path}: cannot be read as a PyTorch file: {why}") from error
    return _entry(path, content)


def _which(error: pickle.UnpicklingError) -> str:
    """The class that the restricted unpickler stopped at."""
    for marker in ("GLOBAL ", "Unsupported class ", "Unsupported global: "):
        _, found, rest = str(error).partition(marker)
        if found:
            return rest.split()[0].strip("`.,")
    return ""


def _refuse_programs(path: Path) -> None:
    """Archives of PyTorch that are programs and not state dicts."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return  # the old format, or no file: torch.load says more
    if any("/code/" in name for name in names) and any(name.endswith("constants.pkl") for name in names):
        raise SourceError(
            f'{path}: a TorchScript archive; give it as model.torchscript = "{path.name}" alone'
        )
    if any("models/" in name and name.endswith(".json") for name in names):
        raise SourceError(f'{path}: an exported program; give it as model.program = "{path.name}" alone')


def _is_state(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(k, str) for k in value)
        and all(isinstance(v, torch.Tensor) for v in value.values())
    )


def _entry(path: Path, content: Any) -> tuple[State, list[str]]:
    if _is_state(content):
        return dict(content), []
    if isinstance(content, Mapping):
        found = [name for name in ENTRIES if _is_state(content.get(name))]
        if found:
            others = f"; also there: {', '.join(found[1:])}" if found[1:] else ""
            return dict(content[found[0]]), [f"{path.name}: took the entry {found[0]!r}{others}"]
        keys = ", ".join(repr(k) for k in list(content)[:SHOWN])
        raise SourceError(f"{path}: no state dict in it; its entries are {keys}. Save one: {_HOW}")
    raise SourceError(f"{path}: holds a {type(content).__name__}, not a state dict. Save one: {_HOW}")


def fill(module: nn.Module, state: State, path: Path) -> list[str]:
    """Put a state dict into a module, every key accounted for; returns what was done to the keys.

    Prefixes that wrappers leave (``module.``, ``_orig_mod.``, ...) go where that makes keys fit.

    Raises:
        SourceError: keys are missing, unexpected or of another shape, or a value is not finite.
    """
    wanted = module.state_dict()
    state, taken = _without_prefixes(state, wanted)
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in wanted and not k.endswith("num_batches_tracked")]
    shapes = [
        f"{k} is {tuple(state[k].shape)}, the module has {tuple(v.shape)}"
        for k, v in wanted.items()
        if k in state and state[k].shape != v.shape
    ]
    if missing or unexpected or shapes:
        parts = [
            _listed("missing in the file", missing),
            _listed("not in the module", unexpected),
            _listed("other shapes", shapes),
        ]
        raise SourceError(
            f"{path}: the weights do not fit the module: {'; '.join(p for p in parts if p)}",
            missing=missing,
            unexpected=unexpected,
        )
    broken = [k for k, v in state.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if broken:
        raise SourceError(f"{path}: {_listed('values that are not finite', broken)}")
    module.load_state_dict(state, strict=False)
    return [f"{path.name}: took {''.join(taken)!r} off the keys"] if taken else []


def _listed(what: str, keys: Sequence[str]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return f"{len(keys)} {what}: {', '.join(keys[:SHOWN])}{more}"


def _without_prefixes(state: State, wanted: Mapping[str, Any]) -> tuple[State, list[str]]:
    """The stripped form with the most keys that fit, and the prefixes that went, outermost first."""
    best, taken, most = state, list[str](), len(wanted.keys() & state.keys())
    forms: list[tuple[State, list[str]]] = [(state, [])]
    for _ in range(WRAPPERS_DEEP):
        longer = []
        for form, gone in forms:
            for prefix in PREFIXES:
                if any(k.startswith(prefix) for k in form):
                    longer.append(({k.removeprefix(prefix): v for k, v in form.items()}, [*gone, prefix]))
        for form, gone in longer:
            fits = len(wanted.keys() & form.keys())
            # Two keys that become one would lose a tensor without a word.
            if fits > most and len(form) == len(state):
                best, taken, most = form, gone, fits
        forms = longer
    return best, taken
