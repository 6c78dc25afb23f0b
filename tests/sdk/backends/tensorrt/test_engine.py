"""Building and keeping engines, on the fake TensorRT."""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgesmith.sdk.backends.tensorrt import build
from edgesmith.sdk.backends.tensorrt.cache import EngineCache
from edgesmith.sdk.backends.tensorrt.library import Found
from edgesmith.sdk.backends.tensorrt.plan import BuildOptions
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.errors import BackendError, BuildError, ConfigError

Make = Callable[..., Any]


@pytest.mark.usefixtures("real_worker")
def test_an_engine_is_built_once_and_found_again(trio: Bundle, machine: Make, cache: EngineCache) -> None:
    here, steps = machine(build_s=0.02), []
    engine, built = here.ensure(trio, "float", progress=lambda *step: steps.append(step))
    assert built
    assert engine.plan[:4] == b"ftrt"
    assert steps[-1] == ("Building Engine", 20, 20)
    again, built = here.ensure(trio, "float")
    assert not built
    assert again == engine
    assert sorted(p.suffix for p in cache.engines.iterdir()) == [".json", ".plan"]  # no lock, no build folder
    assert (cache.timing(here.target) or b"").startswith(b"timing 10.3.0")


def test_files_are_private(trio: Bundle, machine: Make, cache: EngineCache) -> None:
    machine().ensure(trio, "float")
    for path in (cache.root, cache.engines, *cache.engines.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_processes_are_told_who_is_first(trio: Bundle, machine: Make, cache: EngineCache) -> None:
    here = machine()
    engine, _ = here.ensure(trio, "float")
    with (
        cache.locked(engine.record.key.digest),
        pytest.raises(BuildError, match="another process works on this engine"),
    ):
        here.ensure(trio, "float", BuildOptions(timeout_s=0.1), fresh=True)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"version": "10.13.3"}, "another TensorRT version (10.3.0, not 10.13.3)"),
        ({"gpu": "Thor"}, "another GPU (Orin (nvgpu), not Thor)"),
        ({"compute_capability": (11, 0)}, "another compute capability (8.7, not 11.0)"),
        ({"l4t": "36.5.0"}, "another L4T release (36.4.3, not 36.5.0)"),
    ],
)
def test_another_device_builds_anew_and_says_why(
    trio: Bundle, machine: Make, caplog: pytest.LogCaptureFixture, change: dict[str, Any], why: str
) -> None:
    machine().ensure(trio, "float")
    caplog.clear()
    _, built = machine(**change).ensure(trio, "float")
    assert built
    (said,) = [r.getMessage() for r in caplog.records if "building" in r.getMessage()]
    assert said == f"tiny.edge: building the engine of float: {why}"


def test_another_driver_keeps_the_engine(trio: Bundle, machine: Make) -> None:
    machine().ensure(trio, "float")
    assert not machine(driver="13.0").ensure(trio, "float")[1]


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        (BuildOptions(level=5), True),
        (BuildOptions(version_compatible=True), True),
        (BuildOptions(sparse=True), True),
        (BuildOptions(workspace_bytes=1 << 26), True),
        (BuildOptions(timeout_s=5), False),
    ],
)
def test_options_are_a_part_of_the_key(
    trio: Bundle, machine: Make, options: BuildOptions, changes: bool
) -> None:
    machine().ensure(trio, "float")
    assert machine().ensure(trio, "float", options)[1] is changes


def truncate(cache: EngineCache, digest: str) -> None:
    path = cache.engines / f"{digest}.plan"
    path.write_bytes(path.read_bytes()[:-100])


def flip(cache: EngineCache, digest: str) -> None:
    path = cache.engines / f"{digest}.plan"
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)


def swap(cache: EngineCache, digest: str) -> None:
    """The other engine's plan and record under this one's name."""
    (other,) = {p.stem for p in cache.engines.glob("*.plan")} - {digest}
    for suffix in (".plan", ".json"):
        (cache.engines / f"{digest}{suffix}").write_bytes((cache.engines / f"{other}{suffix}").read_bytes())


def swap_plan(cache: EngineCache, digest: str) -> None:
    (other,) = {p.stem for p in cache.engines.glob("*.plan")} - {digest}
    (cache.engines / f"{digest}.plan").write_bytes((cache.engines / f"{other}.plan").read_bytes())


def open_to_all(cache: EngineCache, digest: str) -> None:
    (cache.engines / f"{digest}.plan").chmod(0o666)


def link(cache: EngineCache, digest: str) -> None:
    path = cache.engines / f"{digest}.plan"
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


def spoil_record(cache: EngineCache, digest: str) -> None:
    (cache.engines / f"{digest}.json").write_text('{"key": 1}')


def remove_plan(cache: EngineCache, digest: str) -> None:
    (cache.engines / f"{digest}.plan").unlink()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (truncate, "the plan was cut off or changed"),
        (flip, "damaged or swapped: it does not match its SHA-256"),
        (swap, "its record is that of another engine"),
        (swap_plan, "(cut off or changed|damaged or swapped)"),
        (open_to_all, "can be written by others"),
        (link, "cannot be read"),
        (spoil_record, "its record cannot be read"),
        (remove_plan, "its plan is missing"),
    ],
)
def test_a_spoilt_engine_is_never_handed_on(
    trio: Bundle,
    machine: Make,
    cache: EngineCache,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[EngineCache, str], None],
    why: str,
) -> None:
    here = machine()
    engine, _ = here.ensure(trio, "float")
    here.ensure(trio, "fp16")
    spoil(cache, engine.record.key.digest)
    caplog.clear()
    again, built = here.ensure(trio, "float")
    assert built
    assert again.plan == engine.plan  # the fake builds the same bytes
    (said,) = [r.getMessage() for r in caplog.records if "building" in r.getMessage()]
    assert re.search(why, said)
    assert not here.ensure(trio, "float")[1]


def test_a_plan_of_another_library_is_refused_by_its_header(
    trio: Bundle, machine: Make, cache: EngineCache
) -> None:
    here = machine()
    engine, _ = here.ensure(trio, "float")
    rtx = machine(version="1.7.1", compute_capability=(8, 6)).target
    found, why = cache.load(engine.record.key, rtx)
    assert found is None
    assert why == "the plan is one of tensorrt, and tensorrt-rtx runs here"


def test_eviction_takes_what_was_used_longest_ago(trio: Bundle, machine: Make, tmp_path: Path) -> None:
    here = machine()
    first, _ = here.ensure(trio, "float")
    here.cache = EngineCache(here.cache.root, max_bytes=int(2.5 * len(first.plan)))
    second, _ = here.ensure(trio, "float", BuildOptions(level=1))
    for age, engine in ((2000, second), (1000, first)):
        path = here.cache.engines / f"{engine.record.key.digest}.plan"
        os.utime(path, (path.stat().st_atime - age, path.stat().st_mtime - age))
    here.ensure(trio, "float", BuildOptions(level=2))
    assert not here.ensure(trio, "float")[1]
    assert here.cache.load(second.record.key, here.target)[0] is None
    assert len(list(here.cache.engines.glob("*.plan"))) == 2


def test_a_larger_cache_can_be_asked_for(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESMITH_CACHE_BYTES", "1000")
    assert EngineCache(cache.root).max_bytes == 1000
    monkeypatch.setenv("EDGESMITH_CACHE_BYTES", "4G")
    with pytest.raises(BackendError, match="takes a number of bytes"):
        EngineCache(cache.root)


def test_a_folder_that_others_write_to_is_refused(cache: EngineCache) -> None:
    cache.engines.chmod(0o777)
    with pytest.raises(BackendError, match="chmod 700"):
        EngineCache(cache.root)


def test_what_a_killed_build_left_goes(trio: Bundle, machine: Make, cache: EngineCache) -> None:
    left = cache.building("0" * 32)
    left.mkdir()
    (left / "plan").write_bytes(b"half")
    (cache.engines / f"{'1' * 32}.plan").write_bytes(b"without a record")
    machine().ensure(trio, "float")
    assert sorted(p.suffix for p in cache.engines.iterdir()) == [".json", ".plan"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("refused", "Could not find any implementation for node node_Conv_0"),
        ("memory", "OutOfMemory"),
        ("killed", "most likely because memory ran out"),
    ],
)
@pytest.mark.usefixtures("real_worker")
def test_a_build_that_fails_says_why_and_leaves_nothing(
    trio: Bundle, machine: Make, cache: EngineCache, fault: str, said: str
) -> None:
    with pytest.raises(BuildError, match=said):
        machine(build_fault=fault).ensure(trio, "float")
    assert list(cache.engines.iterdir()) == []


@pytest.mark.usefixtures("real_worker")
def test_the_log_is_in_the_error(trio: Bundle, machine: Make) -> None:
    with pytest.raises(BuildError, match=r"The builder's log ends:\n  \[ERROR\] IBuilder"):
        machine(build_fault="refused").ensure(trio, "float")


@pytest.mark.usefixtures("real_worker")
def test_a_build_has_its_time(trio: Bundle, machine: Make, cache: EngineCache) -> None:
    with pytest.raises(BuildError, match=r"longer than 1\.5 s"):
        machine(build_fault="hang").ensure(trio, "float", BuildOptions(timeout_s=1.5))
    assert list(cache.engines.iterdir()) == []
    assert not _children()


@pytest.mark.usefixtures("real_worker")
def test_interrupting_ends_the_worker(trio: Bundle, machine: Make, cache: EngineCache) -> None:
    def interrupt(phase: str, step: int, steps: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        machine(build_s=1).ensure(trio, "float", progress=interrupt)
    assert list(cache.engines.iterdir()) == []
    assert not _children()


def _children() -> list[int]:
    """Processes that this one started and that still run."""
    found = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(n) for n in found if b"tensorrt.worker" in Path(f"/proc/{n}/cmdline").read_bytes()]


@pytest.mark.usefixtures("real_worker")
def test_a_library_that_does_not_load_is_named(trio: Bundle, machine: Make) -> None:
    here = machine()
    here.found = Found(here.trt, "no_such_tensorrt")
    with pytest.raises(BackendError, match="no_such_tensorrt does not load: ModuleNotFoundError"):
        here.ensure(trio, "float")


def test_variants_that_are_none(trio: Bundle, machine: Make) -> None:
    with pytest.raises(ConfigError, match="no variant 'int4'; the bundle has"):
        machine().ensure(trio, "int4")


@pytest.mark.parametrize(
    ("free", "workspace", "warned"),
    [
        (8 << 30, 1 << 30, False),
        (1 << 30, (1 << 30) - build.LIBRARIES - 3 * 1000, True),
        (None, 1 << 30, False),
    ],
)
def test_the_workspace_fits_what_is_free(free: int | None, workspace: int, warned: bool) -> None:
    memory = build.preflight(1000, 1 << 30, free, shared=True)
    assert memory.workspace_bytes == workspace
    assert (memory.warning is not None) is warned


def test_too_little_memory_is_refused() -> None:
    with pytest.raises(BuildError, match="not enough memory to build: 800 MiB are free"):
        build.preflight(1000, 1 << 30, 800 << 20, shared=True)
    # A graphics card has memory of its own: the workspace does not come out of the RAM.
    assert build.preflight(1000, 1 << 30, 800 << 20, shared=False).workspace_bytes == 1 << 30
    assert build.preflight(1000, 1 << 30, 500 << 20, shared=False).warning is not None


def test_a_smaller_workspace_is_recorded(
    trio: Bundle, machine: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(build, "free_bytes", lambda: 1 << 30)
    engine, _ = machine().ensure(trio, "float")
    assert 64 << 20 <= engine.record.workspace_bytes < 256 << 20
    assert "the engine may be slower for it" in engine.record.notes[0]
    assert any(
        "instead of 1,024 MiB" in r.getMessage() for r in caplog.records if r.levelno == logging.WARNING
    )
    # More memory tomorrow is no other engine.
    monkeypatch.setattr(build, "free_bytes", lambda: 8 << 30)
    assert not machine().ensure(trio, "float")[1]


def test_an_input_of_any_size_needs_one(make_bundle: Callable[..., Path], machine: Make) -> None:
    text = """
    <ir_version: 9, opset_import: ["" : 20]>
    agraph (float[N, 3, H, W] images) => (float[N, 3] logits)
    <int64[2] plane = {2, 3}> { logits = ReduceMean <keepdims = 0> (images, plane) }
    """
    bundle = Bundle.open(make_bundle("classify", text=text))
    bundle.manifest = msgspec.structs.replace(
        bundle.manifest,
        preprocess=msgspec.structs.replace(bundle.manifest.preprocess, size=None, fit="none"),
    )
    with pytest.raises(BuildError, match="takes any size"):
        machine().ensure(bundle, "float")
    engine, _ = machine().ensure(bundle, "float", BuildOptions(size=(48, 64)))
    runtime = machine().trt.Runtime(machine().trt.Logger())
    loaded = runtime.deserialize_cuda_engine(engine.plan)
    assert loaded.get_tensor_profile_shape("images", 0) == [(1, 3, 48, 64), (4, 3, 48, 64), (8, 3, 48, 64)]
