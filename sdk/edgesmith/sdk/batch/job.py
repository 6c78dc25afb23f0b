"""A job: what is to be done, what of it is done already, and the result."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import msgspec

from edgesmith.sdk.batch.local import run_local
from edgesmith.sdk.batch.rows import Options, format_of, join_parts
from edgesmith.sdk.batch.shards import Setup, Shard, part_path
from edgesmith.sdk.batch.sources import open_source
from edgesmith.sdk.bundle import Bundle, file_sha256
from edgesmith.sdk.errors import ConfigError, SinkError

SHARD = 256


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What must be the same when a job goes on: the bundle, the images, how they are answered."""

    bundle: str
    images: str
    count: int
    shard: int
    task: str
    options: Options


class BatchReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came to; the keys of ``batch --json``.

    ``answered`` images by this run and ``resumed`` by earlier ones; ``unread`` have an error in their row.
    """

    out: str
    images: int
    answered: int
    resumed: int
    unread: int
    bundle: str
    seconds: float
    rate: float


class Runner(Protocol):
    """What runs shards: processes here, or a cluster."""

    def __call__(
        self,
        setup: Setup,
        shards: Iterable[Shard],
        workers: int,
        *,
        done: Callable[[int], None],
    ) -> None:
        """See :func:`~edgesmith.sdk.batch.local.run_local`."""
        ...


class Job:
    """A bundle over an archive.

        report = Job("model.edge", "pictures/", "results.parquet").run()

    Parts lie in ``OUT.parts`` until the result is whole. The same job begun again goes on there.

    Args:
        bundle: the ``.edge`` file.
        data: a folder, a list of files, or a Parquet file (:func:`~edgesmith.sdk.batch.sources.open_source`).
        out: ``.parquet`` or ``.jsonl``.
        options: how images are answered.
        shard: images that are lost, and done again, when a worker is killed.

    Raises:
        ConfigError: the result is there already, or its ending is another one.
        DataError: the archive cannot be read, or holds no image.
        BundleError: the bundle cannot be read.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        data: str | os.PathLike[str],
        out: str | os.PathLike[str],
        *,
        options: Options | None = None,
        shard: int = SHARD,
    ) -> None:
        self.out = Path(out).absolute()
        self.folder = self.out.with_name(f"{self.out.name}.parts")
        self._options = options or Options()
        if shard < 1:
            raise ConfigError(f"shard is {shard}; it must be 1 or more")
        format_of(self.out)
        if self.out.exists() and not self.folder.exists():
            raise ConfigError(f"{self.out}: is there already; remove it, or give another name")
        opened = Bundle.open(bundle)
        self._bundle = opened.path.absolute()
        self._source = open_source(data)
        self.count = self._source.count
        self.plan = Plan(
            bundle=file_sha256(bundle),
            images=self._source.fingerprint(),
            count=self.count,
            shard=shard,
            task=opened.manifest.task,
            options=self._options,
        )

    def run(
        self,
        *,
        processes: int | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
        runner: Runner = run_local,
    ) -> BatchReport:
        """Answer what is not answered yet, and write the result.

        Args:
            processes: workers; None takes one a core.
            progress: told images that are done and all of them.
            runner: what runs the shards.

        Raises:
            ConfigError: another job has its parts there, or the same one is running.
            SinkError: parts or result cannot be written.
            EdgesmithError: what the workers cannot go on with.
        """
        started = time.monotonic()
        with self._alone():
            self._agree()
            parts = self._source.parts(self.plan.shard)
            paths = [part_path(self.folder, number, self.out.suffix) for number in range(len(parts))]
            there = {number for number, path in enumerate(paths) if path.exists()}
            resumed = counted = sum(len(parts[number]) for number in there)
            progress(counted, self.count)

            def done(images: int) -> None:
                nonlocal counted
                counted += images
                progress(counted, self.count)

            setup = Setup(
                bundle=str(self._bundle),
                sha256=self.plan.bundle,
                options=self._options,
                folder=str(self.folder),
                ending=self.out.suffix,
            )
            left = [number for number in range(len(parts)) if number not in there]
            if left:
                shards = (Shard(number=number, part=parts[number]) for number in left)
                workers = min(processes or os.cpu_count() or 1, len(left))
                runner(setup, shards, workers, done=done)
            unread = join_parts(paths, self.out, self.plan.task, self.folder)
        shutil.rmtree(self.folder)
        seconds = time.monotonic() - started
        return BatchReport(
            out=str(self.out),
            images=self.count,
            answered=self.count - resumed,
            resumed=resumed,
            unread=unread,
            bundle=self.plan.bundle,
            seconds=seconds,
            rate=(self.count - resumed) / seconds if seconds else 0.0,
        )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else works on the same parts."""
        try:
            self.folder.mkdir(exist_ok=True)
            lock = (self.folder / "lock").open("w")
        except OSError as error:
            raise SinkError(f"{self.folder}: cannot be written: {error.strerror or error}") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError(f"{self.folder}: another run is at work on this result") from error
            yield

    def _agree(self) -> None:
        """The plan on the disk is this one, or there is none yet."""
        file = self.folder / "plan.json"
        if not file.exists():
            self._write(self.plan)
            return
        try:
            before = msgspec.json.decode(file.read_bytes(), type=Plan)
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(
                f"{file}: cannot be read; remove {self.folder} to begin anew: {error}"
            ) from error
        for name in Plan.__struct_fields__:
            if getattr(before, name) != getattr(self.plan, name):
                what = {"bundle": "the bundle", "images": "the images", "count": "the number of images"}
                raise ConfigError(
                    f"{self.folder}: holds a job that differs: {what.get(name, name)} changed since; go on "
                    "with what it was, or remove the folder to begin anew"
                )

    def _write(self, plan: Plan) -> None:
        temporary = self.folder / ".plan.json.tmp"
        try:
            with temporary.open("wb") as file:
                file.write(msgspec.json.encode(plan))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.folder / "plan.json")
        except OSError as error:
            raise SinkError(f"{temporary}: cannot be written: {error.strerror or error}") from error
