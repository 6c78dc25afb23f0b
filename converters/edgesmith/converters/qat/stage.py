"""The stage ``[qat]``: after calibration, before the verdict; the float model is the teacher.

The float graph of the bundle stays as it was: the weights that learned under the rounding go into the INT8
graph alone, which the verdict compares with the float graph like any other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edgesmith.calibration.scale_table import Quantizer, ScaleTable
from edgesmith.calibration.sites import sites_of
from edgesmith.converters.distill.learner import FromTeacher
from edgesmith.converters.distill.teacher import ModuleTeacher, canonical
from edgesmith.converters.passes.constants import add_constant, drop_unused
from edgesmith.converters.passes.insert_qdq import InsertQdq, Integers, unfit_for_int8
from edgesmith.converters.passes.sparsity import has_pattern
from edgesmith.converters.precision.adaround import Unrounded
from edgesmith.converters.precision.bias_correction import bias_corrections
from edgesmith.converters.precision.quantizers import quantizers_for
from edgesmith.converters.precision.search import first_way
from edgesmith.converters.precision.trial import Trial, Way, Workbench
from edgesmith.converters.prune.sparse import Masks
from edgesmith.converters.qat.network import QatNetwork, qat_network
from edgesmith.converters.recipe import Recipe
from edgesmith.converters.recipe_training import DistillTable
from edgesmith.converters.training.curves import Curves
from edgesmith.converters.training.images import TrainingImages
from edgesmith.converters.training.loop import STATE, Trainer

Tell = Callable[[str], None]
WEIGHTS, TOLD = "learned.safetensors", "learned.json"
WEIGHT, BIAS = ".weight", ".bias"
SCALE_RATE = 10.0  # how much faster scales of activations learn than weights: few, and logarithms


class QatLearner(FromTeacher):
    """A network that rounds, beside the float one; weights, biases and scales of its layers learn."""

    @torch.no_grad()
    def after_step(self) -> None:
        """Scales of weights only shrink; one that was pushed past that could not come back by itself."""
        super().after_step()
        for name, parameter in self.named_parameters():
            if name.endswith("shrink"):
                parameter.clamp_(max=0.0)

    def parameter_groups(self, rate: float, decay: float) -> list[dict[str, object]]:
        names = {id(p): n for n, p in self.named_parameters()}
        scales = [p for p in self.parameters() if p.requires_grad and names[id(p)].endswith("stretch")]
        known = {id(p) for p in scales}
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in known]
        groups = [
            {"params": [p for p in rest if p.ndim > 1], "lr": rate, "weight_decay": decay},
            {"params": [p for p in rest if p.ndim <= 1], "lr": rate, "weight_decay": 0.0},
            {"params": scales, "lr": rate * SCALE_RATE, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]


class TunedBench(Workbench):
    """A bench whose INT8 graphs have the weights and scales that were learned; all else is as it was."""

    def __init__(
        self, bench: Workbench, tuned: onnx.ModelProto, quantizers: Mapping[str, Quantizer], curves: Curves
    ) -> None:
        self.__dict__.update(bench.__dict__)
        self.tuned, self.quantizers, self.curves = tuned, dict(quantizers), curves

    def _basis(self, way: Way) -> tuple[onnx.ModelProto, ScaleTable]:
        return self.tuned, self.table

    def _inserted(self, way: Way, weights: Mapping[str, Integers]) -> tuple[ir.Model, dict[str, Unrounded]]:
        model = ir.serde.deserialize_model(self.tuned)
        kept = self.fixed_float | way.float_layers
        layers = [site.name for site in sites_of(model) if site.name not in kept]
        return InsertQdq(self.quantizers, layers, weights)(model).model, {}

    def try_way(self, way: Way) -> Trial:
        """The one way that was learned: a repair after it would undo what the layers agreed on."""
        proto = ir.to_proto(self._inserted(way, {})[0])
        sites = [
            s.name for s in self.sites() if s.name not in self.fixed_float and s.node.op_type != "MatMul"
        ]
        ratios = bias_corrections(self.exact, proto, sites, self._repair, correct=False)[1]
        return Trial(way, proto, self.compare(proto), ratios)


class Learned(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a run beside its weights."""

    quantizers: dict[str, Quantizer]
    curves: Curves


def fine_tuned(
    recipe: Recipe,
    network: nn.Module,
    bench: Workbench,
    data: TrainingImages,
    example: torch.Tensor,
    place: Path,
    key: str,
    tell: Tell,
) -> TunedBench:
    """Train under INT8's rounding, or take what an earlier run of the same ``key`` learned.

    Args:
        recipe: with a ``qat`` table.
        network: the module behind the bench's float graph, in eval mode; it is not changed.
        bench: float graph, ranges, layers that stay in float.
        data: training images; their labels are not used.
        example: one input ``(1, C, H, W)``.
        place: folder of this run.
        key: names it.
        tell: told in words where it stands.

    Raises:
        RecipeError: the network cannot be traced, or a layer is not found in it.
    """
    weights, told = place / WEIGHTS, place / TOLD
    if weights.exists():
        found = msgspec.json.decode(told.read_bytes(), type=Learned)
        graph = written(bench.exact, load_file(weights))
        return TunedBench(bench, graph, found.quantizers, found.curves)
    rounding, quantizers = _rounding(recipe, copy.deepcopy(network), bench, example)
    curves = _train(recipe, network, bench, rounding, data, example, place, key, tell)
    tensors = {}
    for site in bench.sites():
        layer = rounding.layers.get(site.name)
        if layer is not None:
            tensors[f"{site.name}{WEIGHT}"] = torch.from_numpy(layer.final_weight())
            tensors[f"{site.name}{BIAS}"] = layer.bias.detach().clone()
    learned = {name: activation.quantizer() for name, activation in rounding.activations.items()}
    kept = Learned(quantizers=quantizers | learned, curves=curves)
    told.write_bytes(msgspec.json.encode(kept))
    new = place / f".{WEIGHTS}.new"
    save_file(tensors, new)
    new.replace(weights)  # last: a run counts once its weights are there
    (place / STATE).unlink(missing_ok=True)
    return TunedBench(bench, written(bench.exact, tensors), kept.quantizers, curves)


def _rounding(
    recipe: Recipe, network: nn.Module, bench: Workbench, example: torch.Tensor
) -> tuple[QatNetwork, dict[str, Quantizer]]:
    """The network that rounds, and the quantizers that it begins with."""
    given = recipe.qat
    assert given is not None
    way = first_way(method=recipe.precision.method, repairs=given.repairs)
    sites = bench.sites()
    chosen = [s for s in sites if s.name not in bench.fixed_float and unfit_for_int8(s) is None]
    quantizers = quantizers_for(bench.table, chosen, method=way.method, repairs=way.repairs)
    rounding = qat_network(
        canonical(recipe, network, example),
        example,
        sites,
        quantizers,
        frozenset(site.name for site in chosen),
        learned=given.scales == "learned",
    )
    return rounding, quantizers


def _train(
    recipe: Recipe,
    network: nn.Module,
    bench: Workbench,
    rounding: QatNetwork,
    data: TrainingImages,
    example: torch.Tensor,
    place: Path,
    key: str,
    tell: Tell,
) -> Curves:
    given = recipe.qat
    assert given is not None
    teacher = copy.deepcopy(network)
    learner = QatLearner(
        rounding.module,
        rounding.module,
        ModuleTeacher(canonical(recipe, teacher, example), teacher),
        task=recipe.task,
        settings=DistillTable(temperature=given.temperature, labels=0.0),
        labelled=False,
        example=example,
        frozen_norm=True,
    )
    biased = {site.name for site in bench.sites() if site.node.op_type != "MatMul"}
    for name, layer in rounding.layers.items():
        layer.weight.requires_grad_(True)
        layer.bias.requires_grad_(name in biased)  # after a MatMul the sum is a node of its own
    if recipe.prune is not None and recipe.prune.sparsity is not None:
        weights = [layer.weight for layer in rounding.layers.values()]
        learner.masks = Masks(w for w in weights if has_pattern(w.detach().numpy()))
    trainer = Trainer(
        learner,
        TrainingImages(data.images, None),  # the float model's answers are what is wanted, not labels
        recipe.preprocess(),
        given.train,
        folder=place,
        key=key,
        seed=recipe.data.seed,
        told=lambda where: tell(str(where)),
    )
    curves = trainer.fit()
    rounding.module.cpu()
    return curves


def written(graph: onnx.ModelProto, tensors: Mapping[str, torch.Tensor]) -> onnx.ModelProto:
    """The float graph with other weights and biases.

    Args:
        graph: the float graph.
        tensors: ``NODE.weight`` ``(O, I, ...)`` and ``NODE.bias`` ``(O,)`` by the node's name.
    """
    model = ir.serde.deserialize_model(graph)
    made: dict[tuple[str, bytes], ir.Value] = {}
    for site in sites_of(model):
        if f"{site.name}{WEIGHT}" not in tensors:
            continue
        weight = np.ascontiguousarray(np.moveaxis(tensors[f"{site.name}{WEIGHT}"].numpy(), 0, site.axis))
        given = site.node.inputs[1]
        assert given is not None
        # Layers that share a weight still do.
        at = (str(given.name), weight.tobytes())
        if at not in made:
            made[at] = add_constant(model.graph, f"{site.name}/learned", weight)
        site.node.replace_input_with(1, made[at])
        if site.node.op_type == "MatMul":
            continue
        bias = tensors[f"{site.name}{BIAS}"].numpy()
        site.node.resize_inputs(3)
        site.node.replace_input_with(2, add_constant(model.graph, f"{site.name}/learned_bias", bias))
        if site.node.op_type == "Gemm":
            site.node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
    drop_unused(model.graph)
    return ir.to_proto(model)
