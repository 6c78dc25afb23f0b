"""``edgesmith explain``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from edgesmith.converters.cli import need_packages
from edgesmith.converters.options import recipe_options
from edgesmith.sdk.cli.output import emit_json, printable, table


@click.command()
@click.argument("model", metavar="MODEL.onnx|RECIPE.toml|torchvision:NAME|timm:NAME")
@click.option(
    "--device", help="A device profile, see `edgesmith devices`; default: the recipe's, else generic."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@recipe_options
@click.pass_context
def explain(ctx: click.Context, model: str, device: str | None, as_json: bool) -> int:
    """Say what of MODEL the device's TensorRT does not take, before anything is built.

    Each operator is named with the module and the line of your code, and with the rewrite that the conversion
    has or with what to do. The exit status is 1 when something stands in the way.

    \b
    Keys of --json: model, device, tensorrt, opset, operators (counts), obstacles (list of operator, node,
    module, lines, what, mend, rewrite), unknown (operators that the table has no word on), slow.
    """
    need_packages("explain")
    from edgesmith.converters.explain import explain_graph, explain_recipe
    from edgesmith.converters.sources.shorthand import recipe_of

    if model.endswith(".onnx"):
        found = explain_graph(Path(model), device or "generic")
    else:
        overrides: dict[str, Any] = ctx.ensure_object(dict).get("overrides", {})
        found = explain_recipe(recipe_of(model, overrides), device)
    if as_json:
        emit_json(msgspec.to_builtins(found))
        return 0 if found.passed else 1
    for one in found.obstacles:
        where = f"module {one.module or '(the model itself)'}" if one.module is not None else "the graph"
        click.secho(f"{printable(one.operator)} in {printable(where)}: {printable(one.what)}", bold=True)
        for line in one.lines:
            click.echo(f"  {printable(line)}")
        click.echo(f"  {printable(one.mend)}")
    for text in found.slow:
        click.echo(f"costs: {printable(text)}")
    if found.unknown:
        click.echo(f"not in the table of operators: {', '.join(map(printable, found.unknown))}")
    rows = [(name, count) for name, count in found.operators.items()]
    table(
        f"{found.model}: TensorRT {found.tensorrt} of {found.device}, opset {found.opset}",
        ("operator", "nodes"),
        rows,
    )
    count = len(found.obstacles)
    click.echo(
        "nothing stands in the way"
        if found.passed
        else f"{count} place{' stands' if count == 1 else 's stand'} in the way"
    )
    return 0 if found.passed else 1
