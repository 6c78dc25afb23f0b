"""A worker as a process of its own: shards come as lines of JSON, events go as lines of JSON.

    python -m edgesmith.sdk.batch.process        # what :mod:`~edgesmith.sdk.batch.local` starts

A process and not a thread or a fork: a decoder that crashes takes nobody with it, and what the caller's
program has open is not shared. It ends when its input ends, so also when the caller is killed.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import IO

import msgspec

from edgesmith.sdk.batch.shards import Event, Setup, Shard, Worker
from edgesmith.sdk.errors import EdgesmithError


def main() -> None:
    """Read the setup, then shards until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the caller ends us
    events = _take_stdout()
    lines = sys.stdin.buffer

    def tell(event: Event) -> None:
        events.write(msgspec.json.encode(event) + b"\n")

    try:
        worker = Worker(msgspec.json.decode(lines.readline(), type=Setup))
        tell(Event(ready=True))
        for line in lines:
            shard = msgspec.json.decode(line, type=Shard)
            worker.run(
                shard, at=lambda place: tell(Event(at=place)), done=lambda count: tell(Event(done=count))
            )
            tell(Event(finished=shard.number))
    except EdgesmithError as error:
        tell(Event(failed=str(error), status=error.exit_status))
    except BrokenPipeError:
        # The caller is gone; nobody hears it.
        os._exit(1)


def _take_stdout() -> IO[bytes]:
    """The pipe to the caller for our events alone: what a library prints goes to stderr."""
    events = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return events


if __name__ == "__main__":
    main()
