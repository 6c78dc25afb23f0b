"""What a Jetson tells of itself without root: load, clocks, temperatures, power, power mode.

Layouts: JetPack 4 (iio power monitor), JetPack 5 to 7 (hwmon power monitor), Orin and older (nvgpu's devfreq
node), Thor (``gpu-gpc-0``). What is missing or cannot be read is None or left out, never an exception: a
sensor of a part that sleeps answers with an error, and a container sees half of the files.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

# Names that a device tree gives the GPU: Xavier, TX2, Orin, Thor.
GPU_NAMES = ("gv11b", "gp10b", "ga10b", "gb10b")
THOR = "gpu-gpc-0"
LOADS = (
    "sys/devices/gpu.0/load",
    "sys/devices/platform/gpu.0/load",
    "sys/devices/platform/bus@0/17000000.gpu/load",
)
TOTALS = ("VDD_IN", "POM_5V_IN")
BUSY, SLOW, STREAK = 0.9, 0.9, 3


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """The GPU at one moment: ``load`` 0 to 1, clocks in MHz; None where the board does not tell."""

    load: float | None = None
    mhz: float | None = None
    min_mhz: float | None = None
    max_mhz: float | None = None
    top_mhz: float | None = None
    governor: str | None = None

    @property
    def locked(self) -> bool | None:
        """Whether the clock cannot move, as after ``jetson_clocks``."""
        if self.min_mhz is None or self.max_mhz is None:
            return None
        return self.min_mhz == self.max_mhz


class PowerMode(msgspec.Struct, frozen=True, kw_only=True):
    """A mode of nvpmodel. ``gpu_mhz``: its limit; infinite for none, None where the mode does not say."""

    number: int
    name: str
    gpu_mhz: float | None = None


class Board:
    """The sensors below ``root``. Every call reads anew: a node may come late after the start."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def gpu(self) -> Gpu:
        """Load, clock, its limits (``top_mhz``: the highest step that the GPU has) and governor."""
        node = self._gpu_node()
        if node is None:
            return Gpu(load=self._load(None))
        steps = [int(n) for n in re.findall(r"\d+", _text(node / "available_frequencies") or "")]
        return Gpu(
            load=self._load(node),
            mhz=_scaled(node / "cur_freq", 1e6),
            min_mhz=_scaled(node / "min_freq", 1e6),
            max_mhz=_scaled(node / "max_freq", 1e6),
            top_mhz=max(steps) / 1e6 if steps else None,
            governor=_text(node / "governor"),
        )

    def temperatures(self) -> dict[str, float]:
        """Degrees Celsius by thermal zone, the hottest first."""
        return thermal_zones(self.root / "sys/class/thermal")

    def rails(self) -> dict[str, float]:
        """Watts by power rail; empty where the board has no INA3221, or hides it."""
        found: dict[str, float] = {}
        for device in _listed(self.root / "sys/bus/i2c/devices"):
            if "ina3221" not in (_text(device / "name") or ""):
                continue
            for monitor in _listed(device / "hwmon"):
                found.update(_hwmon_rails(monitor))
            for monitor in _listed(device):
                if monitor.name.startswith("iio:device"):
                    found.update(_iio_rails(monitor))
        return found

    def watts(self) -> float | None:
        """Power of the whole module: its input's rail, else the sum of the rails."""
        rails = self.rails()
        for name in TOTALS:
            if name in rails:
                return rails[name]
        return sum(rails.values()) if rails else None

    def power_modes(self) -> tuple[PowerMode, ...]:
        """All modes of ``/etc/nvpmodel.conf``, in its order."""
        text = _text(self.root / "etc/nvpmodel.conf") or ""
        parts = re.split(r"^<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", text, flags=re.MULTILINE)
        modes = []
        for number, name, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
            limit = re.search(r"^GPU\s+MAX_FREQ\s+(-?\d+)", body, re.MULTILINE)
            hertz = int(limit[1]) if limit else None
            mhz = None if hertz is None else float("inf") if hertz < 0 else hertz / 1e6
            modes.append(PowerMode(number=int(number), name=name, gpu_mhz=mhz))
        return tuple(modes)

    def power_mode(self) -> PowerMode | None:
        """The mode the board is in; named by its number where the configuration does not tell."""
        found = re.search(r"pmode:(\d+)", _text(self.root / "var/lib/nvpmodel/status") or "")
        if found is None:
            return None
        number = int(found[1])
        known = {mode.number: mode for mode in self.power_modes()}
        return known.get(number, PowerMode(number=number, name=str(number)))

    def fastest_mode(self) -> PowerMode | None:
        """The MAXN mode by its name, MAXN_SUPER first: number 0 is not the fastest on every board."""
        named = [mode for mode in self.power_modes() if "MAXN" in mode.name.upper()]
        return max(named, key=lambda mode: "SUPER" in mode.name.upper(), default=None)

    def throttled(self) -> bool | None:
        """Whether the GPU runs slower at this moment than its power mode allows, though it is busy.

        A heuristic, since the counters of the hardware need root: load of 90 % or more, and a clock below
        90 % of the mode's limit. A governor on its way up looks the same for a moment: see
        :class:`Throttling`. A limit set by hand below the mode's looks the same too. None where load,
        clock or limit are not told; Thor tells no load.
        """
        gpu = self.gpu()
        limit = _limit(gpu, self.power_mode())
        if gpu.load is None or gpu.mhz is None or limit is None:
            return None
        return gpu.load >= BUSY and gpu.mhz < SLOW * limit

    def _gpu_node(self) -> Path | None:
        nodes = _listed(self.root / "sys/class/devfreq")
        for node in nodes:
            if node.name == THOR:
                return node
        for node in nodes:
            name = (_text(node / "device/of_node/name") or "").rstrip("\0")
            if name in GPU_NAMES or "gpu" in name:
                return node
        return None

    def _load(self, node: Path | None) -> float | None:
        files = [self.root / place for place in LOADS]
        for file in [node / "device/load", *files] if node is not None else files:
            load = _scaled(file, 1000)
            if load is not None:
                return load
        return None


class Throttling:
    """:meth:`Board.throttled` that holds for three looks in a row, so that one short dip does not count."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self._row = 0

    def look(self) -> bool | None:
        """Look once; None where the board does not tell."""
        now = self.board.throttled()
        self._row = self._row + 1 if now else 0
        return None if now is None else self._row >= STREAK


def thermal_zones(folder: Path) -> dict[str, float]:
    """Degrees Celsius by zone of a ``thermal`` folder, the hottest first; without PMIC, which is constant."""
    found: dict[str, float] = {}
    for zone in _listed(folder):
        name, degrees = _text(zone / "type"), _scaled(zone / "temp", 1000)
        if not zone.name.startswith("thermal_zone") or not name or degrees is None or "PMIC" in name.upper():
            continue
        if -40 < degrees < 150:  # a sensor that is off says -256
            found[name] = max(degrees, found.get(name, degrees))
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _limit(gpu: Gpu, mode: PowerMode | None) -> float | None:
    # Heat lowers max_freq itself on some kernels, so it is the last resort and not the first.
    if mode is None or mode.gpu_mhz is None:
        return gpu.max_mhz
    limits = [mhz for mhz in (mode.gpu_mhz, gpu.top_mhz) if mhz is not None and mhz != float("inf")]
    return min(limits) if limits else gpu.max_mhz


def _hwmon_rails(monitor: Path) -> dict[str, float]:
    found = {}
    for channel in range(1, 7):  # 7 is the sum of the shunts and no rail
        label = _text(monitor / f"in{channel}_label")
        volts = _scaled(monitor / f"in{channel}_input", 1000)
        amperes = _scaled(monitor / f"curr{channel}_input", 1000)
        if label and label != "NC" and volts is not None and amperes is not None:
            found[label] = volts * amperes
    return found


def _iio_rails(monitor: Path) -> dict[str, float]:
    found = {}
    for channel in range(3):
        label = _text(monitor / f"rail_name_{channel}")
        watts = _scaled(monitor / f"in_power{channel}_input", 1000)
        if label and label != "NC" and watts is not None:
            found[label] = watts
    return found


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _text(file: Path) -> str | None:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return None


def _scaled(file: Path, unit: float) -> float | None:
    try:
        return int(_text(file) or "") / unit
    except ValueError:
        return None
