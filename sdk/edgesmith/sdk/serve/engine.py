"""One model that answers many: requests share batches, and wait in a bounded queue.

    requests -> [queue] -> prepare -> [2 batches] -> infer -> [batches] -> answer -> futures

Each lane (``instances``) has three threads, so that one batch is prepared while another runs and a third is
decoded; the model's arithmetic lets go of the interpreter's lock. A batch is closed when it is full, when its
oldest request has waited for ``wait_ms``, or when nobody else is on the way who could join it.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.errors import BackendError
from edgesmith.sdk.loop.stages import ModelStages
from edgesmith.sdk.models import Model
from edgesmith.sdk.serve.refusal import Refusal

log = logging.getLogger(__name__)
Frame8 = NDArray[np.uint8]
_PREPARED = 2  # a model has two buffers: one is filled while the graph reads the other


@dataclass(frozen=True, slots=True)
class Answer:
    """``value``: the model's answer for a frame, or outputs by name for prepared rows.

    ``batch``: rows of the run that it was in; ``stages_ms``: queue, preprocess, infer, postprocess.
    """

    value: Any
    batch: int
    stages_ms: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class BatchReport:
    """One run: its rows, and ns of each stage; of the queue, those of each request."""

    rows: int
    queue_ns: Sequence[int]
    stages_ns: Mapping[str, int]


@dataclass(eq=False)  # no slots: it is referred to weakly
class _Job:
    framed: bool  # a frame, or rows that the client prepared
    kind: Hashable  # those of one kind share a batch
    rows: int
    payload: NDArray[Any] | None  # until it is prepared
    thresholds: Mapping[str, float]
    arrived_ns: int = field(default_factory=time.monotonic_ns)
    future: Future[Answer] = field(default_factory=Future)


@dataclass(slots=True, eq=False)
class _Run:
    """Jobs that go through a lane together."""

    jobs: list[_Job]
    rows: int
    prepared: Any = None
    outputs: Any = None
    taken_ns: int = 0
    stages_ns: dict[str, int] = field(default_factory=dict)


class Engine:
    """Lanes over clones of one model. :meth:`place` admits a request, its :meth:`Place.submit` runs it.

    Args:
        models: one a lane; the engine closes them.
        wait_ms, limit: how long a request waits for others, and how many rows may be under way.
        share: rows up to which requests share a run; None: as many as the graph takes.
        observe: told of every run, in a lane's thread.
    """

    def __init__(
        self,
        models: Sequence[Model[Any]],
        *,
        wait_ms: float = 2.0,
        limit: int = 64,
        share: int | None = None,
        observe: Callable[[BatchReport], None] = lambda report: None,
    ) -> None:
        self.model = models[0]
        manifest = self.model.bundle.manifest
        most = self.model.batch.max
        self._share = min(share or most, most)
        self.limit = max(limit, most)
        self._wait_ns = int(wait_ms * 1e6)
        self._observe = observe
        self._any_size = manifest.preprocess.size is None
        self._changed = threading.Condition()
        self._queue: deque[_Job] = deque()
        self._admitted = 0
        self._rate = 0.0  # rows a second, smoothed
        self._done_ns = time.monotonic_ns()
        self._closing = False
        self._lanes = [_Lane(self, model, number) for number, model in enumerate(models)]

    @property
    def admitted(self) -> int:
        """Rows that are under way, from admission to answer."""
        return self._admitted

    @property
    def queued(self) -> int:
        """Requests that wait for a batch."""
        return len(self._queue)

    @contextmanager
    def place(self, rows: int = 1) -> Iterator[Place]:
        """Admission for so many rows; it is given back at the end of the block.

        Raises:
            Refusal: 429 with ``Retry-After``, the model has enough to do.
        """
        with self._changed:
            if self._admitted + rows > self.limit:
                left = self._admitted / self._rate if self._rate else 1.0
                text = f"the model is busy: {self._admitted} images are under way and {self.limit} may be"
                raise Refusal(429, text, retry_after_s=max(1, round(left)))
            self._admitted += rows
        try:
            yield Place(self)
        finally:
            with self._changed:
                self._admitted -= rows
                self._changed.notify_all()

    def close(self) -> None:
        """Answer what was admitted, then end the threads and free the models."""
        with self._changed:
            while self._admitted:
                self._changed.wait()
            self._closing = True
            self._changed.notify_all()
        for lane in self._lanes:
            lane.close()

    def _submit(self, job: _Job) -> Future[Answer]:
        with self._changed:
            if self._closing:
                raise BackendError("this engine was closed")
            self._queue.append(job)
            self._changed.notify_all()
        return job.future

    def _withdraw(self, job: _Job) -> None:
        """A job whose client is gone holds a picture: it does not wait for its turn."""
        with self._changed:
            if job in self._queue:
                self._queue.remove(job)

    def _next(self, lane: _Lane) -> _Run | None:
        """The next batch for a lane, or None at the end."""
        with self._changed:
            while True:
                while not self._queue:
                    if self._closing:
                        return None
                    self._changed.wait()
                count, rows, full = self._head()
                if full:
                    break
                if lane.running:  # the lane is busy: until it is free, others may join
                    self._changed.wait()
                    continue
                left_ns = self._wait_ns - (time.monotonic_ns() - self._queue[0].arrived_ns)
                if left_ns <= 0 or self._admitted <= sum(job.rows for job in self._queue):
                    break
                self._changed.wait(left_ns / 1e9)
            jobs = [self._queue.popleft() for _ in range(count)]
            lane.running += 1
        return _Run(jobs, rows, taken_ns=time.monotonic_ns())

    def _head(self) -> tuple[int, int, bool]:
        """How many jobs at the head share a batch, their rows, and whether no other can join them."""
        count = rows = 0
        kind = self._queue[0].kind
        for job in self._queue:
            if count and (job.kind != kind or rows + job.rows > self._share):
                return count, rows, True
            count, rows = count + 1, rows + job.rows
        return count, rows, rows >= self._share

    def _ran(self, lane: _Lane) -> None:
        """A lane has one batch less between the queue and the end of its run."""
        with self._changed:
            lane.running -= 1
            self._changed.notify_all()

    def _answered(self, run: _Run, now_ns: int) -> None:
        with self._changed:
            rate = run.rows / max((now_ns - self._done_ns) / 1e9, 1e-6)
            self._rate = rate if not self._rate else 0.9 * self._rate + 0.1 * rate
            self._done_ns = now_ns
        waits = [run.taken_ns - job.arrived_ns for job in run.jobs]
        self._observe(BatchReport(run.rows, waits, run.stages_ns))


class Place:
    """An admitted request."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def submit(self, frame: Frame8, thresholds: Mapping[str, float]) -> Future[Answer]:
        """The answer for a frame, BGR uint8 ``(H, W, 3)``; ``thresholds`` as in a detector's call."""
        shape = frame.shape if self._engine._any_size else None
        return self._run(_Job(True, ("frame", shape), 1, frame, thresholds))

    def submit_prepared(self, rows: NDArray[Any]) -> Future[Answer]:
        """The graph's outputs for prepared rows ``(n, ...)``, n up to the largest batch."""
        return self._run(_Job(False, ("rows", rows.shape[1:], rows.dtype.str), len(rows), rows, {}))

    def _run(self, job: _Job) -> Future[Answer]:
        # A job that its own future holds is freed by the garbage collector alone, and its picture with it:
        # a hundred MiB of them lay about under load.
        waiting = weakref.ref(job)

        def gone(future: Future[Answer]) -> None:
            if future.cancelled() and (withdrawn := waiting()) is not None:
                self._engine._withdraw(withdrawn)

        job.future.add_done_callback(gone)
        return self._engine._submit(job)


class _Lane:
    """One model and its three threads."""

    def __init__(self, engine: Engine, model: Model[Any], number: int) -> None:
        self.engine = engine
        self.model = model
        self.running = 0  # batches between the queue and the end of their run; under the engine's lock
        self._stages = ModelStages(model)
        self._free = threading.Semaphore(_PREPARED)
        self._to_infer: queue.SimpleQueue[_Run | None] = queue.SimpleQueue()
        self._to_answer: queue.SimpleQueue[_Run | None] = queue.SimpleQueue()
        name = f"{model.bundle.manifest.name}-{number}"
        loops = {"prepare": self._prepare_all, "infer": self._infer_all, "answer": self._answer_all}
        self._threads = [
            threading.Thread(target=loop, name=f"serve-{name}-{step}", daemon=True)
            for step, loop in loops.items()
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        for thread in self._threads:
            thread.join()
        self.model.close()

    def _prepare_all(self) -> None:
        while True:
            self._free.acquire()
            run = self.engine._next(self)
            if run is None:
                self._to_infer.put(None)
                return
            run.jobs = [job for job in run.jobs if job.future.set_running_or_notify_cancel()]
            run.rows = sum(job.rows for job in run.jobs)
            if run.jobs and self._done(run, "preprocess", self._prepare):
                self._to_infer.put(run)
            else:
                self._free.release()
                self.engine._ran(self)

    def _infer_all(self) -> None:
        while (run := self._to_infer.get()) is not None:
            done = self._done(run, "infer", self._infer)
            self._free.release()
            self.engine._ran(self)
            if done:
                self._to_answer.put(run)
        self._to_answer.put(None)

    def _answer_all(self) -> None:
        while (run := self._to_answer.get()) is not None:
            if not self._done(run, "postprocess", self._decode):
                continue
            now_ns = time.monotonic_ns()
            # Before the answers: who has one finds it counted.
            self.engine._answered(run, now_ns)
            for job, value in zip(run.jobs, run.outputs, strict=True):
                stages = {"queue": run.taken_ns - job.arrived_ns, **run.stages_ns}
                stages_ms = {name: ns / 1e6 for name, ns in stages.items()}
                job.future.set_result(Answer(value, run.rows, stages_ms))

    def _prepare(self, run: _Run) -> None:
        payloads = [job.payload for job in run.jobs if job.payload is not None]
        for job in run.jobs:
            job.payload = None
        if run.jobs[0].framed:
            run.prepared = self._stages.prepare(payloads)
            return
        smallest = self.model.batch.min
        if run.rows < smallest:
            payloads.append(np.zeros((smallest - run.rows, *payloads[0].shape[1:]), payloads[0].dtype))
        run.prepared = np.concatenate(payloads) if len(payloads) > 1 else payloads[0]

    def _infer(self, run: _Run) -> None:
        if run.jobs[0].framed:
            run.outputs = self._stages.infer(run.prepared)
        else:
            run.outputs = self.model.run_prepared(run.prepared)

    def _decode(self, run: _Run) -> None:
        """An answer for each job in place of the outputs; thresholds are each request's own."""
        answers: list[Any] = []
        if run.jobs[0].framed:
            outputs, geometries = run.outputs
            decode: Any = self.model.decode  # a detector's takes thresholds, which the others' do not
            for row, job in enumerate(run.jobs):
                part = {name: _rows(value, row, row + 1) for name, value in outputs.items()}
                answers += decode(part, geometries[row : row + 1], **job.thresholds)
        else:
            at = 0
            for job in run.jobs:
                answers.append({k: _rows(value, at, at + job.rows) for k, value in run.outputs.items()})
                at += job.rows
        run.outputs, run.prepared = answers, None

    def _done(self, run: _Run, stage: str, step: Callable[[_Run], None]) -> bool:
        """One step; its error is the answer of every request in the batch, and the lane goes on."""
        started = time.monotonic_ns()
        try:
            step(run)
        except Exception as error:  # noqa: BLE001 - it goes to whoever waits for the answer
            for job in run.jobs:
                job.future.set_exception(error)
            return False
        run.stages_ns[stage] = time.monotonic_ns() - started
        return True


def _rows(value: NDArray[Any], start: int, stop: int) -> NDArray[Any]:
    """Rows of an output; a single number is that of all of them."""
    return value[start:stop] if value.ndim else value
