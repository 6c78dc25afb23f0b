"""What is known of a bundle on this device: which engines passed, which failed, what the race chose.

A JSON file beside the engines, one for each bundle and GPU: ``state/DIGEST.json``.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from edgesmith.sdk.backends.tensorrt.cache import MAX_RECORD_BYTES, EngineCache, read_private, write_private
from edgesmith.sdk.backends.tensorrt.plan import BuildOptions, EngineRecord, identity
from edgesmith.sdk.backends.tensorrt.target import Target
from edgesmith.sdk.bundle import Bundle

log = logging.getLogger(__name__)
MOST_PASSED, MOST_FAILED, MOST_EVENTS = 8, 32, 20
_LOCK_S = 10.0


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """What may change under an engine without its key changing: a self-test holds for this alone."""

    tensorrt: str
    driver: str
    l4t: str

    @classmethod
    def of(cls, target: Target) -> Environment:
        """The target's."""
        return cls(tensorrt=target.tensorrt, driver=target.driver, l4t=target.l4t)


class Divergence(msgspec.Struct, frozen=True, kw_only=True):
    """An output that was not what the bundle says: largest difference, and the difference allowed."""

    output: str
    max_abs: float
    tolerance: float

    def __str__(self) -> str:
        return f"output {self.output} is off by {self.max_abs:.4g}, {self.tolerance:.4g} is allowed"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The self-test of one engine in one environment: of this very plan, not of one that was built later.

    ``plan_sha256`` is empty, and ``reason`` says why, where it did not come to a self-test.
    """

    digest: str
    plan_sha256: str
    variant: str
    environment: Environment
    when: str
    divergence: Divergence | None = None
    reason: str = ""

    def __str__(self) -> str:
        return f"the self-test failed before: {self.divergence}" if self.divergence else self.reason


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A rollback: what was to run, why it does not, which variant runs in its place (empty: no engine).

    ``how`` says more of what runs, ``others`` what else does not.
    """

    when: str
    wanted: str
    problem: str
    in_use: str
    how: str = ""
    digest: str = ""
    divergence: Divergence | None = None
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        now = f"in use: {self.in_use}{self.how and f', {self.how}'}" if self.in_use else "no engine is in use"
        return "; ".join((f"{self.wanted}: {self.problem}", *self.others, now))


class RaceLine(msgspec.Struct, frozen=True, kw_only=True):
    """One variant in the race: its times in ms, or why it did not run."""

    variant: str
    p50_ms: float | None = None
    p90_ms: float | None = None
    drop: float | None = None
    build_s: float | None = None
    plan_bytes: int | None = None
    out: str = ""


class Race(msgspec.Struct, frozen=True, kw_only=True):
    """A race and the board's state while it ran; ``winner`` is None where it was invalid."""

    when: str
    winner: str | None
    lines: tuple[RaceLine, ...]
    power_mode: str = ""
    clock_mhz: float | None = None
    throttled: bool | None = None
    notes: tuple[str, ...] = ()


class State(msgspec.Struct, frozen=True, kw_only=True):
    """All of it.

    Attributes:
        choice: the variant that runs where none is asked for; None is the bundle's chosen one.
        options: how the engine that runs was asked to be built; None is the default.
        passed, failed: self-tests, the newest first.
        rollback: the event that holds now; None where what was wanted runs.
        events: what happened, the newest first.
        race: the last one.
    """

    choice: str | None = None
    options: BuildOptions | None = None
    passed: tuple[Verdict, ...] = ()
    failed: tuple[Verdict, ...] = ()
    rollback: Event | None = None
    events: tuple[Event, ...] = ()
    race: Race | None = None

    def has_passed(self, engine: EngineRecord, environment: Environment) -> bool:
        """Whether the engine passed its self-test in this environment."""
        return any(v.plan_sha256 == engine.plan_sha256 and v.environment == environment for v in self.passed)

    def failure(self, digest: str, environment: Environment) -> Verdict | None:
        """How the engine, built anew at the end, failed it in this environment."""
        return next((v for v in self.failed if v.digest == digest and v.environment == environment), None)


class StateBook:
    """Reads and changes the state of one bundle on one GPU."""

    def __init__(self, cache: EngineCache, bundle: Bundle, target: Target) -> None:
        text = f"{identity(bundle)} {target.library} {target.gpu} {target.compute_capability}"
        self._name = hashlib.sha256(text.encode()).hexdigest()[:32]
        self._cache = cache
        self.environment = Environment.of(target)

    @property
    def path(self) -> Path:
        """The file."""
        return self._cache.root / "state" / f"{self._name}.json"

    def read(self) -> State:
        """The state; an empty one where there is none or it cannot be read, which is logged."""
        try:
            return msgspec.json.decode(read_private(self.path, MAX_RECORD_BYTES), type=State)
        except FileNotFoundError:
            return State()
        except (PermissionError, msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("%s is begun anew: %s", self.path, error)
            return State()

    def change(self, how: Callable[[State], State]) -> State:
        """Read, change and write, alone among processes."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._cache.locked(f"state-{self._name}", _LOCK_S))
            except TimeoutError:
                # A lost note costs one more self-test; a robot that waits costs more.
                log.warning("%s: another process keeps it locked; not changed", self.path)
                return self.read()
            state = how(self.read())
            write_private(self.path, msgspec.json.encode(state))
        return state

    def passed(self, engine: EngineRecord) -> None:
        """Note that an engine passed here and now."""
        digest = engine.key.digest
        verdict = Verdict(
            digest=digest,
            plan_sha256=engine.plan_sha256,
            variant=engine.variant,
            environment=self.environment,
            when=now(),
        )

        def add(state: State) -> State:
            others = [v for v in state.passed if v.digest != digest]
            return msgspec.structs.replace(
                state,
                passed=(verdict, *others)[:MOST_PASSED],
                failed=tuple(v for v in state.failed if v.digest != digest),
            )

        self.change(add)

    def failed(
        self,
        digest: str,
        variant: str,
        reason: str,
        *,
        engine: EngineRecord | None = None,
        divergence: Divergence | None = None,
    ) -> None:
        """Note that an engine failed here and now, or could not be built."""
        verdict = Verdict(
            digest=digest,
            plan_sha256="" if engine is None else engine.plan_sha256,
            variant=variant,
            environment=self.environment,
            when=now(),
            divergence=divergence,
            reason=reason,
        )

        def add(state: State) -> State:
            passed = tuple(v for v in state.passed if v.digest != digest or v.environment != self.environment)
            others = [v for v in state.failed if v.digest != digest]
            return msgspec.structs.replace(state, passed=passed, failed=(verdict, *others)[:MOST_FAILED])

        self.change(add)

    def forgive(self, digest: str) -> None:
        """Forget that an engine failed: it is to be tried again."""
        self.change(
            lambda state: msgspec.structs.replace(
                state, failed=tuple(v for v in state.failed if v.digest != digest)
            )
        )

    def rolled_back(self, event: Event) -> None:
        """Note what runs in place of what was wanted."""
        self.change(
            lambda state: msgspec.structs.replace(
                state, rollback=event, events=(event, *state.events)[:MOST_EVENTS]
            )
        )

    def all_well(self) -> None:
        """What was wanted runs."""
        if self.read().rollback is not None:
            self.change(lambda state: msgspec.structs.replace(state, rollback=None))


def now() -> str:
    """Date and time, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
