"""Workers on this machine, one shard at a time each, and what happens when one dies."""

from __future__ import annotations

import logging
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from edgesmith.sdk.batch.shards import Event, Setup, Shard
from edgesmith.sdk.errors import BackendError, BundleError, ConfigError, EdgesmithError, SinkError

log = logging.getLogger(__name__)
_DEATHS_BEFORE_CARE = 2
_DEATHS_AT_START = 3
_BY_STATUS: dict[int, type[EdgesmithError]] = {2: ConfigError, 3: SinkError, 5: BackendError}
LOST = "the process that worked on this image died, twice"


def run_local(
    setup: Setup,
    shards: Iterable[Shard],
    workers: int,
    *,
    done: Callable[[int], None],
) -> None:
    """Run shards in so many processes.

    A shard whose worker dies is begun again; if it dies once more, the shard is done image by image, and the
    image that it dies at gets an error in its row.

    Args:
        done: told how many images were answered; less than 0 where a shard is begun again.

    Raises:
        EdgesmithError: what a worker could not go on with; the parts that are written stay.
    """
    pool = _Pool(setup, shards)
    try:
        for _ in range(workers):
            pool.start()
        while pool.busy():
            pool.step(done)
    finally:
        pool.close()


class _Process:
    """One worker process; its events come in a queue that all share."""

    def __init__(
        self, number: int, setup: Setup, events: queue.SimpleQueue[tuple[int, Event | None]]
    ) -> None:
        self.shard: Shard | None = None
        self.at: int | None = None
        self.told = 0  # images of the shard that were counted already
        self.ready = False
        self._number, self._events = number, events
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edgesmith.sdk.batch.process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._send(setup)
        self._thread = threading.Thread(target=self._read, name=f"batch-{number}", daemon=True)
        self._thread.start()

    def give(self, shard: Shard) -> None:
        self.shard, self.at, self.told = shard, None, 0
        self._send(shard)

    def code(self) -> int:
        return self._process.wait()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._thread.join()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError as error:
                log.debug("a worker was gone before its pipe was closed: %s", error)

    def _send(self, what: Setup | Shard) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(what) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            log.debug("worker %d died before it was given work; its end is told by its output", self._number)

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                self._events.put((self._number, msgspec.json.decode(line, type=Event)))
        except msgspec.DecodeError as error:
            log.debug("worker %d died in the middle of a line: %s", self._number, error)
        self._events.put((self._number, None))


class _Pool:
    def __init__(self, setup: Setup, shards: Iterable[Shard]) -> None:
        self._setup = setup
        self._waiting = iter(shards)
        self._again: deque[Shard] = deque()
        self._deaths: dict[int, int] = {}
        self._dead_at_start = 0
        self._events: queue.SimpleQueue[tuple[int, Event | None]] = queue.SimpleQueue()
        self._workers: dict[int, _Process] = {}
        self._started = 0

    def start(self) -> None:
        self._started += 1
        self._workers[self._started] = _Process(self._started, self._setup, self._events)

    def busy(self) -> bool:
        return bool(self._workers)

    def step(self, done: Callable[[int], None]) -> None:
        """Take one event and act on it."""
        number, event = self._events.get()
        worker = self._workers.get(number)
        if worker is None:
            return  # the end of one that was told to end
        if event is None:
            self._died(number, worker, done)
        elif event.failed is not None:
            raise _BY_STATUS.get(event.status, BundleError)(event.failed)
        elif event.ready:
            worker.ready = True
            self._dead_at_start = 0
            self._feed(number, worker)
        elif event.done:
            worker.told += event.done
            done(event.done)
        elif event.at is not None:
            worker.at = event.at
        elif event.finished is not None:
            worker.shard = None
            self._feed(number, worker)

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()

    def _feed(self, number: int, worker: _Process) -> None:
        """The next shard, or the end."""
        shard = self._again.popleft() if self._again else next(self._waiting, None)
        if shard is not None:
            worker.give(shard)
            return
        self._workers.pop(number).close()

    def _died(self, number: int, worker: _Process, done: Callable[[int], None]) -> None:
        self._workers.pop(number)
        code = worker.code()
        worker.close()
        if not worker.ready:
            self._dead_at_start += 1
            if self._dead_at_start >= _DEATHS_AT_START:
                raise BackendError(
                    f"the workers die while they load {self._setup.bundle} (status {code}): "
                    "`edgesmith verify` says more"
                )
        if worker.shard is not None:
            log.warning("a worker died (status %d) in shard %d; it is begun again", code, worker.shard.number)
            done(-worker.told)
            self._again.append(self._after_death(worker.shard, worker.at))
        self.start()

    def _after_death(self, shard: Shard, at: int | None) -> Shard:
        deaths = self._deaths[shard.number] = self._deaths.get(shard.number, 0) + 1
        if shard.careful and at is not None:
            log.warning("image %d of shard %d is passed over: %s", at, shard.number, LOST)
            return msgspec.structs.replace(shard, skip={**shard.skip, at: LOST})
        return msgspec.structs.replace(shard, careful=deaths >= _DEATHS_BEFORE_CARE)
