"""``edgesmith devices``: the device profiles and what their figures rest on."""

from __future__ import annotations

import click
import msgspec

from edgesmith.device_profiles import DeviceProfile, Figure, PowerMode, list_profiles
from edgesmith.sdk.board.profiles import profile
from edgesmith.sdk.cli.output import emit_json, table


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def devices(name: str | None, as_json: bool) -> int:
    """List the devices that a recipe's [target] may name, with the figures known of each.

    With NAME, show that device alone: every figure with its source. A figure with a question mark
    is unverified.

    With --json: profiles, a list of all fields of each; a figure has value, source (explained in
    the profile's sources) and status (documented, derived or unverified).
    """
    profiles = [profile(n) for n in ((name,) if name else list_profiles())]
    if as_json:
        emit_json({"profiles": msgspec.to_builtins(profiles)})
    elif name:
        _show(profiles[0])
    else:
        _list(profiles)
    return 0


def _list(profiles: list[DeviceProfile]) -> None:
    rows: list[tuple[str, ...]] = []
    for p in profiles:
        software = " ".join(s.tensorrt for s in p.software) or "any"
        shared = (_text(p.memory_gb), _text(p.dla_cores), "no" if p.unsupported else software)
        for mode in p.modes or (None,):
            rows.append((p.name, *_figures(mode), *shared))
    columns = (
        "device", "mode", "MHz", "GB/s", "INT8", "FP16", "watts", "RAM", "DLA", "TensorRT",
    )  # fmt: skip
    table("", columns, rows, right=("MHz", "GB/s", "INT8", "FP16", "watts", "RAM", "DLA"))
    click.echo(
        "\nINT8 and FP16: dense peak of the GPU, 10^12 operations a second. RAM in GB. ?: unverified.\n"
        "TensorRT: versions that the device's JetPack releases bring. `edgesmith devices NAME` gives sources."
    )
    for p in profiles:
        if p.unsupported:
            click.echo(f"{p.name}: {p.unsupported}.")


def _figures(mode: PowerMode | None) -> tuple[str, ...]:
    if mode is None:
        return ("-",) * 6
    watts = f"{_text(mode.watts_min)}-{_text(mode.watts_max)}"
    values = (mode.gpu_mhz, mode.bandwidth_gb_s, mode.int8_tops, mode.fp16_tflops)
    return mode.name, *(_text(v) for v in values), watts


def _text(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    return f"{figure.value:g}" + ("?" if figure.status == "unverified" else "")


def _show(p: DeviceProfile) -> None:
    click.echo(f"{p.name}: {p.title}")
    facts = [
        ("chip", p.chip),
        ("compute capability", p.compute_capability),
        ("precisions", ", ".join(p.precisions)),
        ("not supported", p.unsupported),
        *(("note", note) for note in p.notes),
    ]
    table("", ("", ""), [(key, value) for key, value in facts if value], header=False)
    rows = _rows("", p) + [row for mode in p.modes for row in _rows(f"{mode.name}: ", mode)]
    if rows:
        click.echo()
        table("", ("figure", "value", "status", "source"), rows, right=("value",))
    if p.software:
        click.echo()
        software = [
            (s.jetpack, s.tensorrt, s.cuda, "yes" if s.dla else "no", s.status, s.source) for s in p.software
        ]
        table("", ("JetPack", "TensorRT", "CUDA", "DLA", "status", "source"), software)
    if p.sources:
        click.echo()
        table("", ("source", "stands for"), list(p.sources.items()))


def _rows(prefix: str, struct: DeviceProfile | PowerMode) -> list[tuple[str, str, str, str]]:
    """Name, value, status and source of each figure."""
    rows: list[tuple[str, str, str, str]] = []
    for field in struct.__struct_fields__:
        figure = getattr(struct, field)
        if isinstance(figure, Figure):
            name = field.replace("_gb_s", " GB/s").replace("_gb", " GB").replace("_", " ")
            name = name.replace("gpu mhz", "GPU MHz").replace("sms", "SMs").replace("dla", "DLA")
            if kind := getattr(figure, "kind", None):
                name += f" {kind.replace('-', ' ')}, {getattr(figure, 'covers', '')}"
            rows.append((prefix + name, f"{figure.value:g}", figure.status, figure.source))
    return rows
