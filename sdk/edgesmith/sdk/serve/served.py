"""A model under its name, and its change for another bundle while requests come in.

The bundle's file is the model: when another file takes its place (``mv``, ``edgesmith convert -o``), that one
is loaded beside the running one and has to compute its golden data. Then it takes over between two requests,
and the old one ends when it has answered what it admitted. If anything is wrong with it, the old one stays.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from edgesmith.sdk.bundle import file_sha256
from edgesmith.sdk.errors import BundleError, ConfigError, EdgesmithError, ParityError
from edgesmith.sdk.models import Model, load_model
from edgesmith.sdk.selftest import self_test
from edgesmith.sdk.serve.engine import BatchReport, Engine
from edgesmith.sdk.serve.settings import ServiceSettings

log = logging.getLogger(__name__)
_TRIES = 3
Stamp = tuple[int, int, int]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """The last attempt to change a model: whether the new bundle took over, its hash, and why not."""

    taken: bool
    bundle: str
    reason: str = ""


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that passed its self-test: ``sha256`` of its bundle's file, ``stamp`` as it was read.

    ``version`` is 1 at first, and one more with each bundle that took over.
    """

    engine: Engine
    sha256: str
    stamp: Stamp
    version: int = 1


class Served:
    """One name of the service.

    Attributes:
        name: what clients call it.
        path: the bundle's file, looked at again for a change.
        current: what answers at this moment; a request keeps the one that it began with.
        change: the last attempt to change it, or None.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        settings: ServiceSettings,
        *,
        observe: Callable[[str, BatchReport], None],
        changed: Callable[[str, Change], None],
    ) -> None:
        self.name, self.path = name, path
        self.change: Change | None = None
        self._settings = settings
        self._observe, self._changed = observe, changed
        self.current = self._load()
        self._refused: Stamp | None = None
        self._changing = asyncio.Lock()
        self._ending: list[threading.Thread] = []

    @property
    def model(self) -> Model[Any]:
        """The loaded bundle, for its manifest; the engine runs it."""
        return self.current.engine.model

    async def look(self, *, again: bool = False) -> Change | None:
        """Change to what the file holds now, where it is another one; None where it is the same.

        Args:
            again: try a bundle once more that was refused, and tell of a file that went away.
        """
        async with self._changing:
            stamp = _stamp(self.path)
            if stamp == self.current.stamp or (not again and stamp in (None, self._refused)):
                return None
            try:
                loaded = await asyncio.to_thread(self._load, self.model.bundle.manifest.task)
            except Exception as error:  # whatever is wrong with it, the old one goes on
                if not isinstance(error, EdgesmithError):
                    log.exception("%s: the new bundle cannot be loaded", self.name)
                self._refused = stamp
                self.change = Change(taken=False, bundle="", reason=str(error))
                log.error("%s keeps its bundle %s: %s", self.name, self.current.sha256[:12], error)
            else:
                old = self.current
                self.current = msgspec.structs.replace(loaded, version=old.version + 1)
                self._refused = None
                self.change = Change(taken=True, bundle=loaded.sha256)
                log.warning("%s: bundle %s took over from %s", self.name, loaded.sha256[:12], old.sha256[:12])
                self._end(old.engine)
            self._changed(self.name, self.change)
            return self.change

    def close(self) -> None:
        """End the engine when it has answered; and those that were ending."""
        self.current.engine.close()
        for thread in self._ending:
            thread.join()

    def _end(self, engine: Engine) -> None:
        self._ending = [thread for thread in self._ending if thread.is_alive()]
        thread = threading.Thread(target=engine.close, name=f"serve-end-{self.name}", daemon=True)
        thread.start()
        self._ending.append(thread)

    def _load(self, task: str | None = None) -> Loaded:
        """The file's bundle as an engine, after its self-test.

        Raises:
            EdgesmithError: it cannot be read or run, is for another task, or computes something else than
                its golden data.
        """
        for _ in range(_TRIES):
            stamp, sha256 = _stamp(self.path), file_sha256(self.path)
            engine = self._opened(task)
            if stamp is not None and stamp == _stamp(self.path):
                return Loaded(engine=engine, sha256=sha256, stamp=stamp)
            engine.close()
        raise BundleError(f"{self.path}: changes all the time; replace it by renaming a finished file")

    def _opened(self, task: str | None) -> Engine:
        options = self._settings
        model: Model[Any] = load_model(
            self.path,
            backend=options.backend,
            device=options.device,
            variant=options.variant,
            threads=options.threads or (1 if options.instances is None else None),
        )
        models = [model]
        try:
            manifest = model.bundle.manifest
            if task is not None and manifest.task != task:
                raise ConfigError(f"{self.path}: is for task {manifest.task!r}, and {task!r} is served")
            model.bundle.check()
            test = self_test(model)
            if not test.passed:
                figures = {check.name: check.max_abs for check in test.outputs}
                worst = ", ".join(
                    f"{c.name} differs by {c.max_abs:.3g}, {c.tolerance:.3g} is allowed"
                    for c in test.outputs
                    if not c.passed
                )
                raise ParityError(f"{self.path}: fails its self-test here: {worst}", figures=figures)
            lanes = _lanes(options, model)
            models += [model.clone() for _ in range(lanes - 1)]
            singly = options.instances is None and lanes > 1
            return Engine(
                models,
                share=options.max_batch or (1 if singly else None),
                wait_ms=options.wait_ms,
                limit=options.queue,
                observe=lambda report: self._observe(self.name, report),
            )
        except BaseException:
            for opened in models:
                opened.close()
            raise


def _lanes(settings: ServiceSettings, model: Model[Any]) -> int:
    if settings.instances is not None:
        return settings.instances
    # Several threads of one run wait for one another at each layer; runs of one thread wait for nobody.
    cores = len(os.sched_getaffinity(0))
    return max(1, cores // (settings.threads or 1)) if model.backend.name == "cpu" else 1


def _stamp(path: Path) -> Stamp | None:
    """What tells one file from another that took its place; None while there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
