"""``edgesmith verify``: the golden self-test on this machine."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from edgesmith.sdk.backends.choose import not_at_hand
from edgesmith.sdk.backends.tensorrt.fallback import rollback_of
from edgesmith.sdk.backends.tensorrt.library import load_tensorrt
from edgesmith.sdk.backends.tensorrt.state import Event
from edgesmith.sdk.backends.tensorrt.target import detect_target
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.cli.output import emit_json, printable, table
from edgesmith.sdk.models import load_model
from edgesmith.sdk.selftest import self_test


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--backend", default="auto", show_default=True, help="auto, tensorrt, cuda or cpu.")
@click.option("--variant", help="A graph of the bundle by name, in place of the chosen one.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(bundle: Path, backend: str, variant: str | None, as_json: bool) -> int:
    """Run BUNDLE's golden pictures here and compare every output with what it should be.

    Every member's hash is checked too. The exit status is 1 when an output is out of its tolerance, and when
    another engine runs than the one that was wanted, because that one failed its self-test.
    """
    with load_model(bundle, backend=backend, variant=variant) as model:
        model.bundle.check()
        test = self_test(model)
        rollback = _rollback(model.bundle, backend)
    if as_json:
        emit_json({**msgspec.to_builtins(test), "rollback": msgspec.to_builtins(rollback)})
    else:
        rows = [
            (
                c.name,
                f"{c.max_abs:.3g}",
                f"{c.tolerance:.3g}",
                f"{c.cosine:.6f}",
                "ok" if c.passed else "FAILED",
            )
            for c in test.outputs
        ]
        hashes = len(model.bundle.manifest.members)
        title = f"{bundle}: variant {test.variant} on {test.backend}, {hashes} hashes ok"
        table(title, ("output", "difference", "allowed", "cosine", ""), rows)
        click.echo("passed" if test.passed else "FAILED: this machine does not compute what the bundle says")
        if rollback is not None:
            click.echo(f"ROLLED BACK: {printable(str(rollback))}")
    return 0 if test.passed and rollback is None else 1


def _rollback(bundle: Bundle, backend: str) -> Event | None:
    """What TensorRT was to run for this bundle here and does not; None where it was not asked."""
    if backend not in ("auto", "tensorrt") or not_at_hand("tensorrt") is not None:
        return None
    found = load_tensorrt()
    return None if found.trt is None else rollback_of(bundle, target=detect_target(found.trt))
