"""A trained network as a file for whoever wants it outside of a bundle."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from edgesmith.converters.export import quiet
from edgesmith.sdk.errors import ConfigError, ExportError

ENDINGS = (".pt2", ".safetensors")


def check_output(path: Path) -> None:
    """Refuse a name that no file can have, before anything is trained.

    Raises:
        ConfigError: the ending or the folder is wrong.
    """
    if path.suffix not in ENDINGS:
        raise ConfigError(
            f"{path}: the ending says what is written: .pt2 (the network as a program, for model.program) or "
            ".safetensors (its weights)"
        )
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigError(f"{path}: give a file in a folder that exists")


def write_network(path: Path, network: nn.Module, example: torch.Tensor) -> None:
    """Write a program (``.pt2``, for any number of images) or the weights (``.safetensors``).

    Raises:
        ExportError: the network cannot be traced for any number of images, or the file cannot be written.
    """
    new = path.with_name(f".new-{path.name}")
    try:
        if path.suffix == ".safetensors":
            save_file({name: value.contiguous() for name, value in network.state_dict().items()}, new)
        else:
            _save_program(new, network, example)
        new.replace(path)
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        if new.exists():
            new.unlink()


def _save_program(path: Path, network: nn.Module, example: torch.Tensor) -> None:
    axis = {0: torch.export.Dim("batch", min=1, max=4096)}
    with quiet(), torch.no_grad():
        try:
            program = torch.export.export(
                network, (example.repeat(2, 1, 1, 1),), dynamic_shapes=(axis,), strict=False
            )
        except Exception as error:
            # Whatever the user's forward raises comes through here, beside torch's own errors.
            raise ExportError(
                "the network cannot be traced for any number of images "
                f"({str(error).strip().splitlines()[0]}): write the weights in place of a program "
                "(-o NAME.safetensors)"
            ) from error
        torch.export.save(program, path)
