"""INT8 on an x86 CPU: float, onnxruntime's own uint8 graph and ours, one thread, interleaved.

    python benchmarks/int8_cpu.py [--assets DIR] [--models NAME ...]

Accuracy is agreement with the float model on the search images: signal-to-noise ratio of the outputs in dB,
and the share of equal decisions (classifiers) or mAP against the float model's detections. ResNet-18 has
random weights and no images: its time alone counts. Which sums the kernels use depends on the processor: on
one without VNNI the times say nothing of one that has it, and the table says so. The results file names the
processor's vector extensions.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from common import ASSETS, print_table, trained_recipe, write_results
from edgesmith.calibration.collect import collect
from edgesmith.calibration.images import tensors
from edgesmith.calibration.sites import sites_of
from edgesmith.converters.graph import canonical_graph, proven
from edgesmith.converters.passes.insert_qdq import InsertQdq
from edgesmith.converters.passes.x86 import X86
from edgesmith.converters.pictures import pictures_of
from edgesmith.converters.precision.decide import never_quantized
from edgesmith.converters.precision.quantizers import quantizers_for
from edgesmith.converters.precision.ranges import channel_ranges
from edgesmith.converters.precision.search import WAYS
from edgesmith.converters.precision.stage import split_of
from edgesmith.converters.precision.trial import Way, Workbench
from edgesmith.converters.precision.x86_variant import in_turns, x86_variant
from edgesmith.converters.runners import graph_runner
from edgesmith.converters.sources import load_source
from edgesmith.sdk.backends.processor import has_integer_products

ROOT = Path(__file__).resolve().parent.parent
RESNET18 = "resnet18"
MODELS = (
    RESNET18, "mobilenet_v1_025", "efficientnet_lite0", "resnet20_cifar", "resnet56_cifar", "yolox_nano",
    "nanodet_m", "fastestdet",
)  # fmt: skip
SECONDS = 10.0  # of each model's race
NO_VNNI = (
    "This CPU has no VNNI (avx512_vnni, avx_vnni): it sums bytes at about float's speed, the runtime takes "
    "float on it, and the bars for x86 (2 x float's throughput on ResNet-18) cannot be shown here."
)


class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Ready tensors for onnxruntime's calibrator."""

    def __init__(self, name: str, images: Sequence[Any]) -> None:
        self._images = iter([{name: image} for image in images])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._images, None)


def uint8_of_onnxruntime(exact: onnx.ModelProto, images: Sequence[Any], folder: Path) -> onnx.ModelProto:
    """`quantize_static`: uint8 asymmetric MinMax activations, int8 weights by channel."""
    source, target = folder / "float.onnx", folder / "uint8.onnx"
    onnx.save(exact, source)
    quantize_static(
        source, target, Reader(exact.graph.input[0].name, images), quant_format=QuantFormat.QDQ,
        per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return onnx.load(target)


def times(
    exact: onnx.ModelProto, theirs: onnx.ModelProto, ours: onnx.ModelProto, image: Any
) -> dict[str, Any]:
    """Median milliseconds, and median ratios of the rounds with their quartiles."""
    graphs = {"float": exact, "onnxruntime": theirs, "ours": ours}
    runners = {name: graph_runner(graph, threads=1) for name, graph in graphs.items()}
    spent = in_turns(runners, image, seconds=SECONDS)
    found: dict[str, Any] = {"ms": {name: statistics.median(each) for name, each in spent.items()}}
    for other in ("float", "onnxruntime"):
        ratios = [a / b for a, b in zip(spent["ours"], spent[other], strict=True)]
        found[f"ours_to_{other}"] = statistics.median(ratios)
        found[f"ours_to_{other}_quartiles"] = statistics.quantiles(ratios, n=4)[::2]
    found["rounds"] = len(spent["ours"])
    return found


def integer_layers(graph: onnx.ModelProto, folder: Path) -> int:
    """How many convolutions onnxruntime computes in integers."""
    path = folder / "optimised.onnx"
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(graph.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return sum(node.op_type == "QLinearConv" for node in onnx.load(path).graph.node)


def trained(name: str, assets: Path, folder: Path) -> dict[str, Any]:
    """A trained model by its recipe: times and agreement with float."""
    recipe = trained_recipe(name, assets)
    source, pictures = load_source(recipe), pictures_of(recipe)
    exact = proven(recipe, canonical_graph(recipe, source, pictures), pictures).model
    split, preprocess = split_of(recipe), recipe.preprocess()
    table = collect(exact.SerializeToString(), split.calibration, preprocess).table()
    calibration = list(tensors(split.calibration, preprocess))
    bench = Workbench(
        exact, table, calibration=calibration, search=list(tensors(split.search, preprocess)),
        task=recipe.task, nms=recipe.nms_spec(), batch=recipe.batch,
    )  # fmt: skip
    bench.fixed_float = frozenset(never_quantized(bench.sites(), ()))
    int8 = bench.try_way(Way(*WAYS[0])).graph
    variant = x86_variant(bench, int8, calibration)
    theirs = uint8_of_onnxruntime(exact, calibration, folder)
    looks = {"int8": variant.int8, "onnxruntime": bench.compare(theirs), "ours": variant.agreement}
    return {
        **times(exact, theirs, variant.graph, calibration[0]),
        "agreement": {key: {"same_percent": a.same, "decibels": a.decibels} for key, a in looks.items()},
        "integer_convolutions": integer_layers(variant.graph, folder),
        "runtime_takes_x86": variant.wins,
        "reason": variant.reason,
    }


def resnet18(folder: Path) -> dict[str, Any]:
    """torchvision's network with seeded weights, calibrated on noise."""
    import torch
    import torchvision

    torch.manual_seed(0)
    module = torchvision.models.resnet18(weights=None).eval()
    rng = np.random.default_rng(0)
    images = [rng.normal(0, 1, (1, 3, 224, 224)).astype(np.float32) for _ in range(4)]
    path = folder / "resnet18.onnx"
    torch.onnx.export(
        module, (torch.from_numpy(images[0]),), str(path), dynamo=False, opset_version=20,
        input_names=["images"],
    )  # fmt: skip
    exact = onnx.shape_inference.infer_shapes(onnx.load(path))
    sites = sites_of(ir.serde.deserialize_model(exact))
    ranges = channel_ranges(exact, images)
    model = ir.serde.deserialize_model(exact)
    table = _table(exact, ranges, images)
    quantizers = quantizers_for(table, sites, method="minmax", repairs={"factor", "offset"})
    InsertQdq(quantizers, [site.name for site in sites if site.node.op_type == "Conv"])(model)
    ours = ir.to_proto(X86(ranges)(model).model)
    figures = times(exact, uint8_of_onnxruntime(exact, images, folder), ours, images[0])
    return {**figures, "integer_convolutions": integer_layers(ours, folder)}


def _table(exact: onnx.ModelProto, ranges: Any, images: Sequence[Any]) -> Any:
    """A scale table from ready tensors."""
    from edgesmith.calibration.scale_table import Activation, ScaleTable
    from edgesmith.calibration.statistics import Scratch, TensorStatistics

    names = list(dict.fromkeys(site.activation for site in sites_of(ir.serde.deserialize_model(exact))))
    entry, known = exact.graph.input[0].name, {o.name for o in exact.graph.output}
    tapped = onnx.ModelProto()
    tapped.CopyFrom(exact)
    tapped.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n != entry and n not in known)
    run, scratch = graph_runner(tapped), Scratch()
    statistics_by_name = {name: TensorStatistics(name) for name in names}
    for image in images:
        values = {**run(image), entry: image}
        for name, found in statistics_by_name.items():
            found.add(values[name], scratch)
    activations = {name: Activation.of(found) for name, found in statistics_by_name.items()}
    return ScaleTable(model_sha256="", data_sha256="", images=len(images), activations=activations)


def _row(name: str, found: dict[str, Any]) -> tuple[object, ...]:
    told = found.get("agreement", {})
    kinds = ("int8", "onnxruntime", "ours")
    agreement = [
        round(told[kind][unit], 1) if told else "" for unit in ("decibels", "same_percent") for kind in kinds
    ]
    taken = {True: "x86", False: "float", None: ""}[found.get("runtime_takes_x86")]
    return (
        name,
        *found["ms"].values(),
        found["ours_to_float"],
        found["ours_to_onnxruntime"],
        *agreement,
        taken,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--assets", type=Path, default=ASSETS, help="folder with the trained models")
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            figures[name] = resnet18(place) if name == RESNET18 else trained(name, options.assets, place)
    rows = [_row(name, found) for name, found in figures.items()]
    columns = (
        "model",
        "float ms",
        "ORT uint8 ms",
        "ours ms",
        "/ float",
        "/ ORT",
        "dB int8",
        "dB ORT",
        "dB ours",
    )
    print_table((*columns, "same int8", "same ORT", "same ours", "runtime takes"), rows)
    if not has_integer_products():
        print(NO_VNNI)
    note = None if has_integer_products() else NO_VNNI
    path = write_results("int8_cpu", {"vnni": note is None, "note": note, "models": figures})
    print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
