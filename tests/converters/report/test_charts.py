"""Charts: as many marks as there are figures, each at its place."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from edgesmith.converters.report import charts


def marks(svg: str, tag: str, kind: str | None = None) -> list[dict[str, str]]:
    found = [e.attrib for e in ET.fromstring(svg).iter() if e.tag == tag]
    return [a for a in found if kind is None or a.get("class") == kind]


def test_a_drop_lies_where_its_scale_puts_it() -> None:
    svg = charts.interval_bar(0.5, (-1.0, 1.0), 0.25, reach=2.0)
    (bar,) = marks(svg, "rect")
    assert (float(bar["x"]), float(bar["width"])) == (60.0, 100.0)
    assert float(marks(svg, "circle")[0]["cx"]) == 135.0
    assert marks(svg, "path", "budget")[0]["d"].startswith("M122.5")
    assert 'class="drop bad"' in svg
    assert 'class="drop ok"' in charts.interval_bar(0.25, (-1.0, 1.0), 0.25, reach=2.0)


def test_the_scale_holds_every_interval_and_the_budget() -> None:
    assert charts.reach_of([(0.1, (-3.0, 0.4)), (0.2, (0.0, 1.0))], 0.5) >= 3.0
    assert charts.reach_of([], 0.5) >= 0.5
    assert charts.reach_of([], 0.0) > 0


def test_a_bar_for_each_layer_as_tall_as_its_ratio() -> None:
    svg = charts.layer_bars(
        [("30 <dB>", 30.0, "plain"), ("exact", None, "plain"), ("-5", -5.0, "low"), ("90", 90.0, "plain")]
    )
    tall = [float(a["height"]) for a in marks(svg, "rect")]
    assert tall == [75.0, 150.0, 1.5, 150.0]
    assert [e.text for e in ET.fromstring(svg).iter("title")] == ["30 <dB>", "exact", "-5", "90"]
    assert charts.layer_bars([]) == ""


def test_many_layers_stay_inside_the_picture() -> None:
    bars = marks(charts.layer_bars([("", 20.0, "plain")] * 400), "rect")
    assert len(bars) == 400
    assert max(float(a["x"]) + float(a["width"]) for a in bars) <= charts.WIDTH


def test_two_bars_a_bin_and_a_line_for_each_threshold() -> None:
    svg = charts.score_bars((0.0, 0.5, 1.0), (4, 2), (3, 0), {"threshold": 0.25, "recommended": 0.5})
    assert [float(a["height"]) for a in marks(svg, "rect", "float")] == [150.0, 75.0]
    assert [float(a["height"]) for a in marks(svg, "rect", "chosen")] == [112.5, 0.0]
    at = [float(re.findall(r"M([\d.]+)", marks(svg, "path", kind)[0]["d"])[0])
          for kind in ("threshold", "recommended")]  # fmt: skip
    assert at == [pytest.approx(40 + 874 / 4, abs=0.1), pytest.approx(40 + 874 / 2, abs=0.1)]


def test_no_detections_draw_an_empty_chart() -> None:
    svg = charts.score_bars((0.0, 0.5, 1.0), (0, 0), (0, 0), {})
    assert {float(a["height"]) for a in marks(svg, "rect")} == {0.0}


def test_windows_share_one_scale_with_zero_marked() -> None:
    svg = charts.window_bars(-1.0, 3.0, {"minmax": (-1.0, 3.0), "mse": (-0.5, 1.0)})
    first, second = marks(svg, "rect")
    assert (float(first["x"]), float(first["width"])) == (2.0, 216.0)
    assert (float(second["x"]), float(second["width"])) == (29.0, 81.0)
    assert marks(svg, "path")[0]["d"].startswith("M56.0")
    assert marks(charts.window_bars(0.0, 0.0, {"minmax": (0.0, 0.0)}), "rect")


def test_a_point_of_the_curve_for_each_look() -> None:
    points = [(0, 2.0, (1.0, 3.0)), (2, 0.4, (-0.2, 0.9)), (4, 0.2, (0.0, 0.4))]
    svg = charts.drop_curve(points, 0.5)
    assert [a["class"] for a in marks(svg, "circle")] == ["bad", "ok", "ok"]
    heights = [float(a["cy"]) for a in marks(svg, "circle")]
    assert heights == sorted(heights)  # down the picture: less is lost
    assert len(marks(svg, "polyline")[0]["points"].split()) == 3
    assert len(marks(charts.drop_curve([(0, 0.0, (0.0, 0.0))], 0.0), "circle")) == 1
