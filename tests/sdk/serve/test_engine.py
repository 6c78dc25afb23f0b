from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesmith.sdk.manifest import Batch
from edgesmith.sdk.models import Model, load_model
from edgesmith.sdk.serve.engine import BatchReport, Engine
from edgesmith.sdk.serve.refusal import Refusal

MakeBundle = Callable[..., Path]
MakeEngine = Callable[..., Engine]


def color(n: int) -> Any:
    frame = np.empty((48, 48, 3), np.uint8)
    frame[:] = (n, 255 - n, n // 2)
    return frame


@pytest.fixture
def make_engine(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeEngine]:
    """An engine over the tiny detector whose runs wait for ``gate`` where there is one."""
    made: list[Engine] = []

    def make(
        *, gate: threading.Event | None = None, instances: int = 1, task: str = "detect", **options: Any
    ) -> Engine:
        changes = {"batch": options.pop("batch")} if "batch" in options else {}
        model: Model[Any] = load_model(make_bundle(task, **changes), backend="cpu", threads=1)
        models = [model, *(model.clone() for _ in range(instances - 1))]
        for one in models if gate is not None else ():
            run = one.backend.run

            def gated(images: Any, run: Any = run) -> Any:
                assert gate is not None
                assert gate.wait(10)
                return run(images)

            monkeypatch.setattr(one.backend, "run", gated)
        made.append(Engine(models, **options))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def test_answers_are_the_models_own_and_each_gets_its_own(make_engine: MakeEngine) -> None:
    reports: list[BatchReport] = []
    engine = make_engine(instances=2, limit=128, observe=reports.append)
    frames = [color(n) for n in range(0, 250, 5)]
    with load_model(engine.model.bundle.path, backend="cpu") as alone, engine.place(len(frames)) as place:
        wanted = alone(frames)  # type: ignore[operator]
        futures = [place.submit(frame, {"score": 0.0}) for frame in frames]
        low = alone(frames, score=0.0)  # type: ignore[operator]
        for future, answer in zip(futures, low, strict=True):
            assert future.result(10).value.to_dict() == answer.to_dict()
        # Thresholds are each request's own, within one batch.
        mixed = [place.submit(frame, {} if n % 2 else {"score": 0.0}) for n, frame in enumerate(frames)]
        for n, future in enumerate(mixed):
            assert future.result(10).value.to_dict() == (wanted if n % 2 else low)[n].to_dict()
    assert sum(report.rows for report in reports) == 2 * len(frames)
    assert {"preprocess", "infer", "postprocess"} == set(reports[0].stages_ns)


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not what():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.005)


def test_those_who_wait_share_a_batch(make_engine: MakeEngine) -> None:
    gate = threading.Event()
    engine = make_engine(gate=gate)
    try:
        with engine.place(7) as place:
            first = place.submit(color(1), {})
            until(lambda: engine.queued == 0)  # it runs alone, and while it runs six others come
            rest = [place.submit(color(n), {}) for n in range(6)]
            gate.set()
            assert first.result(10).batch == 1
            assert [future.result(10).batch for future in rest] == [6] * 6
    finally:
        gate.set()


def test_nobody_is_waited_for_who_is_not_on_the_way(make_engine: MakeEngine) -> None:
    engine = make_engine(wait_ms=5_000)
    with engine.place() as place:
        started = time.monotonic()
        assert place.submit(color(1), {}).result(4).batch == 1
        assert time.monotonic() - started < 4


def test_a_request_waits_for_others_but_not_for_ever(make_engine: MakeEngine) -> None:
    engine = make_engine(wait_ms=50)
    with engine.place(2) as place:  # the second is admitted and never comes
        answer = place.submit(color(1), {}).result(5)
    assert 45 < answer.stages_ms["queue"] < 4_000


def test_a_full_queue_says_when_to_come_again(make_engine: MakeEngine) -> None:
    gate = threading.Event()
    engine = make_engine(gate=gate, limit=8)
    with engine.place(8) as place:
        future = place.submit(color(1), {})
        with pytest.raises(Refusal, match="8 images are under way") as caught, engine.place():
            pass
        assert caught.value.status == 429
        assert int(caught.value.headers["Retry-After"]) >= 1
        gate.set()
        future.result(10)
    with engine.place(8):
        assert engine.admitted == 8


def test_a_request_that_was_given_up_is_not_run(make_engine: MakeEngine) -> None:
    gate = threading.Event()
    reports: list[BatchReport] = []
    engine = make_engine(gate=gate, batch=Batch(), observe=reports.append)
    try:
        with engine.place(6) as place:
            futures = [place.submit(color(n), {}) for n in range(6)]
            until(lambda: engine.queued == 4)  # one runs and one is prepared, the others wait
            assert futures[5].cancel()
            assert engine.queued == 3
            gate.set()
            for future in futures[:5]:
                future.result(10)
    finally:
        gate.set()
    assert sum(report.rows for report in reports) == 5


def test_an_answered_picture_is_freed_at_once(make_engine: MakeEngine) -> None:
    engine = make_engine()
    gc.disable()  # what only the collector would find is what lies about under load
    try:
        with engine.place() as place:
            frame = color(3)
            picture = weakref.ref(frame)
            future = place.submit(frame, {})
            request = weakref.ref(future)
            del frame
            future.result(10)
            del future
            until(lambda: picture() is None)
            # A lane's threads know their last run until the next one comes.
            place.submit(color(4), {}).result(10)
            until(lambda: request() is None)
    finally:
        gc.enable()


def test_a_fixed_batch_runs_singly(make_engine: MakeEngine) -> None:
    engine = make_engine(batch=Batch())
    with engine.place(5) as place:
        futures = [place.submit(color(n), {}) for n in range(5)]
        assert [future.result(10).batch for future in futures] == [1] * 5


def test_a_request_of_many_rows_is_run_where_others_do_not_share(make_engine: MakeEngine) -> None:
    engine = make_engine(share=1)
    with engine.place(6) as place:
        frames = [place.submit(color(n), {}) for n in range(3)]
        rows = place.submit_prepared(np.zeros((3, 3, 32, 32), np.float32))
        assert [future.result(10).batch for future in frames] == [1, 1, 1]
        assert rows.result(10).batch == 3


def test_prepared_rows_are_joined_and_taken_apart(make_engine: MakeEngine) -> None:
    engine = make_engine(wait_ms=30)
    rng = np.random.default_rng(1)
    parts = [rng.random((n, 3, 32, 32), np.float32) for n in (1, 3, 2)]
    with load_model(engine.model.bundle.path, backend="cpu") as alone, engine.place(6) as place:
        futures = [place.submit_prepared(part) for part in parts]
        for part, future in zip(parts, futures, strict=True):
            wanted = alone.run_prepared(part)
            got = future.result(10).value
            assert got.keys() == wanted.keys()
            for name in wanted:
                np.testing.assert_allclose(got[name], wanted[name], atol=1e-6)


def test_an_error_is_that_of_its_batch_alone(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(batch=Batch())
    run = engine.model.backend.run
    calls = iter(range(100))

    def sometimes(images: Any) -> Any:
        if next(calls) == 1:
            raise MemoryError("no room")
        return run(images)

    monkeypatch.setattr(engine.model.backend, "run", sometimes)
    with engine.place(3) as place:
        futures = [place.submit(color(n), {}) for n in range(3)]
        errors = [future.exception(10) for future in futures]
    assert [type(error) for error in errors] == [type(None), MemoryError, type(None)]


def test_closing_waits_for_those_who_were_admitted(make_engine: MakeEngine) -> None:
    gate = threading.Event()
    engine = make_engine(gate=gate)
    closing = threading.Thread(target=engine.close)
    with engine.place() as place:
        future = place.submit(color(1), {})
        closing.start()
        closing.join(0.05)
        assert closing.is_alive()
        gate.set()
        assert future.result(10).batch == 1
    closing.join(10)
    assert not closing.is_alive()
    assert not [t for t in threading.enumerate() if t.name.startswith("serve-tiny")]
