"""``edgesmith doctor``: is this machine ready, and what mends it."""

from __future__ import annotations

from collections import Counter

import click
import msgspec

from edgesmith.sdk.backends.choose import order_here
from edgesmith.sdk.board.doctor import CHECKS, examine
from edgesmith.sdk.board.facts import gather
from edgesmith.sdk.cli.output import emit_json, table


@click.command(epilog=f"Checks: {', '.join(name for name, _ in CHECKS)}.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(as_json: bool) -> int:
    """Check this machine and say what to mend.

    Nothing is installed, changed or sent. The exit status is 1 when a check fails; a warning does
    not count.

    With --json: checks, a list of name, status (ok, warn or fail), detail and mend (a command, or null).
    """
    checks = examine(gather(order_here))
    failed = any(check.status == "fail" for check in checks)
    if as_json:
        emit_json({"checks": msgspec.to_builtins(checks)})
        return int(failed)
    table("", ("", "check", "found"), [(c.status.upper(), c.name, c.detail) for c in checks])
    for title, some in (
        ("To mend:", [c for c in checks if c.status != "ok" and c.mend]),
        ("Optional:", [c for c in checks if c.status == "ok" and c.mend]),
    ):
        if some:
            click.echo(f"\n{title}")
            width = max(len(c.name) for c in some)
            for check in some:
                click.echo(f"  {check.name:{width}}  {check.mend}")
    count = Counter(check.status for check in checks)
    click.echo(f"\n{count['ok']} ok, {count['warn']} to look at, {count['fail']} failed")
    return int(failed)
