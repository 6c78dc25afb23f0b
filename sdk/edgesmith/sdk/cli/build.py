"""``edgesmith build``: the engine of a bundle, made before it is needed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from edgesmith.sdk.backends.tensorrt.build import Progress as Report
from edgesmith.sdk.backends.tensorrt.cache import EngineCache
from edgesmith.sdk.backends.tensorrt.engine import calibrated, engine_key, ensure_engine
from edgesmith.sdk.backends.tensorrt.fallback import open_checked
from edgesmith.sdk.backends.tensorrt.library import Found, load_tensorrt, title_of
from edgesmith.sdk.backends.tensorrt.plan import BuildOptions, EngineRecord
from edgesmith.sdk.backends.tensorrt.race import ROUNDS, Conditions, race
from edgesmith.sdk.backends.tensorrt.state import Event, Race, State, StateBook
from edgesmith.sdk.backends.tensorrt.target import Target, detect_target
from edgesmith.sdk.board.profiles import profile
from edgesmith.sdk.board.sensors import Board, Throttling
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.cli.output import console, emit_json, printable, table
from edgesmith.sdk.errors import ConfigError

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def byte_count(text: str | None) -> int | None:
    """``512M`` as a number of bytes.

    Raises:
        ConfigError: it is no size.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)\s*([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if found is None or int(found[1]) == 0:
        raise ConfigError(f"--workspace {text}: give it as 512M or 2G")
    return int(found[1]) * UNITS[found[2].upper()]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--variant", help="A graph of the bundle by name; default: the race's winner, else the chosen one."
)
@click.option(
    "--race", "racing", is_flag=True, help="Build and time the variants; the fastest runs from now on."
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=ROUNDS,
    show_default=True,
    help="Turns a variant in a race.",
)
@click.option("--dla", type=click.IntRange(min=0), help="Number of the DLA core to build for.")
@click.option(
    "--workspace", metavar="SIZE", help="Most scratch memory, such as 512M. Default: 1G, or what fits."
)
@click.option(
    "--level", type=click.IntRange(0, 5), help="The builder's optimization level; more takes longer."
)
@click.option(
    "--size", nargs=2, type=click.IntRange(min=1), metavar="H W", help="Input of a graph of any size."
)
@click.option(
    "--version-compatible",
    is_flag=True,
    help="Loads on later TensorRT of the same major version: larger, and some fast kernels are left out.",
)
@click.option(
    "--hardware-compatible", is_flag=True, help="Runs on later GPUs too: slower. Not for Jetson boards."
)
@click.option("--sparse", is_flag=True, help="2:4 sparse kernels; bundles pruned so have them anyway.")
@click.option("--device", type=click.IntRange(min=0), default=0, show_default=True, help="Number of the GPU.")
@click.option(
    "--compute-capability", help="Build for this GPU, such as 8.6, and run nothing: TensorRT-RTX only."
)
@click.option("--fresh", is_flag=True, help="Build anew, and try again what failed.")
@click.option("--timeout", type=click.FloatRange(min=1), default=3600, show_default=True, help="Seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def build(
    bundle: Path,
    variant: str | None,
    racing: bool,
    rounds: int,
    dla: int | None,
    workspace: str | None,
    level: int | None,
    size: tuple[int, int] | None,
    version_compatible: bool,
    hardware_compatible: bool,
    sparse: bool,
    device: int,
    compute_capability: str | None,
    fresh: bool,
    timeout: float,
    as_json: bool,
) -> int:
    """Build BUNDLE's TensorRT engine on this device, self-test it, and keep it for every later load.

    The options are remembered for this bundle. The exit status is 1 when the engine that was asked for
    failed its self-test and another one took its place, and when a race was invalid.

    \b
    Keys of --json: bundle, variant, tensorrt, gpu, compute_capability, engine (plan_bytes, seconds, ...),
    in_use, rollback (null or what happened), race (null, or winner, lines, notes).
    """
    options = BuildOptions(
        workspace_bytes=byte_count(workspace),
        level=level,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        sparse=sparse,
        dla=dla,
        size=size,
        compute_capability=compute_capability,
        timeout_s=timeout,
    )
    opened = Bundle.open(bundle)
    opened.check()
    options = msgspec.structs.replace(options, sparse=sparse or opened.manifest.sparse)
    found = load_tensorrt()
    target = detect_target(found.require(), device)
    cache = EngineCache()
    if compute_capability is not None:
        return _for_elsewhere(opened, variant, found, target, options, cache, fresh, as_json)
    with _shown() as report:
        asked = _Asked(opened, variant, found, target, options, cache, device, report)
        answer, status = _raced(asked, rounds) if racing else _built(asked, fresh)
    if as_json:
        emit_json(answer)
    else:
        _tell(bundle, answer)
    return status


@dataclass(frozen=True)
class _Asked:
    """What the command was asked for, and what it found on this machine."""

    bundle: Bundle
    variant: str | None
    found: Found
    target: Target
    options: BuildOptions
    cache: EngineCache
    device: int
    report: Report

    @property
    def book(self) -> StateBook:
        """What is remembered of the bundle on this device."""
        return StateBook(self.cache, self.bundle, self.target)

    @property
    def place(self) -> dict[str, Any]:
        """What every step of building is told."""
        return {
            "found": self.found,
            "target": self.target,
            "options": self.options,
            "cache": self.cache,
            "progress": self.report,
        }


def _built(asked: _Asked, fresh: bool) -> tuple[dict[str, Any], int]:
    # Here and not above: the runtime's file needs CUDA's Python side, and `--help` does not.
    from edgesmith.sdk.backends.tensorrt.run import opener

    bundle, options, target, found = asked.bundle, asked.options, asked.target, asked.found
    name = asked.variant or asked.book.read().choice or bundle.manifest.chosen
    # First what was asked for and nothing else: a build that fails ends the command.
    engine, _ = ensure_engine(bundle, name, **asked.place, fresh=fresh)
    if fresh:
        asked.book.forgive(engine.record.key.digest)
    backend = open_checked(bundle, asked.variant, **asked.place, open_engine=opener(found, asked.device))
    in_use = backend.variant
    backend.close()
    state = asked.book.change(lambda old: msgspec.structs.replace(old, options=options))
    answer = _answer(bundle, target, found, state, in_use)
    key = engine_key(bundle, in_use, found=found, target=target, options=options)
    record = asked.cache.load(key, target)[0]
    answer["engine"] = None if record is None else _engine(record.record)
    return answer, 0 if state.rollback is None else 1


def _raced(asked: _Asked, rounds: int) -> tuple[dict[str, Any], int]:
    from edgesmith.sdk.backends.tensorrt.run import opener

    if asked.variant is not None:
        raise ConfigError("--race decides on the variant: leave --variant out")
    if calibrated(asked.found, asked.options):
        raise ConfigError("--race compares what a GPU runs, and a DLA here takes one graph: leave --dla out")
    result = race(
        asked.bundle,
        **asked.place,
        open_engine=opener(asked.found, asked.device),
        rounds=rounds,
        precisions=_precisions(asked.bundle),
        watch=watcher(Board()),
    )
    answer = _answer(asked.bundle, asked.target, asked.found, asked.book.read(), result.winner or "")
    return answer, 0 if result.winner is not None else 1


def watcher(board: Board) -> Callable[[], Conditions]:
    """What a race looks at between its rounds: the board's power mode, GPU clock in MHz, throttling."""
    throttling = Throttling(board)

    def look() -> Conditions:
        mode = board.power_mode()
        return Conditions(
            power_mode="" if mode is None else mode.name,
            clock_mhz=board.gpu().mhz,
            throttled=throttling.look(),
        )

    return look


def _for_elsewhere(
    bundle: Bundle,
    variant: str | None,
    found: Found,
    target: Target,
    options: BuildOptions,
    cache: EngineCache,
    fresh: bool,
    as_json: bool,
) -> int:
    """Build for another GPU: nothing can be run, so nothing is self-tested."""
    name = variant or bundle.manifest.chosen
    with _shown() as report:
        engine, _ = ensure_engine(
            bundle,
            name,
            found=found,
            target=target,
            options=options,
            cache=cache,
            progress=report,
            fresh=fresh,
        )
    answer = _answer(bundle, target, found, State(), "")
    answer |= {"variant": name, "engine": _engine(engine.record)}
    answer["compute_capability"] = options.compute_capability
    if as_json:
        emit_json(answer)
    else:
        _tell(bundle.path, answer)
    return 0


def _precisions(bundle: Bundle) -> tuple[str, ...] | None:
    """What the device computes in, as its profile has it; None for a bundle that is for no device."""
    name = bundle.manifest.target
    return None if name == "generic" else profile(name).precisions


def _answer(bundle: Bundle, target: Target, found: Found, state: State, in_use: str) -> dict[str, Any]:
    return {
        "bundle": str(bundle.path),
        "variant": in_use,
        "tensorrt": title_of(found.require()),
        "gpu": target.gpu,
        "compute_capability": target.compute_capability,
        "engine": None,
        "in_use": in_use,
        "rollback": msgspec.to_builtins(state.rollback),
        "race": msgspec.to_builtins(state.race),
    }


def _engine(record: EngineRecord) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(record)
    plain["digest"] = record.key.digest
    return plain


def _tell(path: Path, answer: dict[str, Any]) -> None:
    where = printable(f"{answer['gpu'] or 'GPU'} {answer['compute_capability']}".strip())
    engine = answer["engine"]
    if engine is not None:
        made = f"{engine['plan_bytes'] / 2**20:.1f} MiB in {engine['seconds']:.1f} s"
        click.echo(f"{path}: {engine['variant']} for {where}, {answer['tensorrt']}: {made}")
        coverage = engine["coverage"]
        if coverage is not None:
            left = [layer for layer in coverage["layers"] if not layer["taken"]]
            rows = [(layer["name"], layer["kind"], layer["why"]) for layer in left]
            all_layers = len(coverage["layers"])
            title = f"DLA core {coverage['core']} leaves {len(left)} of {all_layers} layers to the GPU"
            table(title, ("layer", "kind", "why"), rows)
        for note in engine["notes"]:
            click.echo(f"  {printable(note)}")
    if answer["race"] is not None and engine is None:
        _tell_race(path, where, msgspec.convert(answer["race"], Race))
    if answer["rollback"] is not None:
        click.echo(f"ROLLED BACK: {printable(str(msgspec.convert(answer['rollback'], Event)))}")


def _tell_race(path: Path, where: str, result: Race) -> None:
    rows = [
        (
            line.variant,
            "" if line.p50_ms is None else f"{line.p50_ms:.3f}",
            "" if line.p90_ms is None else f"{line.p90_ms:.3f}",
            "" if line.drop is None else f"{line.drop:.2f}",
            "" if line.plan_bytes is None else f"{line.plan_bytes / 2**20:.1f}",
            line.out or ("fastest" if line.variant == result.winner else ""),
        )
        for line in result.lines
    ]
    columns = ("variant", "p50 ms", "p90 ms", "drop", "MiB", "")
    table(f"{path} on {where}", columns, rows, right=columns[1:5])
    for note in result.notes:
        click.echo(printable(note))
    click.echo(f"from now on: {result.winner}" if result.winner else "INVALID: nothing was changed")


class _shown:
    """A progress display on stderr, and the function that feeds it."""

    def __init__(self) -> None:
        self._display = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Report:
        self._display.start()
        return self._report

    def __exit__(self, *about: object) -> None:
        self._display.stop()

    def _report(self, phase: str, step: int, steps: int) -> None:
        if phase not in self._tasks:
            self._tasks[phase] = self._display.add_task(printable(phase), total=steps or None)
        self._display.update(self._tasks[phase], completed=step)
        if steps and step >= steps:
            self._display.remove_task(self._tasks.pop(phase))
