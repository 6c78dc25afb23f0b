"""``docs/models.md`` from the figures of ``benchmarks/models.py``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common import HERE, machine

PAGE = HERE.parent / "docs" / "models.md"
MIB = 1 << 20
COLUMNS = (
    "model", "head", "input", "weights", "nodes", "parity", "FP32 s", "peak GiB", "INT8 s", "compiled s",
    "layers", "INT8 of MACs", "INT8 against float", "SDK", "ms", "MiB",
)  # fmt: skip
INTRODUCTION = """# Models

Written by `benchmarks/models.py` from its own run; do not edit.

Each model was converted in float32 and in INT8, compared with PyTorch on real pictures, compiled for a GPU of
Orin's generation in float32, FP16 and INT8 (TensorRT-RTX, no GPU needed), and run by the SDK's own class on a
CPU. YOLOX-nano, NanoDet-m, FastestDet, MobileNetV1-0.25, EfficientNet-Lite0, the CIFAR ResNets, SINet and
FSRCNN are trained. The others have seeded weights with BatchNorm statistics of real pictures: their INT8
figures say how far the number format moves an untrained network, whose classes lie close together, and
nothing of a trained one.

- *parity*: largest difference from PyTorch, as a share of the output's range; in brackets how many of the
  decisions or detections agree.
- *FP32 s*, *INT8 s*: processor time of the whole conversion on one thread, with calibration and repairs for
  INT8. *peak GiB*: the larger of the two.
- *compiled s*: FP32, FP16, INT8, on a machine that had other work. *layers*: compiled layers of the INT8
  graph, in brackets those meant for INT8 that run in float.
- *INT8 against float*, in percent: decisions that changed, mAP lost against the float model's own detections,
  mean IoU lost against its class maps, or the error of its tensors; then signal to noise of the outputs, but
  for detectors, whose rows may swap.
- *ms*: one picture, float32, one CPU thread, with preprocess and decode. *MiB*: float graph, INT8 graph.
"""


def cells(name: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    """One row as text."""
    exact, quantized = found.get("fp32", {}), found.get("int8", {})
    if "failure" in exact or not exact:
        why = str(exact.get("failure", "not run"))
        return (name, f"fails: {why}", *[""] * (len(COLUMNS) - 2))
    parity = exact["parity"]
    agreement = "" if parity["agreement"] is None else f" ({100 * parity['agreement']:.1f} %)"
    peak = max(exact["peak_mib"], quantized.get("peak_mib", 0.0)) / 1024
    size = "x".join(map(str, exact["size"])) or "any"
    row = [
        name, exact["head"], size, f"{exact['weights'] / 1e6:.2f} M", str(exact["nodes"]),
        f"{parity['relative']:.1e}{agreement}", f"{exact['cpu_seconds']:.0f}", f"{peak:.1f}",
    ]  # fmt: skip
    if not quantized or "failure" in quantized:
        why = str(quantized.get("failure", "float32 only"))
        row += [
            why,
            _seconds(exact["compiled"].get("float")),
            _layers(exact["compiled"].get("float")),
            "",
            "",
        ]
    else:
        built = quantized["compiled"]
        drop, decibels = quantized["drop"], quantized.get("decibels")
        if exact["task"] == "detect":
            decibels = None  # rows in order of score swap places, and then say nothing of the numbers
        row += [
            f"{quantized['cpu_seconds']:.0f}",
            ", ".join(_seconds(built.get(v)) for v in ("float", "fp16", "int8")),
            _layers(built.get("int8")),
            f"{100 * quantized['int8_share']:.1f} %",
            ", ".join(
                [
                    *([] if drop is None else [f"{drop:.1f} %"]),
                    *([] if decibels is None else [f"{decibels:.1f} dB"]),
                ]
            ),
        ]
    sizes = f"{exact['float_bytes'] / MIB:.1f}"
    if "int8_bytes" in quantized:
        sizes += f", {quantized['int8_bytes'] / MIB:.1f}"
    return (*row, exact["sdk"]["class"], f"{exact['sdk']['ms']:.1f}", sizes)


def _seconds(built: Mapping[str, Any] | None) -> str:
    if built is None:
        return "-"
    return f"{built['seconds']:.1f}" if built["outcome"] == "compiled" else built["outcome"]


def _layers(built: Mapping[str, Any] | None) -> str:
    if built is None:
        return "-"
    return f"{built['layers']}" + (f" ({built['float_instead']})" if built["float_instead"] else "")


def write_page(figures: Mapping[str, Any]) -> None:
    """The page with a table a family, and the draw."""
    rows: Mapping[str, Any] = figures.get("rows", {})
    lines = [INTRODUCTION]
    for family in dict.fromkeys(found["family"] for found in rows.values()):
        lines += [
            f"\n## {family.capitalize()}\n",
            *_table({n: f for n, f in rows.items() if f["family"] == family}),
        ]
    draw: Mapping[str, Any] = figures.get("drawn", {})
    if draw:
        done = sum("failure" not in found["fp32"] for found in draw.values())
        lines += [
            "\n## Drawn at random\n",
            "Classifiers of torchvision and timm below 60 million parameters, drawn by seed, in float32: "
            f"{done} of {len(draw)} came through without special handling.\n",
            *_table(draw),
        ]
    versions = ", ".join(f"{name} {number}" for name, number in machine()["versions"].items())
    lines += [f"\nVersions: {versions}; compiler TensorRT-RTX {_compiler(rows)}."]
    PAGE.write_text("\n".join(lines) + "\n")


def _table(rows: Mapping[str, Any]) -> list[str]:
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + " --- |" * len(COLUMNS)]
    for name, found in rows.items():
        lines.append("| " + " | ".join(text.replace("|", "/") for text in cells(name, found)) + " |")
    return lines


def _compiler(rows: Mapping[str, Any]) -> str:
    for found in rows.values():
        for built in found.get("fp32", {}).get("compiled", {}).values():
            return str(built["version"])
    return "not installed"
