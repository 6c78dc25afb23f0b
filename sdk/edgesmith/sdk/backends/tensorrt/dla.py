"""Deep learning accelerators: which layers they take, and the old road to them.

The only file with builder precisions and a calibrator. Up to TensorRT 10.7 a DLA is programmed from a graph
without Q/DQ pairs, with the FP16 and INT8 flags and a calibration cache. Later versions, where they have a
DLA at all (11.4.1 on AGX Orin), take the strongly typed Q/DQ graph. ``Builder.num_DLA_cores`` decides: the
rest of the API is there in every version, and a request for a DLA that is not there passes without a word.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

import msgspec

from edgesmith.sdk.backends.tensorrt.library import named, version_of
from edgesmith.sdk.errors import BuildError

LAST_CALIBRATED = (10, 7)
_CACHE_HEAD = re.compile(rb"\ATRT-\d+-(\w+)")


class DlaLayer(msgspec.Struct, frozen=True, kw_only=True):
    """One layer: whether the DLA takes it, and what TensorRT says where it does not."""

    name: str
    kind: str
    taken: bool
    why: str = ""


class Coverage(msgspec.Struct, frozen=True, kw_only=True):
    """What of a network a DLA core takes; the rest falls back to the GPU."""

    core: int
    layers: tuple[DlaLayer, ...]

    @property
    def fallback(self) -> tuple[DlaLayer, ...]:
        """The layers that run on the GPU."""
        return tuple(part for part in self.layers if not part.taken)

    @property
    def switches(self) -> int:
        """How often the data goes from one to the other, in the order of the layers: each costs a copy."""
        taken = [part.taken for part in self.layers]
        return sum(a != b for a, b in itertools.pairwise(taken))

    def __str__(self) -> str:
        own = len(self.layers) - len(self.fallback)
        taken = f"DLA core {self.core} takes {own} of {len(self.layers)} layers"
        return f"{taken}, {self.switches} changes of device"


def needs_calibration(trt: Any) -> bool:
    """Whether this TensorRT programs a DLA by calibrator."""
    return version_of(trt)[:2] <= LAST_CALIBRATED and named(trt.BuilderFlag, "INT8") is not None


def check_core(trt: Any, builder: Any, core: int) -> None:
    """Refuse a core that is not there, which TensorRT itself may not do.

    Raises:
        BuildError: this device has no such core under this TensorRT.
    """
    cores = int(builder.num_DLA_cores)
    if core >= cores:
        have = f"{cores} DLA cores, numbered from 0" if cores else "no DLA"
        raise BuildError(
            f"DLA core {core} was asked for, and TensorRT {trt.__version__} sees {have} on this device: "
            "build "
            "without --dla"
        )


def use_core(trt: Any, config: Any, core: int, calibration: bytes | None) -> None:
    """Put everything on the DLA that it takes, the rest on the GPU.

    ``calibration`` is the cache of the old road; None for a graph that carries its precision.
    """
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    if calibration is None:
        return
    config.set_flag(trt.BuilderFlag.FP16)
    config.set_flag(trt.BuilderFlag.INT8)
    config.int8_calibrator = _calibrator(trt, cache_for(version_of(trt), calibration))


def cache_for(version: tuple[int, ...], cache: bytes) -> bytes:
    """The calibration cache with the head that this version of TensorRT accepts.

    The head names the version that made a cache, ``TRT-100300-EntropyCalibration2``. The scales are ours
    and hold for any version.

    Raises:
        BuildError: it is no calibration cache.
    """
    head = _CACHE_HEAD.match(cache)
    if head is None:
        raise BuildError(
            "calibration.cache does not begin with TRT-VERSION-ALGORITHM: convert the bundle again"
        )
    major, minor, patch = (*version, 0, 0)[:3]
    return b"TRT-%d-%s" % (major * 10000 + minor * 100 + patch, head[1]) + cache[head.end() :]


def coverage_of(config: Any, network: Any, core: int, log: Any) -> Coverage:
    """Ask layer by layer, before the build; the reasons are what TensorRT logs meanwhile."""
    layers = []
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        said = len(log.warnings)
        taken = bool(config.can_run_on_DLA(layer))
        why = "" if taken else "; ".join(dict.fromkeys(log.warnings[said:])) or "TensorRT gives no reason"
        kind = str(layer.type).rpartition(".")[2]
        layers.append(DlaLayer(name=layer.name, kind=kind, taken=taken, why=why))
    return Coverage(core=core, layers=tuple(layers))


def _calibrator(trt: Any, cache: bytes) -> Any:
    class Calibrator(trt.IInt8EntropyCalibrator2):  # type: ignore[misc]  # the package has no types
        """Gives the cache, and no images: everything is in it."""

        def __init__(self) -> None:
            trt.IInt8EntropyCalibrator2.__init__(self)

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: list[str]) -> list[int] | None:
            return None

        def read_calibration_cache(self) -> bytes:
            return cache

        def write_calibration_cache(self, cache: bytes) -> None:
            """Nothing new is measured."""

    return Calibrator()
