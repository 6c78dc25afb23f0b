"""The process in which TensorRT builds an engine: ``python -m ...tensorrt.worker FOLDER``.

A process of its own, so that a native crash, the kernel's out-of-memory killer or a time limit ends a build
and not the robot. It reads ``job.json`` and ``graph.onnx`` of the folder (and ``calibration.cache``,
``timing.cache`` where they are), and writes ``plan``, ``timing.new``, ``log.txt`` and ``answer.json``.
Progress goes to stdout, a line a step: phase, step, steps, with tabs between.

It ends when its parent does, and asks the kernel to take it first when memory runs out.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from edgesmith.sdk.backends.tensorrt import dla
from edgesmith.sdk.backends.tensorrt.library import is_rtx, load_library, named, version_of
from edgesmith.sdk.backends.tensorrt.plan import BuildOptions
from edgesmith.sdk.errors import BackendError, BuildError

GRAPH, JOB, PLAN, LOG, ANSWER = "graph.onnx", "job.json", "plan", "log.txt", "answer.json"
TIMING, TIMING_NEW, CALIBRATION = "timing.cache", "timing.new", "calibration.cache"
CANNOT_LOAD = 3  # exit status where the library does not load
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
Progress = Callable[[str, int, int], None]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One build. ``library`` is the specification of TensorRT, ``parent`` the process that waits.

    ``batch`` is (min, opt, max), ``size`` the ``(H, W)`` of an input that may have any; ``short`` says that
    memory is short: no auxiliary streams then, each of which has buffers of its own.
    """

    library: str
    options: BuildOptions
    workspace_bytes: int
    batch: tuple[int, int, int]
    size: tuple[int, int] | None
    parent: int = 0
    short: bool = False


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the builder did; ``fault`` is empty where there is a plan."""

    version: str = ""
    seconds: float = 0.0
    plan_bytes: int = 0
    fault: str = ""
    warnings: tuple[str, ...] = ()
    coverage: dla.Coverage | None = None
    timing: bool = False


def build(trt: Any, job: Job, folder: Path, progress: Progress | None = None) -> Answer:
    """Parse the folder's graph and build. The plan is written to the folder.

    Never raises for a graph that is refused: the answer says why.
    """
    begun = time.perf_counter()
    with open(folder / LOG, "w", encoding="utf-8", errors="replace", buffering=1) as file:
        log = make_log(trt, file.write)
        try:
            plan, coverage, timing = _built(trt, job, folder, log, progress)
        except BuildError as error:
            spent = time.perf_counter() - begun
            return Answer(version=str(trt.__version__), fault=str(error), seconds=spent)
    if plan is None:
        fault = "; ".join(log.errors[-3:]) or "TensorRT gave no plan and no reason"
        return Answer(
            version=str(trt.__version__),
            fault=fault,
            seconds=time.perf_counter() - begun,
            warnings=tuple(dict.fromkeys(log.warnings)),
            coverage=coverage,
        )
    with open(folder / PLAN, "wb") as out:
        out.write(plan)
        out.flush()
        os.fsync(out.fileno())
    if timing is not None:
        (folder / TIMING_NEW).write_bytes(timing)
    return Answer(
        version=str(trt.__version__),
        seconds=time.perf_counter() - begun,
        plan_bytes=len(plan),
        warnings=tuple(dict.fromkeys(log.warnings)),
        coverage=coverage,
        timing=timing is not None,
    )


def _built(
    trt: Any, job: Job, folder: Path, log: Any, progress: Progress | None
) -> tuple[bytes | None, dla.Coverage | None, bytes | None]:
    options = job.options
    builder = trt.Builder(log)
    core = options.dla
    calibrated = core is not None and dla.needs_calibration(trt)
    if core is not None:
        dla.check_core(trt, builder, core)
    network = builder.create_network(_network_flags(trt, typed=not calibrated))
    parser = trt.OnnxParser(network, log)
    if not parser.parse((folder / GRAPH).read_bytes()):
        raise BuildError(_parser_fault(parser))
    config = builder.create_builder_config()
    _configure(trt, config, job)
    _add_profile(builder, network, config, job)
    coverage = None
    if core is not None:
        calibration = (folder / CALIBRATION).read_bytes() if calibrated else None
        dla.use_core(trt, config, core, calibration)
        coverage = dla.coverage_of(config, network, core, log)
    timing_used = _use_timing_cache(config, folder)
    monitor = _monitor(trt, progress) if progress is not None else None
    if monitor is not None:
        config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return None, coverage, None
    timing = config.get_timing_cache() if timing_used else None
    return bytes(plan), coverage, None if timing is None else bytes(timing.serialize())


def _network_flags(trt: Any, *, typed: bool) -> int:
    """Strongly typed, by name: bit 1 in TensorRT 10, bit 0 in 11, where it is ignored."""
    flag = named(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    return 1 << int(flag) if typed and flag is not None else 0


def _configure(trt: Any, config: Any, job: Job) -> None:
    options = job.options
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.workspace_bytes)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.level is not None:
        config.builder_optimization_level = options.level
    if job.short:
        config.max_aux_streams = 0
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.sparse:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.compute_capability is not None:
        _choose_gpu(trt, config, options.compute_capability)


def _choose_gpu(trt: Any, config: Any, capability: str) -> None:
    if not is_rtx(trt):
        raise BuildError(
            f"TensorRT {trt.__version__} builds for the GPU that it runs on alone: take the compute "
            "capability "
            "out, or build with TensorRT-RTX"
        )
    member = named(trt.ComputeCapability, f"SM{capability.replace('.', '')}")
    if member is None:
        raise BuildError(f"TensorRT-RTX {trt.__version__} cannot build for compute capability {capability}")
    config.num_compute_capabilities = 1  # the count has to be set before the capability
    config.set_compute_capability(member, 0)


def _add_profile(builder: Any, network: Any, config: Any, job: Job) -> None:
    """One optimization profile for the axes that are open: batch, height and width."""
    profile, needed = builder.create_optimization_profile(), False
    for number in range(network.num_inputs):
        value = network.get_input(number)
        shape = tuple(value.shape)
        if -1 not in shape:
            continue
        if -1 in shape[1:] and (job.size is None or len(shape) != 4 or shape[1] == -1):
            raise BuildError(
                f"input {value.name} takes any size ({shape}): an engine needs one, give --size HEIGHT WIDTH"
            )
        needed = True
        open_axes = {0: None, 2: job.size[0] if job.size else None, 3: job.size[1] if job.size else None}
        ranges = [
            [
                (open_axes[axis] or count) if length == -1 and axis else (count if length == -1 else length)
                for axis, length in enumerate(shape)
            ]
            for count in job.batch
        ]
        profile.set_shape(value.name, *ranges)
    if needed:
        config.add_optimization_profile(profile)


def _use_timing_cache(config: Any, folder: Path) -> bool:
    """Kernel timings of earlier builds on this device; what does not fit is begun anew."""
    path = folder / TIMING
    known = path.read_bytes() if path.is_file() else b""
    if known and config.set_timing_cache(config.create_timing_cache(known), False):
        return True
    return bool(config.set_timing_cache(config.create_timing_cache(b""), False))


def _parser_fault(parser: Any) -> str:
    if not parser.num_errors:
        return "the ONNX parser refused the graph and gave no reason"
    error = parser.get_error(0)
    code = str(error.code()).rpartition(".")[2]
    lines = [line for line in str(error.desc()).splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines else ""
    if not error.node_name():
        return f"the ONNX parser refused the graph: {text} ({code})"
    said = "this operator is not supported" if text in ("", "false") else text
    return f"the ONNX parser refused {error.node_operator()} {error.node_name()}: {said} ({code})"


def make_log(trt: Any, write: Callable[[str], Any] = lambda text: None) -> Any:
    """A logger that writes all but the verbose lines and keeps warnings and errors.

    The first logger of a process counts; later ones are ignored by TensorRT.
    """
    levels = trt.ILogger.Severity

    class Log(trt.ILogger):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # super() does not reach the native part
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, level: Any, message: str) -> None:
            if level == levels.VERBOSE:
                return
            write(f"[{str(level).rpartition('.')[2]}] {message}\n")
            if level in (levels.ERROR, levels.INTERNAL_ERROR):
                self.errors.append(message)
            elif level == levels.WARNING:
                self.warnings.append(message)

    return Log()


def _monitor(trt: Any, progress: Progress) -> Any | None:
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            progress(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress(phase_name, step + 1, self.steps.get(phase_name, 0))
            return True

        def phase_finish(self, phase_name: str) -> None:
            total = self.steps.pop(phase_name, 0)
            progress(phase_name, total, total)

    return Monitor()


def _end_with(parent: int) -> None:
    """Be killed when the parent ends, and first when memory runs out (Linux)."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    if parent and os.getppid() != parent:
        sys.exit(130)
    try:
        Path("/proc/self/oom_score_adj").write_text("900")
    except OSError as error:
        sys.stderr.write(f"the build may not be the first to go when memory runs out: {error}\n")


def main(folder: Path) -> None:
    """Build what lies in the folder, and leave the answer there."""
    job = msgspec.json.decode((folder / JOB).read_bytes(), type=Job)
    _end_with(job.parent)
    # Native code prints to file descriptor 1 as it likes: the progress keeps a copy of its own.
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    last: list[tuple[str, int]] = [("", -1)]

    def progress(phase: str, step: int, steps: int) -> None:
        if last[0] != (phase, step):
            last[0] = (phase, step)
            out.write(f"{phase}\t{step}\t{steps}\n")

    try:
        trt = load_library(job.library)
    except BackendError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(CANNOT_LOAD)
    answer = build(trt, job, folder, progress)
    (folder / ANSWER).write_bytes(msgspec.json.encode(answer))
    out.flush()
    # Not a normal exit: TensorRT's own clean-up at the end of a process is known to crash.
    sys.stderr.flush()
    os._exit(0)


__all__ = ["Answer", "Job", "build", "main", "make_log", "version_of"]

if __name__ == "__main__":
    main(Path(sys.argv[1]))
