"""``report.html``: one page that stands alone, no script, no font or picture from elsewhere."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from edgesmith.converters.compiled import CompiledGraph
from edgesmith.converters.parity import MIN_COSINE, OutputParity, Parity
from edgesmith.converters.report.compression_page import compression_section
from edgesmith.converters.report.data import Report
from edgesmith.converters.report.precision import PrecisionReport
from edgesmith.converters.report.precision_page import Pictures, sections
from edgesmith.sdk.manifest import Manifest, TensorSpec
from edgesmith.sdk.metrics import TITLES, loss_unit_of, shown

_METRICS = {
    **TITLES,
    "top1_agreement": "Same best class",
    "box_agreement": "Same detections",
    "pixel_agreement": "Same class of a pixel",
}
_COLORS = {"rgb": "RGB", "bgr": "BGR", "y": "luma (Y of YCrCb)"}


def page(report: Report, pictures: Sequence[bytes], pairs: Pictures = ()) -> str:
    """The whole page; ``pictures`` are JPEG files, ``pairs`` those of ``report.precision.worst``."""
    style = (files("edgesmith.converters.report") / "page.css").read_text(encoding="utf-8")
    manifest = report.manifest
    parts = sections(report.precision, pairs) if report.precision is not None else []
    body = "".join(
        (
            _head(report),
            _tiles(report),
            _section("Training", compression_section(report.compression)) if report.compression else "",
            "".join(_section(*part) for part in parts),
            _section("Proof", _proof(report)),
            _section("Accuracy", _accuracy(report)) if report.metric else "",
            _section("Compile check", _compiled(report.compiled)),
            _section("Self-test", _golden(manifest, pictures)),
            _section("Preprocess", _preprocess(manifest)),
            _section("Tensors", _tensors(manifest)),
            _section("Graph", _graph(report)),
            _section("Provenance", _provenance(report)),
        )
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(manifest.name)}: conversion report</title><style>{style}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _head(report: Report) -> str:
    manifest = report.manifest
    verdict = "proven" if report.exported.passed and report.simplified.passed else "refused"
    facts = (manifest.task, manifest.precision, f"for {manifest.target}", f"head: {report.head}")
    chips = "".join(f"<span>{escape(fact)}</span>" for fact in facts)
    created = escape(manifest.provenance.created.replace("T", " ").replace("+00:00", " UTC"))
    return (
        f'<header><p class="kind">conversion report</p><h1>{escape(manifest.name)}</h1>'
        f'<p class="chips"><span class="{verdict}">{verdict}</span>{chips}</p>'
        f'<p class="quiet">{escape(manifest.provenance.source)}, {created}</p></header>'
    )


def _tiles(report: Report) -> str:
    manifest = report.manifest
    tiles = []
    if report.metric is not None:
        tiles.append(
            (
                shown(report.metric, manifest.measured[report.metric]),
                _METRICS.get(report.metric, report.metric),
            )
        )
    if report.precision is not None:
        tiles += _precision_tiles(report.precision)
    elif report.exported.agreement is not None:
        name = _METRICS.get(report.exported.metric or "", "")
        tiles.append((f"{100 * report.exported.agreement:.1f} %", f"{name} as before"))
    tiles.append((_bytes(sum(report.sizes_bytes.values())), "in the bundle"))
    tiles.append((_count(report.weights.values), "parameters"))
    tiles.append((str(sum(report.operators.values())), "nodes"))
    inner = "".join(f"<div><b>{escape(value)}</b><i>{escape(name)}</i></div>" for value, name in tiles)
    return f'<div class="tiles">{inner}</div>'


def _precision_tiles(found: PrecisionReport) -> list[tuple[str, str]]:
    tiles = []
    verdict = found.verdict
    if verdict is not None and verdict.drop is not None and found.metric is not None:
        name = _METRICS.get(found.metric, found.metric)
        tiles.append((shown(found.metric, verdict.values[found.metric]), name))
        unit = loss_unit_of(found.metric)
        tiles.append((f"{verdict.drop:+.2f}", f"{unit} lost, budget {found.budget:g}"))
    if found.share > 0:
        tiles.append((f"{100 * found.share:.1f} %", "of the arithmetic in INT8"))
    return tiles


def _proof(report: Report) -> str:
    real = report.exported.images
    what = (
        f"{real} images of {report.images}" if real else "seeded pseudo-images: the recipe names no real ones"
    )
    warning = "" if real else ' class="warn"'
    return (
        f"<p{warning}>Measured on {escape(what)}.</p>"
        "<h3>The graph in the bundle against the model that was brought</h3>"
        f"{_parity(report.exported)}"
        "<h3>After simplifying against before</h3>"
        f"{_parity(report.simplified)}"
    )


def _parity(parity: Parity) -> str:
    rows = []
    for output in parity.outputs:
        allowed = "not compared" if output.tolerance is None else f"{output.tolerance:.2e}"
        rows.append(
            f"<tr><td><code>{escape(output.name)}</code></td><td>{output.max_abs:.2e}</td><td>{allowed}</td>"
            f"<td>{_scale(output)}</td><td>{output.cosine:.8f}</td></tr>"
        )
    task = ""
    if parity.metric is not None and parity.agreement is not None:
        name = _METRICS.get(parity.metric, parity.metric)
        task = (
            f"<p>{escape(name)}: <b>{100 * parity.agreement:.2f} %</b> of {parity.decisions} "
            f"(needs {100 * parity.needed:.0f} %).</p>"
        )
    return (
        "<table><thead><tr><th>output</th><th>largest difference</th><th>allowed</th>"
        f"<th>of the allowance</th><th>cosine (at least {MIN_COSINE})</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>{task}"
    )


def _scale(output: OutputParity) -> str:
    """Where the difference lies between a millionth of the allowance and all of it, on a log scale."""
    if output.tolerance is None:
        return ""
    share = output.max_abs / output.tolerance if output.tolerance else math.inf
    at = 0.0 if share <= 1e-6 else min(1.0, 1 + math.log10(share) / 6)
    kind = "ok" if output.passed else "bad"
    ticks = "".join(f'<path d="M{20 * n + 0.5} 3v8"/>' for n in range(1, 6))
    text = "0" if output.max_abs == 0 else f"{100 * share:.2g} %"
    return (
        f'<svg class="scale {kind}" viewBox="0 0 122 14" role="img" aria-label="{text} of the allowance">'
        f'<rect x="0" y="5" width="120" height="4" rx="2"/>{ticks}'
        f'<circle cx="{2 + 116 * at:.1f}" cy="7" r="4"/></svg><small>{text}</small>'
    )


def _accuracy(report: Report) -> str:
    measured = report.manifest.measured
    rows = "".join(
        f"<tr><td>{escape(_METRICS.get(name, name))}</td><td>{shown(name, value)}</td></tr>"
        for name, value in measured.items()
    )
    faults = "".join(f"<li>{escape(fault)}</li>" for fault in report.faults)
    left_out = f'<p class="warn">Left out:</p><ul>{faults}</ul>' if faults else ""
    return (
        f"<p>{report.measured_images} labelled images, through the bundle as a user opens it.</p>"
        f'<table class="narrow"><tbody>{rows}</tbody></table>{left_out}'
    )


def _compiled(graphs: Sequence[CompiledGraph]) -> str:
    if not graphs:
        return (
            '<p class="quiet">Not compiled: the compiler is not installed '
            "(<code>pip install 'edgesmith[trt-check]'</code>).</p>"
        )
    rows = ""
    for graph in graphs:
        note = "; ".join((graph.note, *graph.float_instead)).strip("; ")
        quantized = (
            f"{graph.meant - len(graph.float_instead)} of {graph.meant}" if graph.meant else "none meant"
        )
        rows += (
            f"<tr><td><code>{escape(graph.variant)}</code></td><td>{escape(graph.outcome)}</td>"
            f"<td>{graph.layers or ''}</td><td>{quantized}</td><td>{escape(note)}</td></tr>"
        )
    return (
        f"<p>Compiled with TensorRT-RTX {escape(graphs[0].version)} for compute capability 8.6, without a "
        "GPU: what it puts in float, so, as a rule, does TensorRT on a Jetson.</p>"
        "<table><thead><tr><th>graph</th><th>outcome</th><th>compiled layers</th><th>in INT8</th><th></th>"
        f"</tr></thead><tbody>{rows}</tbody></table>"
    )


def _golden(manifest: Manifest, pictures: Sequence[bytes]) -> str:
    shown = "".join(
        f'<figure><img alt="{escape(name)}" src="data:image/jpeg;base64,{base64.b64encode(data).decode()}">'
        f"<figcaption><code>{escape(name)}</code></figcaption></figure>"
        for name, data in zip(manifest.golden.images, pictures, strict=True)
    )
    allowed = manifest.variants[manifest.chosen].tolerance
    rows = "".join(f"<tr><td><code>{escape(n)}</code></td><td>{v:.3g}</td></tr>" for n, v in allowed.items())
    return (
        "<p>A device repeats these with <code>edgesmith verify</code> and refuses the bundle where an output "
        f'differs by more than allowed.</p><div class="pictures">{shown}</div>'
        f'<table class="narrow"><thead><tr><th>output</th><th>allowed difference</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def _preprocess(manifest: Manifest) -> str:
    given = manifest.preprocess
    size = f"{given.size[0]} x {given.size[1]} (H x W)" if given.size else "any"
    fit: list[tuple[str, object]] = [("size", size), ("fit", given.fit)]
    if given.fit == "letterbox":
        fit += [("anchor", given.anchor), ("pad", given.pad), ("upscale", "yes" if given.upscale else "no")]
        fit.append(("rounding", given.rounding))
    if given.fit == "resize-crop":
        fit.append(("shorter side", given.crop_side))
    if given.fit != "none":
        fit.append(("interpolation", given.interpolation + (", antialiased" if given.antialias else "")))
    fit += [
        ("colour", _COLORS[given.color]),
        ("value", f"(pixel x {given.scale:.6g} - mean) / std"),
        ("mean", _numbers(given.mean)),
        ("std", _numbers(given.std)),
    ]
    if manifest.nms is not None:
        nms = manifest.nms
        fit.append(("NMS", f"on the {nms.where}" if nms.where == "host" else "in the graph"))
        fit.append(("score, IoU", f"{nms.score:g} (evaluation {nms.evaluation_score:g}), {nms.iou:g}"))
        fit.append(("classes a box", nms.classes))
    return _facts(fit)


def _tensors(manifest: Manifest) -> str:
    def rows(kind: str, values: Iterable[TensorSpec]) -> str:
        return "".join(
            f"<tr><td>{kind}</td><td><code>{escape(v.name)}</code></td><td>{escape(v.dtype)}</td>"
            f"<td>{escape(' x '.join(map(str, v.shape)))}</td></tr>"
            for v in values
        )

    return (
        "<table><thead><tr><th></th><th>name</th><th>type</th><th>shape</th></tr></thead><tbody>"
        f"{rows('input', manifest.inputs)}{rows('output', manifest.outputs)}</tbody></table>"
    )


def _graph(report: Report) -> str:
    most = max(report.operators.values(), default=1)
    bars = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{count}</td>"
        f'<td class="bar"><svg viewBox="0 0 100 8" preserveAspectRatio="none">'
        f'<rect width="{100 * count / most:.1f}" height="8" rx="1"/></svg></td></tr>'
        for name, count in report.operators.items()
    )
    sizes = [(f"{name}", _bytes(size)) for name, size in report.sizes_bytes.items()]
    return (
        f'<div class="columns"><table><thead><tr><th>operator</th><th>nodes</th><th></th></tr></thead>'
        f"<tbody>{bars}</tbody></table><div>{_facts(sizes, code=True)}</div></div>"
    )


def _provenance(report: Report) -> str:
    origin = report.manifest.provenance
    rows: list[tuple[str, object]] = [
        ("source", origin.source),
        ("SHA-256", origin.source_sha256),
        ("licence", origin.license or "not stated"),
        ("versions", ", ".join(f"{name} {number}" for name, number in origin.versions.items())),
        ("stages", ", ".join(f"{name} {spent:.1f} s" for name, spent in report.stages_s.items())),
    ]
    if report.notes:
        rows.append(("notes", "; ".join(report.notes)))
    recipe = "\n".join(_toml(origin.recipe))
    return f"{_facts(rows)}<details><summary>The recipe</summary><pre>{escape(recipe)}</pre></details>"


def _toml(table: dict[str, object], prefix: str = "") -> list[str]:
    """The recipe's plain dictionary as lines of dotted keys."""
    lines: list[str] = []
    for key, value in table.items():
        if isinstance(value, dict):
            lines += _toml(value, f"{prefix}{key}.")
        else:
            lines.append(f"{prefix}{key} = {json.dumps(value)}")
    return lines


def _facts(rows: Iterable[tuple[str, object]], *, code: bool = False) -> str:
    before, after = ("<code>", "</code>") if code else ("", "")
    inner = "".join(
        f"<dt>{before}{escape(name)}{after}</dt><dd>{escape(str(value))}</dd>" for name, value in rows
    )
    return f"<dl>{inner}</dl>"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{v:.6g}" for v in values)


def _bytes(size: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def _count(number: float) -> str:
    for unit in ("", " k", " M"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} G"
