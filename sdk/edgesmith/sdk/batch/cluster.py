"""The same shards on a Ray cluster, through Ray Data.

Every machine has to see the bundle, the archive and the result's folder under the same paths. A part is
written by whoever answered it, under its own name, so an actor that dies in the middle and is begun again
elsewhere writes the same part.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from edgesmith.sdk.batch.shards import Setup, Shard, Worker
from edgesmith.sdk.errors import BackendError, MissingExtraError

log = logging.getLogger(__name__)
_BLOCKS_A_WORKER = 4


class Cluster:
    """Runs shards on the actors of a cluster.

    Args:
        address: as of ``ray.init``: ``auto``, ``HOST:PORT``, ``ray://HOST:PORT``; None starts one here.

    Raises:
        MissingExtraError: Ray is not installed.
    """

    def __init__(self, address: str | None) -> None:
        self._address = address
        self._ray = _ray()

    def __call__(
        self,
        setup: Setup,
        shards: Iterable[Shard],
        workers: int,
        *,
        done: Callable[[int], None],
    ) -> None:
        """Run the shards; ``workers`` is the most actors, each with ``threads`` of the options as its cores.

        Raises:
            BackendError: the cluster cannot be reached, or a shard fails again and again.
        """
        ray = self._ray
        mine = not ray.is_initialized()
        try:
            if mine:
                # It would report its use to its makers otherwise.
                os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
                ray.init(address=self._address, log_to_driver=False, configure_logging=False)
            self._run(setup, list(shards), workers, done)
        except (ray.exceptions.RayError, ConnectionError, ValueError) as error:
            raise BackendError(f"Ray at {self._address}: {_first_line(error)}") from error
        finally:
            if mine and ray.is_initialized():
                ray.shutdown()

    def _run(
        self,
        setup: Setup,
        shards: list[Shard],
        workers: int,
        done: Callable[[int], None],
    ) -> None:
        data = self._ray.data
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        items = [{"shard": msgspec.json.encode(shard).decode()} for shard in shards]
        blocks = max(1, min(len(items), _BLOCKS_A_WORKER * workers * math.ceil(len(items) / 4096)))
        answered = data.from_items(items, override_num_blocks=blocks).map_batches(
            ShardActor,
            fn_constructor_args=(msgspec.json.encode(setup).decode(),),
            batch_size=1,
            batch_format="numpy",
            compute=data.ActorPoolStrategy(min_size=1, max_size=workers),
            num_cpus=setup.options.threads or 1,
            num_gpus=0 if setup.options.backend == "cpu" else None,
        )
        sizes = {shard.number: len(shard.part) for shard in shards}
        for row in answered.iter_rows():
            done(sizes[int(row["number"])])


class ShardActor:
    """A worker on some machine of the cluster."""

    def __init__(self, setup: str) -> None:
        self._worker = Worker(msgspec.json.decode(setup, type=Setup))

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        """Answer the shards of a batch; returns their numbers."""
        numbers = []
        for text in batch["shard"]:
            shard = msgspec.json.decode(str(text), type=Shard)
            self._worker.run(shard, at=lambda place: None, done=lambda count: None)
            numbers.append(shard.number)
        return {"number": numbers}


def _ray() -> Any:
    try:
        importlib.import_module("ray.data")
        return importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtraError(
            "a cluster needs the package ray: pip install 'edgesmith[batch]' 'ray[data]'", extra="batch"
        ) from error


def _first_line(error: BaseException) -> str:
    """Ray's errors carry the traceback of the actor; its last line says what it was."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
