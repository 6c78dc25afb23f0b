"""Many processes at once, killed ones, and damaged files by the thousand."""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgesmith.sdk.backends.tensorrt import build, worker
from edgesmith.sdk.backends.tensorrt.cache import EngineCache
from edgesmith.sdk.backends.tensorrt.library import load_library
from edgesmith.sdk.backends.tensorrt.plan import identity
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.errors import EdgesmithError
from edgesmith.sdk.testing import fake_runtime
from edgesmith.sdk.testing.fake_tensorrt import Simulated
from edgesmith.sdk.testing.simulated import read_plan

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("real_worker")]
Make = Callable[..., Any]
LOAD = """
import json, sys
import numpy as np
from edgesmith.sdk import load_model
with load_model(sys.argv[1], backend="tensorrt") as model:
    outputs = model.run_prepared(np.full((2, 3, 32, 32), 0.25, np.float32))
    print(json.dumps([model.backend.variant, outputs["logits"].tolist()]))
"""


def environment(home: Path, **settings: Any) -> dict[str, str]:
    return {
        **os.environ,
        "EDGESMITH_TENSORRT": Simulated(**settings).specification,
        "XDG_CACHE_HOME": str(home),
    }


def test_ten_processes_on_an_empty_cache_build_once(trio: Bundle, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOAD, str(trio.path)]
    place = environment(tmp_path / "home", build_s=2.0)
    processes = [
        subprocess.Popen(command, env=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(10)
    ]
    answers = [process.communicate(timeout=240) for process in processes]
    for (out, err), process in zip(answers, processes, strict=True):
        assert process.returncode == 0, err
        variant, logits = json.loads(out)
        assert variant == "int8"
        np.testing.assert_allclose(logits, np.full((2, 3), 0.25), atol=0.005)
    cache = EngineCache(tmp_path / "home" / "edgesmith")
    assert sorted(path.suffix for path in cache.engines.iterdir()) == [".json", ".plan"]
    assert sum(": building the engine of int8: " in err for _, err in answers) == 1
    (record,) = cache.records()
    assert record.bundle == identity(trio)


@pytest.mark.timeout(900)
def test_kill_at_random_moments(trio: Bundle, tmp_path: Path, machine: Make) -> None:
    command = [sys.executable, "-c", LOAD, str(trio.path)]
    place = environment(tmp_path / "home", build_s=0.3)
    begun = time.monotonic()
    done = subprocess.run(command, env=place, capture_output=True, text=True, timeout=120, check=True)
    whole = time.monotonic() - begun
    right = json.loads(done.stdout)
    cache = EngineCache(tmp_path / "home" / "edgesmith")
    here = machine()
    (record,) = cache.records()
    chance = random.Random(4)
    built = 0
    for _ in range(50):
        cache.forget(record.key.digest)
        process = subprocess.Popen(
            command, env=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(chance.uniform(0.2, 1.1) * whole)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        found, why = cache.load(record.key, here.target)
        if found is None:
            assert why in ("there is none yet", "its plan is missing"), why
        else:
            built += 1
            assert read_plan(found.plan, rtx=False).graph == trio.read("variants/int8.onnx")
        _assert_no_lock(cache)
        assert _gone(str(cache.root)), "the worker outlived its parent"
    assert 0 < built < 50  # else the moments were not random
    done = subprocess.run(command, env=place, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout) == right
    assert sorted(path.suffix for path in cache.engines.iterdir()) == [".json", ".plan"]


def _assert_no_lock(cache: EngineCache) -> None:
    for path in cache.engines.glob("*.lock"):
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _gone(root: str, within_s: float = 5.0) -> bool:
    """Whether no worker of this cache runs."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        lines = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                lines.append(path.read_bytes().decode(errors="replace"))
            except OSError:
                continue  # it ended meanwhile
        if not any("tensorrt.worker" in line and root in line for line in lines):
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def deserialised(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every plan that reaches TensorRT."""
    seen: list[bytes] = []
    real = fake_runtime.Runtime.deserialize_cuda_engine

    def watched(self: Any, data: bytes) -> Any:
        seen.append(bytes(data))
        return real(self, data)

    monkeypatch.setattr(fake_runtime.Runtime, "deserialize_cuda_engine", watched)
    return seen


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The bytes with one thing changed: never the same bytes."""
    changed = bytearray(data)
    kind = chance.randrange(5)
    if kind == 0:
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    elif kind == 1:
        del changed[chance.randrange(len(changed)) :]
    elif kind == 2:
        at = chance.randrange(len(changed))
        changed[at:at] = chance.randbytes(chance.randrange(1, 64))
    elif kind == 3:
        at = chance.randrange(len(changed))
        del changed[at : at + chance.randrange(1, 64)]
    else:
        at = chance.randrange(len(changed))
        part = chance.randbytes(min(32, len(changed) - at))
        changed[at : at + len(part)] = part
    return bytes(changed) if bytes(changed) != data else data[:-1]


def test_a_thousand_damaged_plans_never_reach_tensorrt(
    trio: Bundle, machine: Make, deserialised: list[bytes]
) -> None:
    here, chance = machine(), random.Random(1)
    engine, _ = here.ensure(trio, "float")
    digest = engine.record.key.digest
    files = {s: here.cache.engines / f"{digest}{s}" for s in (".plan", ".json")}
    sound = {suffix: path.read_bytes() for suffix, path in files.items()}
    refused = 0
    for number in range(1000):
        suffix = ".plan" if number % 4 else ".json"
        files[suffix].write_bytes(mutated(sound[suffix], chance))
        found, why = here.cache.load(engine.record.key, here.target)
        if found is None:
            refused += 1
            assert why
        else:
            # A record may change in what says nothing of the plan: its date, its notes. The plan never.
            assert suffix == ".json"
            assert found.plan == sound[".plan"]
        files[suffix].write_bytes(sound[suffix])
    assert refused > 970
    assert deserialised == []
    assert here.cache.load(engine.record.key, here.target)[0] == engine


def test_a_thousand_damaged_bundles_build_nothing_wrong(
    trio: Bundle, machine: Make, deserialised: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[bytes] = []

    def work(folder: Path, timeout_s: float, progress: Any) -> worker.Answer:
        graphs.append((folder / worker.GRAPH).read_bytes())
        job = msgspec.json.decode((folder / worker.JOB).read_bytes(), type=worker.Job)
        return worker.build(load_library(job.library), job, folder, progress)

    monkeypatch.setattr(build, "_work", work)
    here, chance = machine(), random.Random(2)
    sound, right = trio.path.read_bytes(), trio.read("variants/int8.onnx")
    refused = 0
    for _ in range(1000):
        trio.path.write_bytes(mutated(sound, chance))
        try:
            bundle = Bundle.open(trio.path)
            bundle.check()
            here.ensure(bundle, "int8", fresh=True)
        except EdgesmithError:
            refused += 1
    # What still opens differs in a place that says nothing: every graph that was built is the true one.
    assert refused > 900
    assert set(graphs) <= {right}
    assert deserialised == []
