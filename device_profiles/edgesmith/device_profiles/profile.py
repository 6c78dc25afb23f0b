"""What is known of one device: figures with their sources, read from a TOML file beside this one.

A figure's ``status`` says how far it can be trusted: ``documented`` (a source states it),
``derived`` (computed from other figures that are) or ``unverified`` (plausible, no source at hand).
"""

from __future__ import annotations

import difflib
from importlib import resources
from typing import Literal

import msgspec

Status = Literal["documented", "derived", "unverified"]
Precision = Literal["fp32", "fp16", "int8", "fp8", "fp4"]


class Figure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One number; ``source`` is a key of the profile's ``sources``."""

    value: float
    source: str
    status: Status


class Stated(Figure, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The maker's own throughput in 10^12 operations a second.

    ``kind`` is the number format, and whether 2:4 sparsity is counted; ``covers`` whether the
    DLA cores are in it.
    """

    kind: Literal["int8-sparse", "int8-dense", "fp16-dense", "fp4-sparse"]
    covers: Literal["gpu", "gpu+dla"]


class PowerMode(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The highest clocks of one setting of the board.

    ``int8_tops`` and ``fp16_tflops`` are the GPU's dense peaks; ``int8_tops`` is None where the
    hardware has no INT8 arithmetic. ``watts_min`` and ``watts_max`` are the module's power range.
    """

    name: str
    gpu_mhz: Figure
    bandwidth_gb_s: Figure
    watts_min: Figure
    watts_max: Figure
    int8_tops: Figure | None = None
    fp16_tflops: Figure
    stated: Stated


class Software(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one JetPack brings. ``dla``: TensorRT there can use the module's DLA cores."""

    jetpack: str
    tensorrt: str
    cuda: str
    dla: bool
    source: str
    status: Status


class DeviceProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One device. Figures are None, and ``modes`` empty, where they are not known.

    Attributes:
        name: as in ``[target] device`` of a recipe, such as ``orin-nano-8gb``.
        title: the name for people.
        family: ``orin``, ``thor``, ``xavier``, ``nano``, ``rtx`` or ``generic``.
        precisions: number formats that the hardware computes in.
        chip: the system on chip, as in ``/proc/device-tree/compatible``.
        compute_capability: CUDA's, such as ``8.7``.
        unsupported: why bundles cannot run there on TensorRT, or None.
        sms, cuda_cores, dla_cores: numbers of units.
        memory_gb: RAM, shared by CPU and GPU.
        int8_ops_per_clock, fp16_ops_per_clock: dense operations an SM a clock.
        modes: settings of the board, the usual one first.
        software: JetPack releases, the oldest first.
        sources: what the sources' short names stand for.
        notes: what else should be known.
    """

    name: str
    title: str
    family: Literal["orin", "thor", "xavier", "nano", "rtx", "generic"]
    precisions: tuple[Precision, ...]
    chip: str | None = None
    compute_capability: str | None = None
    unsupported: str | None = None
    sms: Figure | None = None
    cuda_cores: Figure | None = None
    memory_gb: Figure | None = None
    dla_cores: Figure | None = None
    int8_ops_per_clock: Figure | None = None
    fp16_ops_per_clock: Figure | None = None
    modes: tuple[PowerMode, ...] = ()
    software: tuple[Software, ...] = ()
    sources: dict[str, str] = {}
    notes: tuple[str, ...] = ()

    def mode(self, name: str | None = None) -> PowerMode:
        """A power mode by name; the usual one without a name.

        Raises:
            LookupError: the profile has no such mode, or no figures at all.
        """
        if not self.modes:
            raise LookupError(f"{self.name} has no power modes: its figures are not known")
        for mode in self.modes:
            if name in (None, mode.name):
                return mode
        raise LookupError(f"{self.name} has no mode {name!r}; it has {', '.join(m.name for m in self.modes)}")


def list_profiles() -> tuple[str, ...]:
    """The names of all profiles, sorted."""
    files = resources.files(__package__).iterdir()
    return tuple(sorted(f.name[:-5].replace("_", "-") for f in files if f.name.endswith(".toml")))


def load_profile(name: str) -> DeviceProfile:
    """The profile of that name, such as ``orin-nano-8gb``.

    Raises:
        LookupError: there is none; the message has the names that are close.
    """
    known = list_profiles()
    if name not in known:
        wanted = name.lower().replace("_", "-")
        close = [n for n in known if wanted and wanted in n]
        close = close or difflib.get_close_matches(wanted, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(known)}"
        raise LookupError(f"there is no device profile {name!r}: {hint}")
    text = resources.files(__package__).joinpath(f"{name.replace('-', '_')}.toml").read_bytes()
    return msgspec.toml.decode(text, type=DeviceProfile)
