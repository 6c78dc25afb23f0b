"""``edgesmith serve``: bundles behind HTTP."""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from edgesmith.sdk.cli.output import console, emit_json
from edgesmith.sdk.errors import ConfigError
from edgesmith.sdk.heap import limit_arenas
from edgesmith.sdk.serve import Service, ServiceSettings, Tls, Token
from edgesmith.sdk.serve.service import names_of

_MIB = 1 << 20
TOKEN = "EDGESMITH_TOKEN"


@click.command()
@click.argument("bundles", nargs=-1, required=True, metavar="[NAME=]BUNDLE...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0: a free one.")
@click.option(
    "--token-file", type=click.Path(path_type=Path), help=f"File with the clients' token (or ${TOKEN})."
)
@click.option("--tls-cert", type=click.Path(path_type=Path), help="Certificate, PEM.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Its key, PEM.")
@click.option("--client-ca", type=click.Path(path_type=Path), help="Clients need a certificate of this CA.")
@click.option(
    "--instances", type=click.IntRange(1),
    help="Engines a model; on the CPU one a core with one thread, else 1, unless given.",
)  # fmt: skip
@click.option("--max-batch", type=click.IntRange(1), help="Images that share a run; the bundle's most, or 1.")
@click.option(
    "--wait-ms",
    default=2.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Longest wait for others to share a batch.",
)
@click.option(
    "--queue",
    default=64,
    show_default=True,
    type=click.IntRange(1),
    help="Images of a model under way; beyond it 429.",
)
@click.option(
    "--deadline-ms",
    default=10_000.0,
    show_default=True,
    type=click.FloatRange(1),
    help="An answer that takes longer is 504.",
)
@click.option(
    "--max-body-mb", default=32, show_default=True, type=click.IntRange(1), help="Most MiB of a request."
)
@click.option(
    "--max-pixels",
    default=40_000_000,
    show_default=True,
    type=click.IntRange(1),
    help="Most pixels of a picture.",
)
@click.option(
    "--max-memory-mb",
    default=512,
    show_default=True,
    type=click.IntRange(1),
    help="Most MiB of uploads and pixels together.",
)
@click.option(
    "--connections",
    default=512,
    show_default=True,
    type=click.IntRange(1),
    help="Most connections at one time.",
)
@click.option(
    "--watch-s",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Look at the bundle files so often; 0: never.",
)
@click.option("--access-log", default="-", show_default=True, help="A file, - for stderr, or none.")
@click.option("--backend", default="auto", show_default=True, help="auto, tensorrt, cuda or cpu.")
@click.option("--variant", help="A graph of the bundles by name, in place of the chosen one.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of one run.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when it serves.")
def serve(
    bundles: tuple[str, ...],
    token_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    client_ca: Path | None,
    max_body_mb: int,
    max_memory_mb: int,
    access_log: str,
    as_json: bool,
    **options: Any,
) -> int:
    """Serve each BUNDLE over HTTP: a page at /, JSON at /models/NAME/predict, Triton's protocol at /v2.

    Other machines can reach it only with --host, and then a token or --client-ca is needed. A bundle whose
    file is replaced takes over after its self-test, without a request lost; SIGHUP looks at once. SIGTERM
    and Ctrl-C end it when what was accepted is answered.

    The keys of --json: url, pid, models (name, task, bundle, backend, variant, max_batch).
    """
    settings = ServiceSettings(
        token=_token(token_file),
        tls=_tls(tls_cert, tls_key, client_ca),
        max_body_bytes=max_body_mb * _MIB,
        max_memory_bytes=max_memory_mb * _MIB,
        **options,
    )
    with_names = dict(text.split("=", 1) for text in bundles if "=" in text)
    if len(with_names) != sum("=" in text for text in bundles):
        raise ConfigError("a name is given to two bundles")
    found = names_of([Path(text) for text in bundles if "=" not in text])
    for name in found.keys() & with_names.keys():
        raise ConfigError(f"two bundles are called {name!r}")
    limit_arenas()
    service = Service({**with_names, **found}, settings)
    models = [_told(name, served) for name, served in service.models.items()]
    if as_json:
        emit_json({"url": service.url, "pid": os.getpid(), "models": models})
        sys.stdout.flush()
    else:
        for model in models:
            console.print(
                f"{model['name']}: {model['task']}, {model['variant']} on {model['backend']}, "
                f"batches up to {model['max_batch']}, bundle {model['bundle'][:12]}",
                markup=False,
            )
        console.print(f"serving at {service.url}/", style="bold", markup=False)
    with _access_log(access_log):
        interrupted = service.run()
    return 130 if interrupted else 0


def _told(name: str, served: Any) -> dict[str, Any]:
    model = served.model
    return {
        "name": name,
        "task": model.task,
        "bundle": served.current.sha256,
        "backend": model.backend.name,
        "variant": model.backend.variant,
        "max_batch": model.batch.max,
    }


def _token(file: Path | None) -> Token | None:
    """From a file or the environment; an argument could be read in the list of processes."""
    if file is not None:
        try:
            return Token(file.read_text(encoding="utf-8").strip())
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: the token cannot be read: {error}") from error
    given = os.environ.get(TOKEN)
    return Token(given) if given else None


def _tls(certificate: Path | None, key: Path | None, client_ca: Path | None) -> Tls | None:
    if certificate is None and key is None and client_ca is None:
        return None
    if certificate is None or key is None:
        raise ConfigError("TLS needs both --tls-cert and --tls-key")
    return Tls(certificate=certificate, key=key, client_ca=client_ca)


@contextmanager
def _access_log(target: str) -> Iterator[None]:
    """Where the lines about requests go: as they are, without a prefix."""
    log = logging.getLogger("edgesmith.access")
    log.propagate = False
    if target == "none":
        yield
        return
    try:
        handler = (
            logging.StreamHandler(sys.stderr)
            if target == "-"
            else logging.handlers.WatchedFileHandler(target, encoding="utf-8")  # it may be rotated away
        )
    except OSError as error:
        raise ConfigError(f"{target}: the access log cannot be written: {error.strerror or error}") from error
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()
