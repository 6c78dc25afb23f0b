"""The section of the report page on training stages: figures after each, curves, what was cut."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from edgesmith.converters.report.charts import loss_curve
from edgesmith.converters.report.compression import CompressionReport, Figures, StageReport
from edgesmith.converters.training.curves import Curves

TITLES = {
    "trained": "as brought",
    "prune": "pruned",
    "distill": "distilled",
    "qat": "trained for INT8",
    "precision": "converted",
}
METRICS = {"top1": "top-1", "mAP": "mAP"}
MOST_WIDTHS = 200


def compression_section(report: CompressionReport) -> str:
    """HTML of the section."""
    first = next((stage.figures for stage in report.stages if stage.figures is not None), None)
    rows = "".join(_row(stage, first) for stage in report.stages)
    parts = [
        "<table><thead><tr><th>stage</th><th>accuracy</th><th>MACs</th><th>parameters</th><th>latency</th>"
        f"<th>size</th><th></th></tr></thead><tbody>{rows}</tbody></table>",
        f'<p class="quiet">Latency: onnxruntime on one core of {escape(report.processor)}, median.</p>',
    ]
    for stage in report.stages:
        parts += _details(stage)
    return "".join(parts)


def _row(stage: StageReport, first: Figures | None) -> str:
    name = TITLES.get(stage.name, stage.name)
    note = escape(stage.note) + (" (from an earlier run)" if stage.cached else "")
    figures = stage.figures
    if figures is None or first is None:
        return f'<tr><td>{escape(name)}</td><td colspan="5"></td><td>{note}</td></tr>'
    accuracy = "" if figures.accuracy is None else f"{figures.accuracy:.2f}"
    metric = METRICS.get(figures.metric or "", figures.metric or "")
    return (
        f"<tr><td>{escape(name)}</td><td>{accuracy} {escape(metric)}</td>"
        f"<td>{_millions(figures.macs)}{_times(first.macs, figures.macs)}</td>"
        f"<td>{_millions(figures.parameters)}{_times(first.parameters, figures.parameters)}</td>"
        f"<td>{figures.latency_ms:.3g} ms{_times(first.latency_ms, figures.latency_ms)}</td>"
        f"<td>{figures.size_bytes / 1e6:.3g} MB</td><td>{note}</td></tr>"
    )


def _millions(number: int) -> str:
    return f"{number / 1e6:.4g} M"


def _times(before: float, after: float) -> str:
    """``, 1.98x less``; empty where nothing changed."""
    return f", {before / after:.2f}x less" if after and before / after >= 1.005 else ""


def _details(stage: StageReport) -> list[str]:
    parts: list[str] = []
    title = escape(TITLES.get(stage.name, stage.name))
    if stage.curves:
        parts.append(f"<h3>{title}: training</h3>")
        parts += [_curves(curves) for curves in stage.curves]
    changed = [w for w in stage.widths if w.after != w.before]
    if changed:
        rows = "".join(
            f"<tr><td><code>{escape(w.layer)}</code></td><td>{w.before}</td><td>{w.after}</td></tr>"
            for w in changed[:MOST_WIDTHS]
        )
        parts.append(
            f"<details><summary>{len(changed)} layers lost channels</summary>"
            '<table class="narrow"><thead><tr>'
            f"<th>layer</th><th>before</th><th>after</th></tr></thead><tbody>{rows}</tbody></table></details>"
        )
    if stage.whole:
        rows = "".join(
            f"<tr><td><code>{escape(w.layer)}</code></td><td>{w.channels}</td><td>{escape(w.why)}</td></tr>"
            for w in stage.whole
        )
        parts.append(
            f"<details><summary>{len(stage.whole)} kept all their channels</summary><table><thead><tr>"
            f"<th>layer</th><th>channels</th><th>why</th></tr></thead><tbody>{rows}</tbody></table></details>"
        )
    if stage.sparse:
        parts.append(_sparse(stage))
    return parts


def _sparse(stage: StageReport) -> str:
    kept = sum(layer.kept for layer in stage.sparse) / len(stage.sparse)
    before = sum(layer.unpermuted for layer in stage.sparse) / len(stage.sparse)
    return (
        f"<p>2:4 sparsity in {len(stage.sparse)} layers, verified in the exported weights: "
        f"{100 * kept:.1f} % of the weights' size is kept on the mean ({100 * before:.1f} % before the "
        "channels were permuted).</p>"
    )


def _curves(curves: Curves) -> str:
    """The loss of each epoch, and the metric on the held-out images."""
    losses: Sequence[float] = [epoch.loss for epoch in curves.epochs]
    metrics = [epoch.metric for epoch in curves.epochs]
    again = ", taken up again after a stop" if curves.resumed else ""
    return (
        f"{loss_curve(losses, metrics, curves.metric)}"
        f'<p class="quiet">{len(curves.epochs)} epochs of {curves.steps} steps on {curves.images} images in '
        f"{curves.seconds:.0f} s{again}; epoch {curves.best + 1} was kept, by {escape(curves.metric)} on "
        f"{curves.held_out} images that were held out.</p>"
    )
