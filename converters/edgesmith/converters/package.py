"""What goes into the bundle: members, manifest, report."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from msgspec.structs import replace
from numpy.typing import NDArray

from edgesmith.converters import golden
from edgesmith.converters.compiled import CompiledGraph
from edgesmith.converters.graph import Graph, Proof
from edgesmith.converters.passes.sparsity import require_sparse
from edgesmith.converters.pictures import Pictures
from edgesmith.converters.recipe import Recipe
from edgesmith.converters.report.against_float import Compared
from edgesmith.converters.report.compression import CompressionReport
from edgesmith.converters.report.data import Report, Tensors
from edgesmith.converters.report.page import page
from edgesmith.converters.report.precision import PrecisionReport
from edgesmith.converters.report.thumbnails import thumbnails
from edgesmith.converters.sources import Loaded
from edgesmith.converters.stages import Stages
from edgesmith.sdk.backends.choose import X86
from edgesmith.sdk.manifest import Golden, GoldenResize, Manifest, Provenance, TensorSpec, Variant
from edgesmith.sdk.preprocess import Frame8

if TYPE_CHECKING:
    from edgesmith.sdk.evaluate import Evaluation

FLOAT = "float"
MODEL = "model.float.onnx"
CHOSEN = "model.onnx"
GOLDEN = "golden/float.npz"
RESIZE, RESIZED = "golden/resize.png", "golden/resized.png"
_PACKAGES = ("edgesmith", "torch", "onnx", "onnxruntime", "onnxslim", "onnxscript", "onnx-ir", "numpy")


@dataclass(frozen=True)
class Parts:
    """Everything that is known before the accuracy is measured."""

    recipe: Recipe
    source: Loaded
    graph: Graph
    proof: Proof
    pictures: Pictures
    shown: tuple[Frame8, ...]
    expected: Mapping[str, NDArray[Any]]
    members: dict[str, bytes]
    variants: Mapping[str, Variant]
    chosen: str
    compression: CompressionReport | None = None
    sparse: bool = False

    def manifest(
        self, measured: Mapping[str, float], stage: Stages, others: Mapping[str, Mapping[str, float]] = {}
    ) -> Manifest:
        """The manifest, with accuracies by name where they were measured; ``others`` by variant."""
        recipe, nms = self.recipe, self.recipe.nms_spec()
        exact = replace(self.variants[FLOAT], measured=dict(measured))
        variants = {
            name: replace(variant, measured=dict(others.get(name, {})))
            for name, variant in self.variants.items()
        }
        chosen = measured if self.chosen == FLOAT else others.get(self.chosen, {})
        return Manifest(
            name=name_of(recipe),
            task=recipe.task,
            labels=self.graph.names,
            preprocess=recipe.preprocess(),
            batch=recipe.batch,
            inputs=specs(self.proof.model.graph.input),
            outputs=specs(self.proof.model.graph.output),
            nms=nms,
            precision=recipe.precision.mode,
            target=recipe.target.device,
            chosen=self.chosen,
            cpu=X86 if X86 in self.variants else FLOAT,
            variants={**variants, FLOAT: exact},
            golden=Golden(
                images=tuple(golden_names(len(self.shown))),
                resize=GoldenResize(image=RESIZE, expected=RESIZED) if RESIZE in self.members else None,
            ),
            sparse=self.sparse,
            parity=self.proof.against_reference.figures(),
            measured=dict(chosen),
            provenance=Provenance(
                created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                edgesmith=version("edgesmith"),
                source=self.source.name,
                source_sha256=self.source.sha256,
                recipe=recipe.plain(),
                versions=versions(),
                license=recipe.model.license,
                seconds=round(stage.total, 3),
            ),
        )

    def report(
        self,
        manifest: Manifest,
        measured: Evaluation | None,
        stage: Stages,
        compiled: tuple[CompiledGraph, ...],
        precision: tuple[PrecisionReport, Compared] | None = None,
    ) -> dict[str, bytes]:
        """The members ``report.json`` and ``report.html``; ``precision`` where the graph is not float32."""
        model = self.proof.model
        report = Report(
            manifest=manifest,
            head=self.graph.head,
            notes=self.source.notes,
            images=self.pictures.source,
            exported=self.proof.against_reference,
            simplified=self.proof.slimming,
            metric=measured.metric if measured else None,
            measured_images=measured.images if measured else 0,
            faults=measured.faults if measured else (),
            operators=dict(Counter(node.op_type for node in model.graph.node).most_common()),
            weights=Tensors(
                count=len(model.graph.initializer),
                values=sum(int(np.prod(t.dims)) for t in model.graph.initializer),
            ),
            sizes_bytes={name: len(data) for name, data in sorted(self.members.items())},
            stages_s={name: round(spent, 3) for name, spent in stage.seconds.items()},
            compiled=compiled,
            precision=precision[0] if precision else None,
            compression=self.compression,
        )
        pictures = thumbnails(self.shown, self.expected, manifest)
        pairs = precision[1].pictures if precision else ()
        return {"report.json": report.json(), "report.html": page(report, pictures, pairs).encode()}


def parts_of(
    recipe: Recipe,
    source: Loaded,
    graph: Graph,
    proof: Proof,
    pictures: Pictures,
    *,
    others: Mapping[str, onnx.ModelProto] = {},
    chosen: str = FLOAT,
    extra: Mapping[str, bytes] = {},
    compression: CompressionReport | None = None,
) -> Parts:
    """Record the self-test of the float graph and of each other variant, and gather the members.

    ``chosen`` names the variant that a GPU runs; ``extra`` are further members; ``compression`` tells of
    training stages.

    Raises:
        ExportError: the graph does not run on its own golden pictures, or lost the 2:4 sparsity of a stage.
    """
    preprocess, nms = recipe.preprocess(), recipe.nms_spec()
    shown = golden.golden_pictures(pictures.frames, preprocess)
    expected = golden.golden_outputs(proof.model, shown, preprocess, recipe.batch, nms)
    members = {
        MODEL: proof.model.SerializeToString(deterministic=True),
        GOLDEN: golden.npz(golden.sampled(expected)),
        **extra,
    }
    exact = Variant(
        member=MODEL, precision="fp32", golden=GOLDEN, tolerance=golden.tolerances(expected, nms)
    )  # fmt: skip
    variants = {FLOAT: exact}
    for name, model in others.items():
        outputs = golden.golden_outputs(model, shown, preprocess, recipe.batch, nms)
        member, data = _member(name, chosen), f"golden/{name}.npz"
        members |= {
            member: model.SerializeToString(deterministic=True),
            data: golden.npz(golden.sampled(outputs)),
        }
        variants[name] = Variant(
            member=member, precision=name, golden=data, tolerance=golden.tolerances(outputs, nms)
        )
    members |= {
        name: golden.png(picture) for name, picture in zip(golden_names(len(shown)), shown, strict=True)
    }
    check = golden.resize_check(pictures.frames[0], preprocess)
    if check is not None:
        members |= {RESIZE: golden.png(check[0]), RESIZED: golden.png(check[1])}
    sparse = [layer.layer for stage in compression.stages for layer in stage.sparse] if compression else []
    if sparse:
        for model in (proof.model, *(m for name, m in others.items() if name != X86)):
            require_sparse(model, sparse)
    return Parts(
        recipe, source, graph, proof, pictures, tuple(shown), expected, members, variants, chosen,
        compression, bool(sparse),
    )  # fmt: skip


def _member(name: str, chosen: str) -> str:
    if name == X86:
        return "model.x86.onnx"
    return CHOSEN if name == chosen else f"variants/{name}.onnx"


def golden_names(count: int) -> list[str]:
    """Member names of the golden pictures."""
    return [f"golden/input-{number}.png" for number in range(count)]


def specs(values: Any) -> tuple[TensorSpec, ...]:
    """ONNX inputs or outputs as the manifest has them; an axis of unknown size is called ``?``."""
    found = []
    for value in values:
        kind = value.type.tensor_type
        shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in kind.shape.dim)
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
        found.append(TensorSpec(name=value.name, dtype=dtype, shape=shape))
    return tuple(found)


def name_of(recipe: Recipe) -> str:
    """A short name of the model: the factory's or the architecture's, else the file's."""
    model = recipe.model
    text = model.factory or model.zoo
    if text is not None:
        return text.rpartition(":")[2]
    return recipe.resolve(model.program or model.torchscript or model.onnx or "").stem


def versions() -> dict[str, str]:
    """Versions of the packages that shaped the result."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # onnxruntime-gpu goes by another name
    return found
