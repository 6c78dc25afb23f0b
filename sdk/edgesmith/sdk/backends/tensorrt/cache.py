"""Engines on disk: built once, checked before each use, bounded in size.

    engines/DIGEST.plan     the plan
    engines/DIGEST.json     its record with the plan's hash, written last: without it there is no engine
    engines/DIGEST.build/   a build under way, or what a killed one left
    engines/DIGEST.lock     held while one process builds; gone with it
    timing/DEVICE.bin       the builder's kernel timings for one device
    state/...               see fallback.py

A plan is code for the GPU and, in a version-compatible one, for the CPU: only files that belong to this
user and that nobody else can write are read, and their hash is checked before TensorRT sees them. Whoever
can write as this user can of course change both.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import secrets
import shutil
import stat
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import msgspec

from edgesmith.sdk.backends.tensorrt.plan import Engine, EngineKey, EngineRecord, check_header
from edgesmith.sdk.backends.tensorrt.target import Target
from edgesmith.sdk.board.facts import cache_folder
from edgesmith.sdk.errors import BackendError, IncompatibleEngineError

log = logging.getLogger(__name__)
MAX_BYTES = 4 << 30
MAX_RECORD_BYTES = 1 << 20
LIMIT_VARIABLE = "EDGESMITH_CACHE_BYTES"
_POLL_S = 0.05
_STALE_S = 3600.0  # a temporary file lives for milliseconds
ABSENT = "there is none yet"


class EngineCache:
    """The engines of one user on one machine. ``max_bytes`` bounds the plans together.

    Raises:
        BackendError: the folder cannot be made, or others may write to it.
    """

    def __init__(self, root: Path | None = None, *, max_bytes: int | None = None) -> None:
        self.root = cache_folder() if root is None else root
        self.engines = self.root / "engines"
        self.max_bytes = _limit() if max_bytes is None else max_bytes
        for folder in (self.root, self.engines, self.root / "timing", self.root / "state"):
            private_folder(folder)

    def load(self, key: EngineKey, target: Target) -> tuple[Engine | None, str]:
        """The engine of a key, or None and in words why it cannot be used. TensorRT is not needed for it."""
        record, why = self._record(key.digest)
        if record is None:
            return None, why
        if record.key != key:
            return None, "its record is that of another engine"
        return self._checked(record, target)

    def stored(self, digest: str, target: Target) -> tuple[Engine | None, str]:
        """An engine by its digest, whatever its key says of the device it was built for."""
        record, why = self._record(digest)
        if record is None:
            return None, why
        if record.key.digest != digest:
            return None, "its record is that of another engine"
        return self._checked(record, target)

    def why_absent(self, key: EngineKey, bundle: str, variant: str) -> str:
        """What is new about a key for which there is no engine: compared with the newest like it."""
        alike = [
            record
            for record in self.records()
            if record.variant == variant
            and (record.bundle == bundle or record.key.graph_sha256 == key.graph_sha256)
        ]
        if not alike:
            return ABSENT
        newest = max(alike, key=lambda record: record.created)
        return ", ".join(key.differences(newest.key)) or "another key"

    def records(self) -> list[EngineRecord]:
        """The records of all engines."""
        found = (self._record(path.stem)[0] for path in sorted(self.engines.glob("*.json")))
        return [record for record in found if record is not None]

    @contextlib.contextmanager
    def locked(self, digest: str, timeout_s: float = 0.0, *, waiting: str = "") -> Iterator[None]:
        """Alone with one engine, among processes and threads; ``waiting`` is logged where that takes a while.

        Raises:
            TimeoutError: another has it for longer than ``timeout_s``.
        """
        path = self.engines / f"{digest}.lock"
        handle = _acquire(path, timeout_s, waiting)
        try:
            yield
        finally:
            # While it is held: whoever waits for this very file sees that it is gone, and opens another.
            path.unlink(missing_ok=True)
            os.close(handle)

    def building(self, digest: str) -> Path:
        """Where an engine is built; only for who holds the lock."""
        return self.engines / f"{digest}.build"

    def store(self, record: EngineRecord, plan: Path) -> None:
        """Take over a plan from its build folder. A crash at any point leaves the old engine or none."""
        digest = record.key.digest
        self.forget(digest)
        plan.chmod(0o600)
        plan.replace(self.engines / f"{digest}.plan")
        write_private(self.engines / f"{digest}.json", msgspec.json.encode(record))

    def forget(self, digest: str) -> None:
        """Remove an engine."""
        for suffix in (".json", ".plan"):
            (self.engines / f"{digest}{suffix}").unlink(missing_ok=True)

    def timing(self, target: Target) -> bytes | None:
        """Kernel timings of earlier builds on a device; None where there are none, or they were damaged."""
        try:
            data = read_private(self._timing(target))
        except (FileNotFoundError, PermissionError):
            return None
        return data[32:] if hashlib.sha256(data[32:]).digest() == data[:32] else None

    def store_timing(self, target: Target, data: bytes) -> None:
        """Keep the kernel timings of a device."""
        write_private(self._timing(target), hashlib.sha256(data).digest() + data)

    def evict(self, keep: Collection[str] = ()) -> list[str]:
        """Remove what was used longest ago until the plans fit, and what killed builds left; never ``keep``.

        Returns the digests that went.
        """
        self._sweep()
        plans = []
        for path in self.engines.glob("*.plan"):
            with contextlib.suppress(FileNotFoundError):
                found = path.stat()
                plans.append((found.st_mtime, found.st_size, path.stem))
        total, gone = sum(size for _, size, _ in plans), []
        for _, size, digest in sorted(plans):
            if total <= self.max_bytes:
                break
            if digest in keep:
                continue
            with contextlib.suppress(TimeoutError), self.locked(digest):
                self.forget(digest)
                gone.append(digest)
                total -= size
        if gone:
            log.info(
                "%d engines removed from %s: it holds at most %d bytes", len(gone), self.root, self.max_bytes
            )
        return gone

    def _sweep(self) -> None:
        """Build folders, plans without a record and temporary files that nobody works on."""
        for path in self.root.glob("*/.*.tmp"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _STALE_S:
                    path.unlink()
        leftovers = {
            path.name.partition(".")[0] for path in self.engines.iterdir() if not path.name.startswith(".")
        }
        for digest in sorted(leftovers):
            plan, record = (self.engines / f"{digest}{suffix}" for suffix in (".plan", ".json"))
            if plan.exists() == record.exists() and not self.building(digest).exists():
                continue
            with contextlib.suppress(TimeoutError), self.locked(digest):
                shutil.rmtree(self.building(digest), ignore_errors=True)
                if plan.exists() != record.exists():
                    self.forget(digest)

    def _checked(self, record: EngineRecord, target: Target) -> tuple[Engine | None, str]:
        path = self.engines / f"{record.key.digest}.plan"
        try:
            plan = read_private(path, record.plan_bytes)
        except FileNotFoundError:
            return None, "its plan is missing"
        except PermissionError as error:
            return None, str(error)
        if len(plan) != record.plan_bytes:
            return None, f"the plan was cut off or changed: it has not its {record.plan_bytes:,} bytes"
        if hashlib.sha256(plan).hexdigest() != record.plan_sha256:
            return None, "the plan was damaged or swapped: it does not match its SHA-256"
        try:
            check_header(
                plan, target, version_compatible=bool(record.key.options.get("version_compatible", False))
            )
        except IncompatibleEngineError as error:
            return None, str(error)
        with contextlib.suppress(FileNotFoundError):  # removed by another process meanwhile
            os.utime(path)
        return Engine(plan, record), ""

    def _record(self, digest: str) -> tuple[EngineRecord | None, str]:
        path = self.engines / f"{digest}.json"
        try:
            text = read_private(path, MAX_RECORD_BYTES)
            return msgspec.json.decode(text, type=EngineRecord), ""
        except FileNotFoundError:
            return None, ABSENT
        except PermissionError as error:
            return None, str(error)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return None, f"its record cannot be read ({error})"

    def _timing(self, target: Target) -> Path:
        text = f"{target.library} {target.tensorrt} {target.gpu} {target.compute_capability} {target.l4t}"
        return self.root / "timing" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.bin"


def private_folder(folder: Path) -> None:
    """Make the folder for this user alone.

    Raises:
        BackendError: it cannot be made, or others may write to it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise BackendError(
            f"{folder}: cannot keep engines there: {error.strerror or error}; set XDG_CACHE_HOME to a "
            "folder of "
            "your own"
        ) from error
    if found.st_uid not in (os.geteuid(), 0) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BackendError(f"{folder}: others may write to it, and an engine is code: chmod 700 {folder}")


def read_private(path: Path, most: int = 1 << 34) -> bytes:
    """A file of this user's (or root's), which nobody else can write; at most ``most`` bytes and one of it.

    Raises:
        FileNotFoundError: there is none.
        PermissionError: it is a link, another user's, or open to others; the message says which.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise PermissionError(f"{path.name} cannot be read: {error.strerror}") from error
    with open(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise PermissionError(f"{path.name} is not a file")
        if found.st_uid not in (os.geteuid(), 0):
            raise PermissionError(f"{path.name} belongs to another user")
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(f"{path.name} can be written by others")
        return file.read(most + 1)


def write_private(path: Path, data: bytes) -> None:
    """Write a file for this user alone in one step: readers see the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _acquire(path: Path, timeout_s: float, waiting: str) -> int:
    until, told = time.monotonic() + timeout_s, False
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same_file(handle, path):
                return handle
        except BlockingIOError:
            if time.monotonic() >= until:
                os.close(handle)
                raise TimeoutError(f"{path.name}: another process works on this engine") from None
            if waiting and not told:
                log.warning("%s", waiting)
                told = True
            os.close(handle)
            time.sleep(_POLL_S)
            continue
        os.close(handle)


def _same_file(handle: int, path: Path) -> bool:
    """Whether the path still leads to the open file: who held the lock before has removed it otherwise."""
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False


def _limit() -> int:
    text = os.environ.get(LIMIT_VARIABLE, "")
    if not text:
        return MAX_BYTES
    if not text.isdigit():
        raise BackendError(f"{LIMIT_VARIABLE}={text}: it takes a number of bytes, such as {MAX_BYTES}")
    return int(text)
