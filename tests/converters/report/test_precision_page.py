"""The precision part of the page: a sentence, a table and charts from a decision, safe with any name."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import msgspec
import pytest

from edgesmith.converters.report.precision import (
    CurvePoint,
    FloatLayers,
    Latency,
    LayerFigures,
    PrecisionReport,
    ScoreHistogram,
    TensorScales,
    TrialFigures,
    VariantFigures,
    WorstImage,
)
from edgesmith.converters.report.precision_page import headline, sections

NASTY = "a<script>alert(1)</script>&\"'"


def variant(name: str = "auto", **changes: object) -> VariantFigures:
    figures = VariantFigures(
        name=name, chosen=True, in_bundle=True, size_bytes=1_234_567, values={"top1": 61.25}, drop=0.25,
        interval=(-0.5, 1.0), agreement=95.5, flipped=18, right_to_wrong=9, wrong_to_right=8,
    )  # fmt: skip
    return msgspec.structs.replace(figures, **changes)


def report(**changes: object) -> PrecisionReport:
    exact = VariantFigures(
        name="float", chosen=False, in_bundle=True, size_bytes=4_000_000, values={"top1": 61.5}
    )
    half = variant("fp16", chosen=False, in_bundle=False, size_bytes=2_000_000, drop=0.0, interval=(0.0, 0.0))
    layers = tuple(
        LayerFigures(
            node=f"conv{n}{NASTY if n == 0 else ''}", module=f"net.{n}", macs=100 + n, returned=n == 3,
            decibels=None if n == 11 else 10.0 + n,
        )
        for n in range(12)
    )  # fmt: skip
    scales = TensorScales(
        tensor=NASTY, reader="net.0", low=-1.0, high=6.0,
        windows={"minmax": (-1.0, 6.0), "mse": (-0.9, 4.0)}, outside={"minmax": 0.0, "mse": 0.015},
        used=(-0.9, 4.0), factored=False,
    )  # fmt: skip
    trial = TrialFigures(
        repairs=("bias", "factor"), method="mse", same=97.5, decibels=24.25, flipped=3, decisions=120,
        taken=True,
    )  # fmt: skip
    scores = ScoreHistogram(
        edges=(0.0, 0.5, 1.0), exact=(30, 10), chosen=(28, 12), threshold=0.25, recommended=0.28,
        f1_same=0.9, f1_there=0.95, found_exact=40, found_same=44, found_there=41,
    )  # fmt: skip
    base = PrecisionReport(
        task="classify", mode="auto", chosen="auto", budget=0.5, share=0.994, metric="top1", labelled=True,
        images=440, search_images=64, calibration_images=192, faults=("broken.jpg: damaged",),
        variants=(exact, variant(), half), repairs=("bias", "factor"), method="mse",
        trials=(trial, msgspec.structs.replace(trial, repairs=(), taken=False, decibels=None)),
        curve=(
            CurvePoint(float_layers=0, drop=0.9, interval=(0.1, 1.5), share=1.0),
            CurvePoint(float_layers=2, drop=0.25, interval=(-0.5, 1.0), share=0.994),
        ),
        layers=layers, scales=(scales,),
        kept_float=(FloatLayers(why="it makes the outputs", layers=("head", NASTY)),),
        warnings=("few-images: 8 images",), scores=scores,
        worst=(WorstImage(name=NASTY, difference=f"{NASTY} (80 %) became dog (51 %)"),),
        cpu="CPUs run float32: nothing is in INT8.",
        latency=Latency(
            processor=NASTY, threads=1, runs=20, p50_ms={"float": 4.0, "auto": 6.0},
            p90_ms={"float": 5.0, "auto": 7.0},
        ),
    )  # fmt: skip
    return msgspec.structs.replace(base, **changes)


class Tags(HTMLParser):
    """Checks that every element is closed in order; gathers text and what each element is."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.seen: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs).get("class") or ""))
        if tag not in ("img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs).get("class") or ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(html: str) -> Tags:
    found = Tags()
    found.feed(html)
    assert found.open == []
    return found


def html_of(given: PrecisionReport, title: str) -> str:
    pictures = [(b"before", b"after")] * len(given.worst)
    return dict(sections(given, pictures))[title]


def text_of(given: PrecisionReport, title: str) -> str:
    return re.sub(r"\s+", " ", " ".join(read(html_of(given, title)).text))


def test_every_section_is_there_and_told_by_its_figures() -> None:
    wanted = {
        "Verdict": ("61.50 %", "61.25 %", "+0.25", "18 of 440", "9 right to wrong", "8 wrong to right",
                    "1.23 MB", "not in the bundle", "broken.jpg: damaged", "192", "64"),
        "Search": ("bias, factor", "97.50 %", "24.2 dB", "3 of 120", "taken", "none", "exact", "99.4 %",
                   "+0.90"),
        "Error by layer": ("10.0 dB", "net.1", "given back to float"),
        "Ranges": ("-1 to 6", "-0.9 to 4", "1.5 %", "few-images: 8 images"),
        "Kept in float": ("it makes the outputs (2)", "head"),
        "Scores and threshold": ("0.28", "95.0 %", "90.0 %", "41", "44"),
        "Largest differences": ("became dog (51 %)",),
        "Time on this machine": ("4 ms", "7 ms", "1.50 x float", "nothing of the target"),
    }  # fmt: skip
    given = report()
    assert [title for title, _ in sections(given, [(b"a", b"b")])] == list(wanted)
    for title, figures in wanted.items():
        text = text_of(given, title)
        for figure in figures:
            assert figure in text, (title, figure)


def test_sections_without_content_are_left_out() -> None:
    given = report(trials=(), layers=(), scales=(), kept_float=(), scores=None, worst=(), curve=())
    assert [title for title, _ in sections(given, [])] == ["Verdict", "Time on this machine"]


def test_names_cannot_break_the_page() -> None:
    html = "".join(part for _, part in sections(report(), [(b"", b"")]))
    assert "<script" not in html
    assert "".join(read(html).text).count(NASTY) >= 5


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "INT8 for 99.4 % of the arithmetic loses 0.25 points of top-1 "
             "(95 % interval of the loss -0.50 to +1.00): inside the budget of 0.5."),
        ({"budget": 0.25}, "INT8 for 99.4 % of the arithmetic loses 0.25 points of top-1 "
             "(95 % interval of the loss -0.50 to +1.00): inside the budget of 0.25."),
        ({"budget": 0.2}, "INT8 for 99.4 % of the arithmetic loses 0.25 points of top-1 "
             "(95 % interval of the loss -0.50 to +1.00): past the budget of 0.2."),
        ({"variants": (variant(drop=-0.1),), "metric": "mAP"},
             "INT8 for 99.4 % of the arithmetic gains 0.10 points of mAP "
             "(95 % interval of the loss -0.50 to +1.00): inside the budget of 0.5."),
        ({"labelled": False, "metric": "agreement"},
             "INT8 for 99.4 % of the arithmetic changes 0.25 points of agreement with the float model "
             "(95 % interval -0.50 to 1.00): inside the budget of 0.5."),
        ({"share": 0.0, "variants": (variant(drop=None, interval=None),)},
             "FP16: not measured, since the recipe names no images for it."),
    ],
)  # fmt: skip
def test_the_verdict_is_one_sentence(changes: dict[str, object], sentence: str) -> None:
    assert headline(report(**changes)) == sentence


def test_past_the_budget_is_marked() -> None:
    assert 'class="warn"><b class="headline">' in html_of(report(budget=0.2), "Verdict")
    assert 'class="warn"><b class="headline">' not in html_of(report(faults=()), "Verdict")


def test_a_bar_for_each_layer_and_the_lowest_ten_are_named() -> None:
    html = html_of(report(), "Error by layer")
    marks = [kind for tag, kind in read(html).seen if tag == "rect"]
    # Twelve layers: one is exact, ten are lowest (one of which went back to float), one is neither.
    assert sorted(marks) == ["low"] * 9 + ["plain"] * 2 + ["returned"]
    assert len(re.findall("<tr>", html)) == 1 + 10
    assert "net.10</code>" not in html
    assert "20.0 dB  conv10  (net.10)</title>" in html


def test_one_look_inside_the_budget_needs_no_curve() -> None:
    one = CurvePoint(float_layers=0, drop=0.25, interval=(-0.5, 1.0), share=1.0)
    html = html_of(report(curve=(one,)), "Search")
    assert "No layer had to be given back to float." in html
    assert "<svg" not in html
    assert '<svg class="chart curve"' in html_of(report(), "Search")


def test_long_lists_are_cut_and_say_so() -> None:
    many = FloatLayers(why="too wide", layers=tuple(f"layer{n}" for n in range(40)))
    text = text_of(report(kept_float=(many,)), "Kept in float")
    assert "layer11" in text
    assert "layer12" not in text
    assert "and 28 more" in text


def test_keeping_the_threshold_is_told_too() -> None:
    scores = report().scores
    assert scores is not None
    kept = msgspec.structs.replace(scores, recommended=0.25, f1_there=0.9)
    assert "Keep the threshold of 0.25" in text_of(report(scores=kept), "Scores and threshold")


def test_both_pictures_stand_side_by_side() -> None:
    html = html_of(report(), "Largest differences")
    assert re.findall(r"base64,([A-Za-z0-9+/=]+)", html) == ["YmVmb3Jl", "YWZ0ZXI="]


def test_the_struct_survives_json() -> None:
    given = report()
    assert msgspec.json.decode(msgspec.json.encode(given), type=PrecisionReport) == given
