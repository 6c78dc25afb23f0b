"""Memory of this process, and of the machine."""

from __future__ import annotations

from pathlib import Path


def resident_bytes() -> int:
    """Resident memory of this process; 0 where the system does not tell."""
    return _status("VmRSS:")


def peak_resident_bytes() -> int:
    """The most resident memory that this process had; 0 where the system does not tell.

    Not ``getrusage``: its figure begins with that of the process that started this one.
    """
    return _status("VmHWM:")


def free_bytes(path: Path = Path("/proc/meminfo")) -> int | None:
    """RAM that a new program can have without swapping; None where the system does not tell."""
    try:
        text = path.read_text()
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _status(name: str) -> int:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0
