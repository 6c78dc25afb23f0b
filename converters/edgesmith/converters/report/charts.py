"""Charts as inline SVG: no script, no style beyond the page's, a title on every mark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH = 920
MOST_DB = 60.0  # bars end here: a layer above it is as good as exact


def interval_bar(drop: float, interval: tuple[float, float], budget: float, reach: float) -> str:
    """A drop with its interval about zero; the budget is the dashed line. Right of zero something is lost.

    ``reach`` in points is half the width, so that bars below one another share a scale.
    """

    def x(value: float) -> float:
        return 110 + 100 * max(-1.0, min(1.0, value / reach))

    low, high = x(interval[0]), x(interval[1])
    kind = "ok" if drop <= budget else "bad"
    text = (
        f"{drop:+.2f} points lost, 95 % interval {interval[0]:+.2f} to {interval[1]:+.2f}, budget {budget:g}"
    )
    return (
        f'<svg class="drop {kind}" viewBox="0 0 220 18" role="img" aria-label="{text}"><title>{text}</title>'
        f'<path class="axis" d="M110 1v16"/><path class="budget" d="M{x(budget):.1f} 1v16"/>'
        f'<rect x="{low:.1f}" y="6" width="{max(1.0, high - low):.1f}" height="6" rx="3"/>'
        f'<circle cx="{x(drop):.1f}" cy="9" r="4.5"/></svg>'
    )


def reach_of(drops: Sequence[tuple[float, tuple[float, float]]], budget: float) -> float:
    """Half the width that bars of these drops and intervals need."""
    widest = max((max(abs(drop), *map(abs, interval)) for drop, interval in drops), default=0.0)
    return 1.15 * max(widest, budget, 0.1)


def layer_bars(layers: Sequence[tuple[str, float | None, str]]) -> str:
    """A bar for each layer in order: (title, dB or None where exact, class of the mark)."""
    if not layers:
        return ""
    left, top, height = 44, 8, 150
    step = (WIDTH - left - 6) / len(layers)
    marks = [_line(left, top, height, level, MOST_DB, "dB") for level in (0, 20, 40, 60)]
    for number, (title, decibels, kind) in enumerate(layers):
        tall = height * _share(decibels)
        marks.append(
            f'<rect class="{kind}" x="{left + number * step:.2f}" y="{top + height - tall:.1f}" '
            f'width="{max(0.6, min(step * 0.82, 26)):.2f}" height="{tall:.1f}">'
            f"<title>{escape(title)}</title></rect>"
        )
    label = f"signal-to-noise ratio of {len(layers)} layers"
    return _svg("layers", height + top + 8, label, "".join(marks))


def score_bars(
    edges: Sequence[float], exact: Sequence[int], chosen: Sequence[int], lines: Mapping[str, float]
) -> str:
    """Two bars a bin, float and chosen; ``lines`` are scores by class of the mark."""
    left, top, height = 40, 8, 150
    wide = WIDTH - left - 6
    most = max(*exact, *chosen, 1)
    low, high = edges[0], edges[-1]
    step = wide / len(exact)
    marks = [_line(left, top, height, level, most) for level in _ticks(most)]
    for number, pair in enumerate(zip(exact, chosen, strict=True)):
        for side, (kind, count) in enumerate(zip(("float", "chosen"), pair, strict=True)):
            tall = height * count / most
            text = f"{kind}: {count} of score {edges[number]:.2f} to {edges[number + 1]:.2f}"
            marks.append(
                f'<rect class="{kind}" x="{left + step * (number + 0.1 + 0.4 * side):.1f}" '
                f'y="{top + height - tall:.1f}" width="{step * 0.38:.1f}" height="{tall:.1f}">'
                f"<title>{text}</title></rect>"
            )
    for at in (n / 10 for n in range(11) if low <= n / 10 <= high):
        x = left + wide * (at - low) / (high - low)
        marks.append(f'<text x="{x:.1f}" y="{top + height + 16}" text-anchor="middle">{at:g}</text>')
    for kind, at in lines.items():
        x = left + wide * (min(max(at, low), high) - low) / (high - low)
        marks.append(
            f'<path class="{escape(kind)}" d="M{x:.1f} {top}v{height}">'
            f"<title>{escape(kind)}: {at:.2f}</title></path>"
        )
    return _svg("scores", height + top + 22, "scores of detections, float against chosen", "".join(marks))


def window_bars(low: float, high: float, windows: Mapping[str, tuple[float, float]]) -> str:
    """Each method's window below another, over the extremes; zero is the line."""
    least = min([low, 0.0, *(w[0] for w in windows.values())])
    most = max([high, 0.0, *(w[1] for w in windows.values())])
    span = (most - least) or 1.0

    def x(value: float) -> float:
        return 2 + 216 * (value - least) / span

    marks = []
    for number, (name, window) in enumerate(windows.items()):
        text = f"{name}: {window[0]:.4g} to {window[1]:.4g}"
        marks.append(
            f'<rect x="{x(window[0]):.1f}" y="{1 + 7 * number}" width="{x(window[1]) - x(window[0]):.1f}" '
            f'height="5" rx="1"><title>{escape(text)}</title></rect>'
        )
    tall = 7 * len(windows) + 2
    return (
        f'<svg class="windows" viewBox="0 0 220 {tall}" style="height:{tall}px" role="img" '
        f'aria-label="windows of {len(windows)} methods">'
        f'{"".join(marks)}<path d="M{x(0.0):.1f} 0v{tall}"/></svg>'
    )


def drop_curve(points: Sequence[tuple[int, float, tuple[float, float]]], budget: float) -> str:
    """Drop against layers in float: (layers, drop, interval); the budget is the dashed line."""
    left, top, height = 76, 10, 150
    wide = WIDTH - left - 30
    values = [value for _, drop, interval in points for value in (drop, *interval)]
    low, high = min([0.0, *values]), max([budget, *values]) * 1.05 or 1.0
    last = max(1, max(layers for layers, _, _ in points))

    def place(layers: float, value: float) -> tuple[float, float]:
        return left + 12 + wide * layers / last, top + height * (1 - (value - low) / (high - low))

    y = place(0, budget)[1]
    marks = [f'<path class="budget" d="M{left} {y:.1f}H{WIDTH}"/>']
    marks.append(f'<path class="axis" d="M{left} {place(0, 0.0)[1]:.1f}H{WIDTH}"/>')
    labels = [(f"budget {budget:g}", budget), (f"{high:.2g}", high), ("0", 0.0)]
    taken: list[float] = []
    for text, value in labels:
        at = place(0, value)[1] + 4
        if all(abs(at - other) > 12 for other in taken):
            taken.append(at)
            marks.append(f'<text x="{left - 6}" y="{at:.1f}" text-anchor="end">{text}</text>')
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(layers, drop) for layers, drop, _ in points))
    marks.append(f'<polyline points="{line}"/>')
    for layers, drop, interval in points:
        x, y = place(layers, drop)
        ends = place(layers, interval[1])[1], place(layers, interval[0])[1]
        text = f"{layers} layers in float: {drop:+.2f} points, {interval[0]:+.2f} to {interval[1]:+.2f}"
        kind = "ok" if drop <= budget else "bad"
        marks.append(
            f'<path class="whisker" d="M{x:.1f} {ends[0]:.1f}V{ends[1]:.1f}"/>'
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="5"><title>{text}</title></circle>'
            f'<text x="{x:.1f}" y="{top + height + 18}" text-anchor="middle">{layers}</text>'
        )
    return _svg("curve", height + top + 24, "drop against layers in float", "".join(marks))


def loss_curve(losses: Sequence[float], metrics: Sequence[float | None], name: str) -> str:
    """Loss by epoch as a line from its largest value to 0; each point's title tells it and the metric."""
    if not losses:
        return ""
    left, top, height = 60, 10, 110
    most = max(*losses, 1e-12)
    step = (WIDTH - left - 20) / max(1, len(losses) - 1)
    places = [(left + number * step, top + height * (1 - loss / most)) for number, loss in enumerate(losses)]
    marks = [_line(left, top, height, level, most) for level in (0.0, most)]
    marks.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>')
    for number, (x, y) in enumerate(places):
        metric = metrics[number]
        told = "" if metric is None else f", {name} {metric:.4g}"
        title = escape(f"epoch {number + 1}: loss {losses[number]:.4g}{told}")
        marks.append(f'<circle class="ok" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{title}</title></circle>')
    return _svg("curve", height + top + 12, "loss by epoch", "".join(marks))


def _share(decibels: float | None) -> float:
    """Of the full height; an exact layer (None) reaches it, and none is too low to be seen."""
    if decibels is None or math.isinf(decibels):
        return 1.0
    return max(0.01, min(1.0, decibels / MOST_DB))


def _line(left: int, top: int, height: int, level: float, most: float, unit: str = "") -> str:
    y = top + height * (1 - level / most)
    text = f"{level:g} {unit}" if unit and level == most else f"{level:g}"
    return (
        f'<path class="axis" d="M{left} {y:.1f}H{WIDTH}"/>'
        f'<text x="{left - 5}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    )


def _ticks(most: int) -> list[float]:
    """Round numbers up to ``most``, at most five of them."""
    step = 10 ** math.floor(math.log10(most))
    while most / step > 4:
        step *= 2 if most / step < 10 else 5
    return [step * n for n in range(int(most / step) + 1)]


def _svg(kind: str, height: int, label: str, marks: str) -> str:
    return (
        f'<svg class="chart {kind}" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">'
        f"{marks}</svg>"
    )
