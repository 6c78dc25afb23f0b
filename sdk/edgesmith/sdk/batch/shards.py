"""One shard's work: the same in a process here and on a machine of a cluster."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from edgesmith.sdk.batch.rows import Options, Row, row_of, write_part
from edgesmith.sdk.batch.sources import Image, Part, identity_of, images_of, one_of
from edgesmith.sdk.bundle import file_sha256
from edgesmith.sdk.decode.canonical import check_thresholds
from edgesmith.sdk.errors import BundleError, ConfigError
from edgesmith.sdk.models import Detector, Model, load_model


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What every worker of a job is told: the bundle with its hash, the options, where parts go."""

    bundle: str
    sha256: str
    options: Options
    folder: str
    ending: str


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """Images that are answered together.

    ``careful``: one by one, each told before it is worked on. ``skip``: images by their place, with the
    error that is written for them.
    """

    number: int
    part: Part
    careful: bool = False
    skip: dict[int, str] = {}


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a worker tells: one of these at a time.

    ``ready``: its bundle is loaded. ``done``: images answered since it told last. ``at``: the place of the
    image that comes next. ``finished``: the number of a shard whose part is written. ``failed``: why it
    cannot go on, with ``status`` for the command.
    """

    ready: bool = False
    done: int = 0
    at: int | None = None
    finished: int | None = None
    failed: str | None = None
    status: int = 0


def part_path(folder: str | os.PathLike[str], number: int, ending: str) -> Path:
    """The file of a shard's rows."""
    return Path(folder) / f"part-{number:07d}{ending}"


class Worker:
    """A loaded bundle that answers shard after shard.

    Raises:
        BundleError: the bundle is another one than the job's.
        ConfigError: thresholds that the bundle cannot serve.
        BackendError: it cannot be run here.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        if file_sha256(setup.bundle) != setup.sha256:
            raise BundleError(f"{setup.bundle}: is another bundle than the job began with")
        options = setup.options
        self.model: Model[Any] = load_model(
            setup.bundle,
            backend=options.backend,
            device=options.device,
            variant=options.variant,
            threads=options.threads,
        )
        self._thresholds = _thresholds(self.model, options)
        # On a GPU the next pictures are read while it works; on the CPU another process does that.
        self._ahead = 0 if self.model.backend.name == "cpu" else 2 * self.model.batch.max

    def run(self, shard: Shard, at: Callable[[int], None], done: Callable[[int], None]) -> None:
        """Answer a shard and write its part.

        Args:
            at: told the place of an image before it is worked on, where the shard is to be done carefully.
            done: told how many images were answered since it was told last.
        """
        rows: list[Row] = []
        waiting: list[tuple[str, Image]] = []
        most = 1 if shard.careful else self.model.batch.max
        places: dict[int, Row] = {}

        def flush() -> None:
            if waiting:
                rows.extend(self._answered(waiting))
                done(len(waiting))
                waiting.clear()

        pictures = self._pictures(shard, at)
        for place, identity, image in pictures:
            if isinstance(image, str):
                places[place] = Row(id=identity, error=image, bundle=self.setup.sha256)
                done(1)
                continue
            if waiting and self._any_size and waiting[0][1].shape != image.shape:
                flush()
            waiting.append((identity, image))
            if len(waiting) >= most:
                flush()
        flush()
        for place in sorted(places):  # errors in their places among the answers
            rows.insert(place, places[place])
        path = part_path(self.setup.folder, shard.number, self.setup.ending)
        write_part(path, rows, self.model.task)

    def close(self) -> None:
        """Free the backend."""
        self.model.close()

    @property
    def _any_size(self) -> bool:
        return self.model.bundle.manifest.preprocess.size is None

    def _answered(self, pictures: list[tuple[str, Image]]) -> list[Row]:
        call: Any = self.model
        answers = call([image for _, image in pictures], **self._thresholds)
        return [
            row_of(identity, (image.shape[1], image.shape[0]), answer, self.setup.options, self.setup.sha256)
            for (identity, image), answer in zip(pictures, answers, strict=True)
        ]

    def _pictures(self, shard: Shard, at: Callable[[int], None]) -> Iterator[tuple[int, str, Image | str]]:
        """Place, id and pixels of each image; those to be skipped are not even opened."""
        if not shard.careful and self._ahead:
            yield from self._read_ahead(shard)
            return
        if not shard.careful:
            for place, (identity, image) in enumerate(images_of(shard.part)):
                yield place, identity, image
            return
        for place in range(len(shard.part)):
            if place in shard.skip:
                yield place, identity_of(shard.part, place), shard.skip[place]
                continue
            at(place)
            identity, image = next(images_of(one_of(shard.part, place)))
            yield place, identity, image

    def _read_ahead(self, shard: Shard) -> Iterator[tuple[int, str, Image | str]]:
        source = enumerate(images_of(shard.part))
        with ThreadPoolExecutor(1) as reader:
            coming: deque[Future[tuple[int, tuple[str, Image | str]] | None]] = deque()
            for _ in range(self._ahead):
                coming.append(reader.submit(next, source, None))
            while (found := coming.popleft().result()) is not None:
                coming.append(reader.submit(next, source, None))
                place, (identity, image) = found
                yield place, identity, image


def _thresholds(model: Model[Any], options: Options) -> Mapping[str, float | None]:
    if isinstance(model, Detector):
        check_thresholds(model.nms, options.score, options.iou)
        return {"score": options.score, "iou": options.iou}
    if options.score is not None or options.iou is not None:
        raise ConfigError(f"score and iou go with detectors; this model's task is {model.task}")
    return {}
