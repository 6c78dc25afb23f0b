"""The part of the page that tells of a decision on precision."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from edgesmith.converters.report import charts
from edgesmith.converters.report.precision import LayerFigures, PrecisionReport, TrialFigures, VariantFigures
from edgesmith.sdk.metrics import TITLES, loss_unit_of, shown

Pictures = Sequence[tuple[bytes, bytes]]
# What sameness is where it is not that of a decision.
SAMENESS = {
    "detect": "mAP against the float graph's own sure detections",
    "segment": "mean IoU with the float graph's class maps",
    "tensor": "nothing, since tensors have no decisions",
}
WORST_LAYERS = 10
MOST_NAMED = 12  # layers that are named for one reason, before the rest is counted


def sections(report: PrecisionReport, pictures: Pictures) -> list[tuple[str, str]]:
    """Title and HTML of each section, the verdict first."""
    found = [("Verdict", _verdict(report))]
    if report.trials:
        found.append(("Search", _search(report)))
    if report.layers:
        found.append(("Error by layer", _layers(report)))
    if report.scales:
        found.append(("Ranges", _scales(report)))
    if report.kept_float:
        found.append(("Kept in float", _kept(report)))
    if report.scores is not None:
        found.append(("Scores and threshold", _scores(report)))
    if report.worst:
        found.append(("Largest differences", _worst(report, pictures)))
    found.append(("Time on this machine", _latency(report)))
    return found


def headline(report: PrecisionReport) -> str:
    """The verdict in one sentence of plain text."""
    what = "FP16" if report.share == 0 else f"INT8 for {100 * report.share:.1f} % of the arithmetic"
    found = report.verdict
    if found is None or found.drop is None or found.interval is None:
        return f"{what}: not measured, since the recipe names no images for it."
    low, high = found.interval
    metric = TITLES.get(report.metric or "", report.metric or "")
    inside = "inside" if found.drop <= report.budget else "past"
    end = f"{inside} the budget of {report.budget:g}."
    if not report.labelled:
        return (
            f"{what} changes {found.drop:.2f} points of agreement with the float model "
            f"(95 % interval {low:.2f} to {high:.2f}): {end}"
        )
    word, amount = ("gains", -found.drop) if found.drop < 0 else ("loses", found.drop)
    return (
        f"{what} {word} {amount:.2f} {loss_unit_of(report.metric)} of {metric} "
        f"(95 % interval of the loss {low:+.2f} to {high:+.2f}): {end}"
    )


def _verdict(report: PrecisionReport) -> str:
    found = report.verdict
    kind = "" if found is None or found.drop is None or found.drop <= report.budget else ' class="warn"'
    against = "labelled images" if report.labelled else "images without labels, against the float model"
    split = (
        f"Calibrated on {report.calibration_images} images, searched on {report.search_images}, judged on "
        f"{report.images} {against}."
        if found is not None
        else f"Calibrated on {report.calibration_images} images, searched on {report.search_images}."
    )
    faults = "".join(f"<li>{escape(fault)}</li>" for fault in report.faults)
    left_out = f'<p class="warn">Left out:</p><ul>{faults}</ul>' if faults else ""
    return (
        f'<p{kind}><b class="headline">{escape(headline(report))}</b></p>'
        f'{_variants(report)}<p class="quiet">{split}</p>{left_out}'
    )


def _variants(report: PrecisionReport) -> str:
    drops = [(v.drop, v.interval) for v in report.variants if v.drop is not None and v.interval is not None]
    reach = charts.reach_of(drops, report.budget)
    names = list(dict.fromkeys(name for v in report.variants for name in v.values))
    columns_of = [n for n in names if n in TITLES] or names[:1]
    head = "".join(f"<th>{escape(TITLES.get(name, name))}</th>" for name in columns_of)
    flips = any(v.flipped is not None for v in report.variants)
    columns = "<th>decisions changed</th>" if flips else "<th>agreement</th>" if drops else ""
    note = f" Agreement: {SAMENESS[report.task]}." if report.task in SAMENESS and drops and not flips else ""
    rows = "".join(_variant(report, v, columns_of, reach, flips) for v in report.variants)
    return (
        f'<table class="variants"><thead><tr><th>graph</th>{head}'
        f"<th>{loss_unit_of(report.metric)} lost, 95 % interval</th>{columns}"
        f"<th>size</th></tr></thead><tbody>{rows}</tbody></table>"
        f'<p class="quiet">Bars: right of the line is lost, left is gained; dashed is the budget.{note}</p>'
    )


def _variant(
    report: PrecisionReport, one: VariantFigures, figures: Sequence[str], reach: float, flips: bool
) -> str:
    label = f"<b>{escape(one.name)}</b> (chosen)" if one.chosen else escape(one.name)
    if not one.in_bundle:
        label += "<br><small>not in the bundle</small>"
    size = "" if one.size_bytes is None else f"{one.size_bytes / 1e6:.2f} MB"
    cells = "".join(
        f"<td>{shown(n, one.values[n])}</td>" if n in one.values else "<td></td>" for n in figures
    )
    drop = ""
    if one.drop is not None and one.interval is not None:
        drop = charts.interval_bar(one.drop, one.interval, report.budget, reach) + (
            f"<br><small>{one.drop:+.2f} ({one.interval[0]:+.2f} to {one.interval[1]:+.2f})</small>"
        )
    changed = "" if one.agreement is None else f"{one.agreement:.1f} %"
    if flips:
        changed = "" if one.flipped is None else f"{one.flipped} of {report.images}"
        if one.flipped is not None and one.right_to_wrong is not None:
            changed += (
                f"<br><small>{one.right_to_wrong} right to wrong, {one.wrong_to_right} wrong to right</small>"
            )
    measured = f"<td>{changed}</td>" if any(v.drop is not None for v in report.variants) else ""
    return f"<tr><td>{label}</td>{cells}<td>{drop}</td>{measured}<td>{size}</td></tr>"


def _search(report: PrecisionReport) -> str:
    rows = "".join(_trial(trial) for trial in report.trials)
    same = SAMENESS.get(report.task, "best classes that are the same")
    html = (
        f"<p>Whole ways of quantizing, compared with the float model on {report.search_images} search images "
        f"without labels: {same}, and the signal-to-noise ratio of the outputs.</p>"
        "<table><thead><tr><th>repairs</th><th>ranges by</th><th>same as float</th><th>outputs</th>"
        f"<th>changed</th><th></th></tr></thead><tbody>{rows}</tbody></table>"
    )
    if not report.curve:
        return html
    first = report.curve[0]
    if len(report.curve) == 1 and first.float_layers == 0 and first.drop <= report.budget:
        return f'{html}<p class="quiet">No layer had to be given back to float.</p>'
    html += "<h3>Layers given back to float</h3>"
    if len(report.curve) > 1:
        points = [(p.float_layers, p.drop, p.interval) for p in report.curve]
        html += charts.drop_curve(points, report.budget)
    told = "".join(
        f"<tr><td>{p.float_layers}</td><td>{p.drop:+.2f} ({p.interval[0]:+.2f} to {p.interval[1]:+.2f})</td>"
        f"<td>{100 * p.share:.1f} %</td></tr>"
        for p in report.curve
    )
    return (
        f'{html}<table class="narrow"><thead><tr><th>layers in float</th><th>points lost</th>'
        f"<th>of the arithmetic in INT8</th></tr></thead><tbody>{told}</tbody></table>"
    )


def _trial(trial: TrialFigures) -> str:
    repairs = ", ".join(trial.repairs) or "none"
    taken = "<b>taken</b>" if trial.taken else ""
    changed = f"{trial.flipped} of {trial.decisions}" if trial.decisions else ""
    return (
        f"<tr><td>{escape(repairs)}</td><td>{escape(trial.method)}</td><td>{trial.same:.2f} %</td>"
        f"<td>{_decibels(trial.decibels)}</td><td>{changed}</td><td>{taken}</td></tr>"
    )


def _layers(report: PrecisionReport) -> str:
    total = sum(layer.macs for layer in report.layers) or 1
    ordered = sorted((la for la in report.layers if la.decibels is not None), key=lambda la: la.decibels or 0)
    worst = ordered[:WORST_LAYERS]
    low = {layer.node for layer in worst}

    def kind(layer: LayerFigures) -> str:
        return "returned" if layer.returned else "low" if layer.node in low else "plain"

    bars = []
    for layer in report.layers:
        title = f"{_decibels(layer.decibels)}  {layer.node}  ({layer.module or 'no module'})"
        bars.append((title, layer.decibels, kind(layer)))
    rows = "".join(
        f"<tr><td><code>{escape(layer.node)}</code></td><td><code>{escape(layer.module or '')}</code></td>"
        f"<td>{_decibels(layer.decibels)}</td><td>{100 * layer.macs / total:.1f} %</td>"
        f"<td>{'given back to float' if layer.returned else ''}</td></tr>"
        for layer in worst
    )
    return (
        "<p>Signal-to-noise ratio of each layer's output, all layers before it quantized too, on calibration "
        "images, in execution order. More is better: 20 dB is an error of a tenth, 40 dB of a hundredth. "
        f"The {len(worst)} lowest are marked.</p>{charts.layer_bars(bars)}"
        "<table><thead><tr><th>node</th><th>module</th><th>ratio</th><th>of the arithmetic</th><th></th></tr>"
        f"</thead><tbody>{rows}</tbody></table>"
    )


def _scales(report: PrecisionReport) -> str:
    methods = list(report.scales[0].windows)
    head = "".join(f"<th>{escape(name)}</th>" for name in methods)
    rows = []
    for one in report.scales:
        cells = "".join(
            f"<td>{_window(one.windows[name])}<br><small>{_percent(one.outside.get(name))}</small></td>"
            for name in methods
        )
        used = "a factor by channel" if one.factored else _window(one.used)
        rows.append(
            f"<tr><td><code>{escape(one.tensor)}</code><br><small>read by {escape(one.reader)}</small></td>"
            f"<td>{charts.window_bars(one.low, one.high, one.windows)}</td>{cells}<td>{used}</td></tr>"
        )
    warnings = "".join(f'<p class="warn">{escape(text)}</p>' for text in report.warnings)
    return (
        f"<p>The {len(report.scales)} activations whose ranges the methods clip most: the values that each "
        "method's integers cover, and beneath it the share of values outside its symmetric window. Bars: "
        f'{escape(", ".join(methods))}, from the top.</p>{warnings}<table class="dense"><thead><tr>'
        f"<th>tensor</th><th></th>{head}<th>used</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _kept(report: PrecisionReport) -> str:
    parts = []
    for group in report.kept_float:
        named = ", ".join(f"<code>{escape(name)}</code>" for name in group.layers[:MOST_NAMED])
        rest = len(group.layers) - MOST_NAMED
        more = f" and {rest} more, all in report.json" if rest > 0 else ""
        parts.append(f"<dt>{escape(group.why)} ({len(group.layers)})</dt><dd>{named}{more}</dd>")
    return f'<dl class="reasons">{"".join(parts)}</dl>'


def _scores(report: PrecisionReport) -> str:
    found = report.scores
    assert found is not None
    if found.recommended == found.threshold:
        advice = (
            f"Keep the threshold of <b>{found.threshold:g}</b>: there F1 against the float model's "
            f"detections is {100 * found.f1_same:.1f} %, and no other gains a whole percent."
        )
    else:
        advice = (
            f"Recommended threshold for the chosen graph: <b>{found.recommended:.2f}</b>. There F1 against "
            f"the float model's detections is {100 * found.f1_there:.1f} %; at {found.threshold:g}, the "
            f"float model's own, it is {100 * found.f1_same:.1f} %."
        )
    other = found.recommended != found.threshold
    lines = {"threshold": found.threshold, **({"recommended": found.recommended} if other else {})}
    rows = (
        f"<tr><td>float at {found.threshold:g}</td><td>{found.found_exact}</td></tr>"
        f"<tr><td>chosen at {found.threshold:g}</td><td>{found.found_same}</td></tr>"
    )
    if other:
        rows += f"<tr><td>chosen at {found.recommended:g}, recommended</td><td>{found.found_there}</td></tr>"
    return (
        f"<p>{advice}</p>{charts.score_bars(found.edges, found.exact, found.chosen, lines)}"
        '<p class="quiet"><span class="key float"></span> float <span class="key chosen"></span> chosen; '
        f"dashed: the float model's threshold{'; solid: the recommended one' if other else ''}.</p>"
        f'<table class="narrow"><thead><tr><th>detections on {report.search_images} search images</th>'
        f"<th></th></tr></thead><tbody>{rows}</tbody></table>"
    )


def _worst(report: PrecisionReport, pictures: Pictures) -> str:
    parts = []
    boxes = " Boxes that both find are outlined thinly; those that only one finds carry their name."
    if report.scores is None:
        boxes = ""
    for image, pair in zip(report.worst, pictures, strict=True):
        shown = "".join(
            f'<figure><img alt="{side}: {escape(image.name)}" src="data:image/jpeg;base64,'
            f'{base64.b64encode(data).decode()}"><figcaption>{side}</figcaption></figure>'
            for side, data in zip(("float", "chosen"), pair, strict=True)
        )
        parts.append(
            f"<h3><code>{escape(image.name)}</code>: {escape(image.difference)}</h3>"
            f'<div class="pairs">{shown}</div>'
        )
    return (
        f"<p>The images, of {report.search_images} that the search used, on which the two graphs differ most."
        f"{boxes}</p>{''.join(parts)}"
    )


def _latency(report: PrecisionReport) -> str:
    found = report.latency
    base = found.p50_ms["float"]
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{p50:.3g} ms</td><td>{found.p90_ms[name]:.3g} ms</td>"
        f"<td>{p50 / base:.2f} x float</td></tr>"
        for name, p50 in found.p50_ms.items()
    )
    return (
        f"<p>{escape(report.cpu)}</p>"
        f'<p class="warn">Times of onnxruntime on {escape(found.processor)}, {found.threads} thread, '
        f"{found.runs} runs in turns: they say nothing of the target, whose engine fuses what stands apart "
        "here. Measure there with <code>edgesmith bench</code>.</p>"
        '<table class="narrow"><thead><tr><th>graph</th><th>median</th><th>90 % under</th><th></th></tr>'
        f"</thead><tbody>{rows}</tbody></table>"
    )


def _decibels(value: float | None) -> str:
    return "exact" if value is None else f"{value:.1f} dB"


def _window(window: tuple[float, float]) -> str:
    return f"{window[0]:.3g} to {window[1]:.3g}"


def _percent(share: float | None) -> str:
    return "" if share is None else "0 %" if share == 0 else f"{100 * share:.2g} %"
