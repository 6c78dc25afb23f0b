"""Memory of a process with its children, as the kernel counts it."""

from __future__ import annotations

from pathlib import Path


def memory_of(process: int) -> int:
    """Bytes that a process and its children hold for themselves, shared pages by their share."""
    total = 0
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue  # it ended while we looked
            children.setdefault(parent, []).append(int(entry.name))
    waiting = [process]
    while waiting:
        one = waiting.pop()
        waiting += children.get(one, [])
        try:
            text = Path(f"/proc/{one}/smaps_rollup").read_text()
        except OSError:
            continue  # it ended while we looked
        total += 1024 * int(text.partition("\nPss:")[2].split()[0])
    return total
