"""Self-test, rollback and what is said of them, on the fake TensorRT."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgesmith.sdk.backends.tensorrt import engine, fallback
from edgesmith.sdk.backends.tensorrt.build import build_engine
from edgesmith.sdk.backends.tensorrt.cache import EngineCache
from edgesmith.sdk.backends.tensorrt.fallback import fallbacks, rollback_of
from edgesmith.sdk.backends.tensorrt.plan import BuildOptions
from edgesmith.sdk.backends.tensorrt.state import StateBook
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.errors import BackendError, ConfigError
from edgesmith.sdk.selftest import Runs, SelfTest, backend_test

Make = Callable[..., Any]


def plans(cache: EngineCache) -> int:
    return len(list(cache.engines.glob("*.plan")))


def test_a_sound_engine_is_tested_once_per_environment(
    trio: Bundle, machine: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested: list[str] = []

    def watched(bundle: Bundle, backend: Runs) -> SelfTest:
        tested.append(backend.variant)
        return backend_test(bundle, backend)

    monkeypatch.setattr(fallback, "backend_test", watched)
    here = machine()
    assert here.load(trio).variant == "int8"
    assert here.load(trio).variant == "int8"
    assert tested == ["int8"]
    # Another driver: the key is the same, and the golden data runs before a frame does.
    assert here.upgraded(driver="13.0").load(trio).variant == "int8"
    assert tested == ["int8", "int8"]
    assert here.upgraded(version="10.13.3").load(trio).variant == "int8"
    assert len(tested) == 3
    assert rollback_of(trio, target=here.target, cache=here.cache) is None


def test_a_variant_made_wrong_gives_way_to_the_next(
    trio: Bundle, machine: Make, caplog: pytest.LogCaptureFixture
) -> None:
    here = machine(wrong=("int8",))
    assert here.load(trio).variant == "fp16"
    event = rollback_of(trio, target=here.target, cache=here.cache)
    assert event is not None
    assert (event.wanted, event.in_use) == ("int8", "fp16")
    assert event.divergence is not None
    assert event.divergence.output == "logits"
    assert event.divergence.max_abs == pytest.approx(1.0, abs=0.02)
    (said,) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert said.startswith("tiny.edge: int8: the self-test failed: output logits is off by ")
    assert said.endswith("0.01 is allowed; in use: fp16")
    # The wrong one was closed, and is not built again at the next start.
    assert [backend.closed for backend in here.opened] == [True, False]
    assert here.load(trio).variant == "fp16"
    assert [backend.variant for backend in here.opened] == ["int8", "fp16", "fp16"]
    # Nor is it a new event: the one that stands says which output diverged.
    assert StateBook(here.cache, trio, here.target).read().events == (event,)


def test_it_is_tried_again_when_the_environment_changes_or_on_request(trio: Bundle, machine: Make) -> None:
    broken = machine(wrong=("int8",))
    broken.load(trio)
    mended = broken.upgraded(wrong=(), driver="13.0")
    assert mended.load(trio).variant == "int8"
    assert rollback_of(trio, target=mended.target, cache=mended.cache) is None
    # What was rolled back stays in the list of events.
    assert [e.in_use for e in StateBook(mended.cache, trio, mended.target).read().events] == ["fp16"]


def test_fresh_forgets_that_it_failed(trio: Bundle, machine: Make) -> None:
    here = machine(wrong_plans=("int8",))
    assert here.load(trio).variant == "fp16"
    sound = here.upgraded(wrong_plans=())
    # Not without being asked: this environment is known to build it wrongly. What passed last runs.
    assert sound.load(trio).variant == "fp16"
    assert sound.load(trio, fresh=True).variant == "int8"
    assert sound.load(trio).variant == "int8"


def test_a_wrong_plan_in_the_cache_is_built_anew(
    trio: Bundle, machine: Make, caplog: pytest.LogCaptureFixture
) -> None:
    # Built wrongly, and the process died before the self-test: the plan lies there with a true hash.
    machine(wrong_plans=("int8",)).ensure(trio, "int8")
    here = machine()
    assert here.load(trio).variant == "int8"
    assert "building int8 anew: the self-test failed" in caplog.text
    assert rollback_of(trio, target=here.target, cache=here.cache) is None


def test_an_upgrade_that_changes_outputs_goes_back_to_what_passed(trio: Bundle, machine: Make) -> None:
    # A version-compatible engine of the old TensorRT still loads in the new one, and is right there.
    options = BuildOptions(version_compatible=True)
    old = machine(version="10.3.0")
    assert old.load(trio, options=options).variant == "int8"
    new = old.upgraded(version="10.13.3", wrong_plans=("int8",))
    assert new.load(trio, options=options).variant == "int8"
    event = rollback_of(trio, target=new.target, cache=new.cache)
    assert event is not None
    assert (event.in_use, event.how) == ("int8", "the engine that passed before")
    assert event.divergence is not None


def test_an_upgrade_after_which_the_old_engine_does_not_load(trio: Bundle, machine: Make) -> None:
    machine(version="10.3.0").load(trio)
    new = machine(version="10.13.3", wrong=("int8",))
    assert new.load(trio).variant == "fp16"
    event = rollback_of(trio, target=new.target, cache=new.cache)
    assert event is not None
    assert event.others == (
        "the engine of int8 that passed before does not load: the plan was built by tensorrt 10.3.0, not "
        "10.13.3",
    )


def test_a_new_driver_that_computes_wrongly(trio: Bundle, machine: Make) -> None:
    machine().load(trio)
    new = machine(driver="13.0", wrong=("int8",))
    assert new.load(trio).variant == "fp16"
    # Back to the old driver: the engine passed there, and runs without more ado.
    assert machine().load(trio).variant == "int8"


def test_a_build_that_fails_gives_way_too(trio: Bundle, machine: Make) -> None:
    here = machine(build_fault="refused")
    with pytest.raises(
        BackendError, match=r"no engine computes what the bundle says: int8: TensorRT 10\.3\.0"
    ):
        here.load(trio)
    event = rollback_of(trio, target=here.target, cache=here.cache)
    assert event is not None
    assert event.in_use == ""
    assert [other.split(":")[0] for other in event.others] == ["fp16", "float"]


@pytest.mark.parametrize(("fault", "again"), [("refused", 0), ("empty", 0), ("memory", 3)])
def test_a_build_is_tried_again_only_where_that_may_help(
    trio: Bundle, machine: Make, monkeypatch: pytest.MonkeyPatch, fault: str, again: int
) -> None:
    here, builds = machine(build_fault=fault), 0

    def counted(*args: Any, **more: Any) -> Any:
        nonlocal builds
        builds += 1
        return build_engine(*args, **more)

    monkeypatch.setattr(engine, "build_engine", counted)
    for _ in range(2):
        with pytest.raises(BackendError, match="no engine is in use"):
            here.load(trio)
    assert builds == 3 + again  # int8, fp16, float: at the next start not again, or again
    assert machine().load(trio, fresh=True).variant == "int8"


def test_float_is_the_last(trio: Bundle, machine: Make) -> None:
    assert machine(wrong=("int8", "fp16")).load(trio).variant == "float"
    here = machine(wrong=("int8", "fp16", "fp32"), driver="14.0")
    with pytest.raises(BackendError, match="no engine is in use"):
        here.load(trio)
    assert all(backend.closed for backend in here.opened)


def test_a_variant_outside_the_budget_takes_no_ones_place(make_trio: Make, machine: Make) -> None:
    bundle = make_trio(fp16=0.8)
    assert machine(wrong=("int8",)).load(bundle).variant == "float"
    assert list(fallbacks(bundle.manifest, "int8")) == ["float"]


def test_a_variant_that_was_named_is_not_exchanged(trio: Bundle, machine: Make) -> None:
    assert machine().load(trio, "fp16").variant == "fp16"
    with pytest.raises(BackendError, match="int8: the self-test failed"):
        machine(wrong=("int8",), driver="13.0").load(trio, "int8")
    with pytest.raises(ConfigError, match="no variant 'int9'"):
        machine().load(trio, "int9")


def test_a_plan_that_tensorrt_refuses_is_built_anew(
    trio: Bundle, machine: Make, caplog: pytest.LogCaptureFixture
) -> None:
    # Its key says that it fits, and TensorRT finds that it does not.
    here, other = machine(), machine(compute_capability=(11, 0))
    other.target = here.target
    other.ensure(trio, "int8")
    assert here.load(trio).variant == "int8"
    assert "building int8 anew: IRuntime::deserializeCudaEngine: Error Code 6" in caplog.text
    assert "expecting compute 8.7 got compute 11.0" in caplog.text
    caplog.clear()
    here.load(trio)
    assert "building" not in caplog.text


def test_an_engine_that_was_built_again_is_tested_again(trio: Bundle, machine: Make) -> None:
    here = machine()
    assert here.load(trio).variant == "int8"
    # The plan is lost and built again, wrongly this time: what its forerunner passed does not count.
    here.cache.forget(here.ensure(trio, "int8")[0].record.key.digest)
    machine(wrong_plans=("int8",)).ensure(trio, "int8")
    after = machine(wrong_plans=("int8",))
    assert after.load(trio).variant == "fp16"


def test_damaged_state_is_begun_anew(trio: Bundle, machine: Make, caplog: pytest.LogCaptureFixture) -> None:
    here = machine()
    here.load(trio)
    book = StateBook(here.cache, trio, here.target)
    book.path.write_text("{")
    assert here.load(trio).variant == "int8"
    assert "is begun anew" in caplog.text
    assert book.read().passed[0].variant == "int8"


def test_what_runs_computes_what_the_bundle_says(trio: Bundle, machine: Make) -> None:
    backend = machine(wrong=("int8",)).load(trio)
    batch = np.random.default_rng(0).random((2, 3, 32, 32), np.float32)
    np.testing.assert_allclose(backend.run(batch)["logits"], batch.mean((2, 3)), atol=1e-3)
