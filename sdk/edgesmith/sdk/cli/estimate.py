"""``edgesmith estimate``: what a bundle can reach on a device at best."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from edgesmith.sdk.board.profiles import profile
from edgesmith.sdk.board.roofline import Estimate, LayerEstimate, Precision, estimate
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.cli.output import emit_json, printable, table
from edgesmith.sdk.errors import BundleError, ConfigError
from edgesmith.sdk.manifest import Variant
from edgesmith.sdk.onnx_reader import read_outline

_LAYERS = 15  # how many layers are shown; --json has all


@click.command(name="estimate")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--device", required=True, help="Device profile, such as orin-nano-8gb.")
@click.option("--mode", help="Power mode of the device, such as super; without it the usual one.")
@click.option("--variant", help="Which graph of the bundle; without it the chosen one.")
@click.option(
    "--layers",
    "shown",
    type=click.IntRange(0),
    default=_LAYERS,
    show_default=True,
    help="How many of the slowest layers to show.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def estimate_command(
    bundle: Path, device: str, mode: str | None, variant: str | None, shown: int, as_json: bool
) -> int:
    """Estimate time and memory of BUNDLE on a device, from the device's peak figures alone.

    This is a roofline: for each layer the slower of arithmetic and memory traffic, in FP32, FP16 and
    INT8. It says what INT8 can bring before anything is built. A real engine is mostly slower.

    With --json: bundle, variant, device, mode, batch; estimate (true: nothing here is measured); peaks
    (10^12 operations a second by precision), bandwidth_gb_s, memory_gb; macs, flops, weights (numbers
    of one run); totals by precision, each with time_ms, memory_bound_ms, weight_bytes,
    activation_bytes, memory_bytes, fits; int8_gain (time in FP16 over INT8); layers, a list of name,
    operators, macs, flops, weights, uncounted (operators whose arithmetic is not known), int8_gain,
    no_gain (why INT8 arithmetic brings nothing) and costs by precision, each with bytes_read,
    bytes_written, compute_us, memory_us, time_us, bound, int8; assumptions; unverified (figures of the
    profile without a source); warnings.
    """
    opened = Bundle.open(bundle)
    manifest = opened.manifest
    name = variant or manifest.chosen
    if name not in manifest.variants:
        raise ConfigError(f"{bundle} has no variant {name!r}; it has {', '.join(manifest.variants)}")
    graph: Variant = manifest.variants[name]
    device_profile = profile(device)
    try:
        outline = read_outline(opened.read(graph.member))
    except ValueError as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{bundle}: {graph.member}: {error}") from error
    result = estimate(
        outline, device_profile, mode=mode, batch=manifest.batch.opt, where=f"{bundle}: {graph.member}"
    )
    if as_json:
        told = {"bundle": str(bundle), "variant": name, "estimate": True}
        emit_json({**told, **msgspec.to_builtins(result)})
    else:
        _show(result, f"{bundle}, variant {name}", shown)
    return 0


def _show(result: Estimate, title: str, shown: int) -> None:
    memory = f", {result.memory_gb:g} GB" if result.memory_gb else ""
    click.echo(f"Estimate (a roofline, nothing measured): {printable(title)}")
    click.echo(
        f"{result.device}, mode {result.mode}, {result.bandwidth_gb_s:g} GB/s{memory}; batch {result.batch}: "
        f"{result.macs / 1e6:.1f} M multiply-accumulates, {result.weights / 1e6:.2f} M weights\n"
    )
    totals = [
        (
            name.upper(),
            f"{result.peaks[name]:.1f}",
            f"{t.time_ms:.3f}",
            f"{100 * t.memory_bound_ms / t.time_ms if t.time_ms else 0:.0f} %",
            f"{t.weight_bytes / 1e6:.2f}",
            f"{t.activation_bytes / 1e6:.2f}",
            "-" if t.fits is None else "yes" if t.fits else "NO",
        )
        for name, t in result.totals.items()
    ]
    columns = ("precision", "peak T/s", "ms", "memory-bound", "weights MB", "activations MB", "fits")
    table("", columns, totals, right=columns[1:-1])
    if result.int8_gain is not None:
        click.echo(f"\nINT8: {result.int8_gain:.2f}x as fast as FP16 by this estimate.")
        _show_no_gain(result)
    if shown:
        _show_layers(result, shown)
    click.echo("\nAssumptions:")
    for line in result.assumptions:
        click.echo(f"  {line}")
    if result.unverified:
        click.echo(f"  unverified in the profile: {', '.join(result.unverified)}")
    for line in result.warnings:
        click.secho(f"warning: {line}", fg="yellow", err=True)


def _show_no_gain(result: Estimate) -> None:
    """Which layers INT8 brings nothing, by reason, with their share of the time in FP16."""
    layers: dict[str, list[LayerEstimate]] = {}
    for layer in result.layers:
        if layer.no_gain:
            layers.setdefault(layer.no_gain.split(":")[0], []).append(layer)
    whole = result.totals["fp16"].time_ms * 1e3
    for reason, group in layers.items():
        share = sum(layer.costs["fp16"].time_us for layer in group) / whole if whole else 0
        layers_text = f"{len(group)} layer{'s' if len(group) > 1 else ''}"
        click.echo(f"  it brings nothing to {layers_text}, {100 * share:.0f} % of the FP16 time: {reason}")


def _show_layers(result: Estimate, shown: int) -> None:
    usual: Precision = "fp16" if "fp16" in result.totals else "fp32"
    slowest = sorted(result.layers, key=lambda layer: -layer.costs[usual].time_us)[:shown]
    rows: list[tuple[object, ...]] = []
    for layer in slowest:
        cost = layer.costs[usual]
        times = [f"{c.time_us:.1f}" for c in layer.costs.values()]
        gain = "-" if layer.int8_gain is None else f"{layer.int8_gain:.2f}x"
        moved = f"{(cost.bytes_read + cost.bytes_written) / 1e6:.2f}"
        operators = "+".join(layer.operators)
        flops = f"{layer.flops / 1e6:.1f}"
        rows.append((layer.name, operators, flops, moved, cost.bound, *times, gain, layer.no_gain))
    click.echo(f"\nThe {len(slowest)} slowest of {len(result.layers)} layers ({usual.upper()}):")
    microseconds = [f"{p.upper()} us" for p in result.totals]
    columns = ("layer", "operators", "MFLOP", "MB", "bound", *microseconds, "INT8", "INT8 arithmetic")
    table("", columns, rows, right=("MFLOP", "MB", *microseconds, "INT8"))
