"""Builds an engine: starts the worker, looks after memory and time, and says why where it fails.

Memory is looked at first: on a board that shares its RAM a builder that asks for too much is killed by the
kernel, and other processes with it. Where little is free the workspace gets smaller, with a warning.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

import msgspec

from edgesmith.sdk.backends.tensorrt.dla import Coverage
from edgesmith.sdk.backends.tensorrt.plan import BuildOptions
from edgesmith.sdk.backends.tensorrt.worker import (
    ANSWER,
    CALIBRATION,
    CANNOT_LOAD,
    GRAPH,
    JOB,
    LOG,
    PLAN,
    TIMING,
    TIMING_NEW,
    Answer,
    Job,
)
from edgesmith.sdk.board.memory import free_bytes
from edgesmith.sdk.errors import BackendError, BuildError

log = logging.getLogger(__name__)
MIB = 1 << 20
WORKSPACE = 1 << 30
LEAST_WORKSPACE = 64 * MIB
# TensorRT's and CUDA's libraries with a context: 0.6 to 0.9 GB resident in builds of small networks. Assumed.
LIBRARIES = 768 * MIB
# The file, the parser's network and the plan hold the weights once each.
COPIES = 3
TAIL_LINES = 12
# Not the graph's fault: there may be more memory next time.
_SHORT_OF_MEMORY = re.compile(r"out ?of ?memory|insufficient memory|(?:not|n't) be allocated", re.IGNORECASE)
Progress = Callable[[str, int, int], None]


class Memory(NamedTuple):
    """The preflight's answer; ``warning`` is None where there is enough."""

    workspace_bytes: int
    warning: str | None


class Built(msgspec.Struct, frozen=True, kw_only=True):
    """A plan on disk, and how it came about; ``timing`` is the new timing cache where there is one."""

    plan: Path
    seconds: float
    version: str
    workspace_bytes: int
    notes: tuple[str, ...]
    coverage: Coverage | None = None
    timing: Path | None = None


def preflight(graph_bytes: int, wanted_bytes: int, free: int | None, *, shared: bool) -> Memory:
    """How much workspace the builder gets.

    Args:
        graph_bytes: size of the ONNX file.
        wanted_bytes: the workspace asked for.
        free: RAM that is available; None where the system does not tell.
        shared: the GPU has no memory of its own.

    Raises:
        BuildError: not even the least workspace fits.
    """
    if free is None:
        return Memory(wanted_bytes, None)
    needed = LIBRARIES + COPIES * graph_bytes
    room = free - needed
    if not shared:
        # The workspace lies in the GPU's own memory; only the weights' copies are in RAM.
        if room < 0:
            return Memory(wanted_bytes, f"{_mib(free)} of RAM are free, a build takes about {_mib(needed)}")
        return Memory(wanted_bytes, None)
    if room >= wanted_bytes:
        return Memory(wanted_bytes, None)
    if room < LEAST_WORKSPACE:
        raise BuildError(
            f"not enough memory to build: {_mib(free)} are free, and about {_mib(needed + LEAST_WORKSPACE)} "
            "are needed. Stop other programs, or the desktop (sudo systemctl isolate multi-user.target), "
            "or add swap"
        )
    return Memory(
        room,
        f"{_mib(free)} of memory are free: the workspace is {_mib(room)} instead of {_mib(wanted_bytes)}, "
        "and the engine may be slower for it; stop other programs or the desktop, and build again",
    )


def build_engine(
    graph: bytes,
    folder: Path,
    *,
    library: str,
    options: BuildOptions,
    batch: tuple[int, int, int],
    size: tuple[int, int] | None,
    shared_memory: bool,
    calibration: bytes | None = None,
    timing: bytes | None = None,
    progress: Progress | None = None,
    free: int | None = None,
) -> Built:
    """Build in a process of its own. The plan lies in ``folder``, which belongs to this build alone.

    Args:
        graph: the ONNX model.
        folder: a folder that exists and is empty; the caller removes it.
        library: TensorRT's specification, see :mod:`~.library`.
        batch: (min, opt, max) of an open batch axis.
        size: ``(H, W)`` of an input without a size.
        shared_memory: the GPU shares the RAM.
        calibration: the calibration cache, for a DLA of TensorRT <= 10.7.
        timing: the timing cache of earlier builds on this device.
        progress: is called with phase, step and number of steps.
        free: bytes of RAM that are free, in place of what the system says.

    Raises:
        BuildError: refused, out of memory, out of time, crashed; the message ends with the log's last lines.
        BackendError: TensorRT does not load.
    """
    wanted = options.workspace_bytes or WORKSPACE
    memory = preflight(len(graph), wanted, free_bytes() if free is None else free, shared=shared_memory)
    if memory.warning:
        log.warning("%s", memory.warning)
    job = Job(
        library=library,
        options=options,
        workspace_bytes=memory.workspace_bytes,
        batch=batch,
        size=options.size or size,
        parent=os.getpid(),
        short=memory.warning is not None and shared_memory,
    )
    (folder / GRAPH).write_bytes(graph)
    (folder / JOB).write_bytes(msgspec.json.encode(job))
    for name, data in ((CALIBRATION, calibration), (TIMING, timing)):
        if data is not None:
            (folder / name).write_bytes(data)
    answer = _work(folder, options.timeout_s, progress)
    if answer.fault:
        text = f"TensorRT {answer.version} cannot build this graph: {answer.fault}{_tail(folder)}"
        raise BuildError(text, lasting=_SHORT_OF_MEMORY.search(answer.fault) is None)
    if answer.coverage is not None:
        log.info("%s", answer.coverage)
    new = folder / TIMING_NEW
    return Built(
        plan=folder / PLAN,
        seconds=answer.seconds,
        version=answer.version,
        workspace_bytes=memory.workspace_bytes,
        notes=((memory.warning,) if memory.warning else ()) + answer.warnings[:20],
        coverage=answer.coverage,
        timing=new if answer.timing else None,
    )


def _work(folder: Path, timeout_s: float, progress: Progress | None) -> Answer:
    """Run the worker until it answers; it is gone when this function is left, in whatever way."""
    command = [sys.executable, "-m", "edgesmith.sdk.backends.tensorrt.worker", str(folder)]
    with open(folder / "stderr.txt", "wb") as errors:
        # A session of its own: Ctrl-C reaches this process alone, which then ends the worker.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )
    assert process.stdout is not None
    try:
        in_time = _follow(process.stdout, time.monotonic() + timeout_s, progress)
        if not in_time:
            raise BuildError(f"the build took longer than {timeout_s:g} s and was ended{_tail(folder)}")
        status = process.wait()
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stdout.close()
    if status == 0 and (folder / ANSWER).is_file():
        return msgspec.json.decode((folder / ANSWER).read_bytes(), type=Answer)
    said = (folder / "stderr.txt").read_text(errors="replace").strip().splitlines()
    last = said[-1] if said else "no message"
    if status == CANNOT_LOAD:
        raise BackendError(last)
    if status == -signal.SIGKILL:
        raise BuildError(
            "the build was killed, most likely because memory ran out (`sudo dmesg` says so): stop other "
            f"programs, give a smaller --workspace, or add swap{_tail(folder)}"
        )
    if status < 0:
        raise BuildError(f"TensorRT crashed while building ({signal.Signals(-status).name}){_tail(folder)}")
    raise BuildError(f"the build ended with status {status}: {last}{_tail(folder)}")


def _follow(stream: IO[bytes], until: float, progress: Progress | None) -> bool:
    """Pass progress on until the stream ends; False where time ran out first."""
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            left = until - time.monotonic()
            if left <= 0:
                return False
            if not selector.select(left):
                continue
            data = os.read(stream.fileno(), 65536)
            if not data:
                return True
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                phase, _, numbers = line.decode(errors="replace").partition("\t")
                step, _, steps = numbers.partition("\t")
                if progress is not None and step.isdigit() and steps.isdigit():
                    progress(phase, int(step), int(steps))


def _tail(folder: Path) -> str:
    """The log's last lines, for the end of a message."""
    path = folder / LOG
    if not path.is_file():
        return ""
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return "\nThe builder's log ends:\n  " + "\n  ".join(lines[-TAIL_LINES:]) if lines else ""


def emptied(folder: Path) -> Path:
    """The folder, new and private: what an earlier build left there goes."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700)
    return folder


def _mib(count: int) -> str:
    return f"{count / MIB:,.0f} MiB"
