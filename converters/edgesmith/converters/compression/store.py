"""What a stage gave, on disk: weights, and what was told; found again by the hash of what went into it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from edgesmith.converters.compression.reshape import reshaped
from edgesmith.converters.training.loop import STATE
from edgesmith.sdk.errors import DataError

log = logging.getLogger(__name__)
WEIGHTS, TOLD = "weights.safetensors", "stage.json"
PROBE = "edgesmith.probe."  # outputs on the example, by number: proof that a network was put together again
TOLERANCE = 1e-4  # of the largest output
# Settings that change how a stage runs and not what it gives.
IDLE = ("checkpoint_s", "workers")


def key_of(*parts: Any) -> str:
    """SHA-256 over values that JSON can hold; settings without influence on the result are left out."""
    plain = [_without_idle(msgspec.to_builtins(part)) for part in parts]
    return hashlib.sha256(msgspec.json.encode(plain, order="sorted")).hexdigest()


def _without_idle(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_idle(v) for k, v in value.items() if k not in IDLE}
    if isinstance(value, list | tuple):
        return [_without_idle(v) for v in value]
    return value


class Store:
    """A folder with a sub-folder for each stage and key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def place(self, name: str, key: str) -> Path:
        """The folder of a stage, made where it is not there.

        Raises:
            DataError: it cannot be made.
        """
        path = self.folder / f"{name}-{key[:16]}"
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"{path}: the folder for training stages cannot be made: {error.strerror or error}"
            ) from error
        return path

    def save(self, place: Path, network: nn.Module, example: torch.Tensor, told: msgspec.Struct) -> None:
        """Keep a finished stage; its checkpoints go."""
        tensors = {
            name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()
        }
        tensors |= _probe(network, example)
        new = place / f".{WEIGHTS}.new"
        save_file(tensors, new)
        (place / TOLD).write_bytes(msgspec.json.format(msgspec.json.encode(told), indent=1))
        new.replace(place / WEIGHTS)  # last: a stage counts once its weights are there
        for checkpoint in list(place.rglob(STATE)):
            checkpoint.unlink(missing_ok=True)

    def load(self, place: Path, network: nn.Module, example: torch.Tensor) -> nn.Module | None:
        """The network of a finished stage, made from the one it began with; None where there is none.

        Raises:
            DataError: what is there cannot be read, or does not give the answers that it gave.
        """
        path = place / WEIGHTS
        if not path.exists():
            return None
        mend = f"delete {place} to run the stage again"
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path}: not a sound file ({error}): {mend}") from error
        wanted = {name: value for name, value in tensors.items() if name.startswith(PROBE)}
        state = {name: value for name, value in tensors.items() if name not in wanted}
        found = reshaped(network, state)
        if found is None:
            raise DataError(f"{path}: does not fit the network: {mend}")
        got = _probe(found, example)
        for name, value in wanted.items():
            other = got.get(name)
            limit = TOLERANCE * max(1.0, float(value.abs().max()))
            if (
                other is None
                or other.shape != value.shape
                or not torch.allclose(other, value, atol=limit, rtol=0)
            ):
                raise DataError(f"{path}: gives other answers than when it was written: {mend}")
        return found


def _probe(network: nn.Module, example: torch.Tensor) -> dict[str, torch.Tensor]:
    from edgesmith.converters.adapters.base import flatten

    network.eval()
    with torch.no_grad():
        found = [tensor for _, tensor in flatten(network(example))]
    return {f"{PROBE}{number}": value.float().contiguous().clone() for number, value in enumerate(found)}
