"""Export: canonical names, open axes, nodes that name their modules, the same bytes every time."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from edgesmith.converters.export import OPSET, export_module, slim
from edgesmith.converters.runners import graph_runner
from edgesmith.converters.trace import MODULE_KEY, annotate, module_path, unclaimed
from edgesmith.sdk.errors import ExportError, UnsupportedOperatorError
from edgesmith.sdk.manifest import Batch

Seeded = Callable[[nn.Module], nn.Module]
ONE = Batch()
WEIGHTED = ("Conv", "Gemm", "MatMul")


class Wrapped(nn.Module):
    """As an adapter leaves it: the user's network inside, a tuple out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.network(images) * 1.5,)


def exported(
    network: nn.Module, batch: Batch = ONE, size: tuple[int, int] | None = (64, 64)
) -> onnx.ModelProto:
    return export_module(
        Wrapped(network).eval(), network, output_names=["logits"], channels=3, size=size, batch=batch
    )


@pytest.fixture
def network(tinynets: ModuleType, seeded: Seeded) -> nn.Module:
    return seeded(tinynets.classifier())


@pytest.mark.parametrize("batch", [Batch(), Batch(min=3, opt=3, max=3), Batch(min=1, opt=2, max=4)])
def test_interface_and_answers(network: nn.Module, tensor: torch.Tensor, batch: Batch) -> None:
    model = slim(exported(network, batch))
    shape = [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    first = batch.opt if batch.fixed else "batch"
    assert (model.graph.input[0].name, shape) == ("images", [first, 3, 64, 64])
    out = model.graph.output[0]
    assert out.name == "logits"
    assert [d.dim_param or d.dim_value for d in out.type.tensor_type.shape.dim] == [first, 5]
    assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
    for count in {batch.min, batch.opt, batch.max}:
        images = tensor[:1].repeat(count, 1, 1, 1) * torch.linspace(0.5, 1, count)[:, None, None, None]
        expected = Wrapped(network)(images)[0].detach().numpy()
        np.testing.assert_allclose(
            graph_runner(model)(images.numpy())["logits"], expected, rtol=1e-4, atol=1e-4
        )


def test_any_size(seeded: Seeded) -> None:
    network = seeded(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.PixelShuffle(2)))
    model = slim(exported(network, size=None))
    dims = [d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert dims[2:] == ["height", "width"]
    images = np.random.default_rng(0).normal(0, 1, (1, 3, 17, 22)).astype(np.float32)
    assert graph_runner(model)(images)["logits"].shape == (1, 1, 34, 44)


def test_batch_norm_is_gone_and_every_layer_names_its_module(network: nn.Module) -> None:
    model = slim(exported(network))
    modules = dict(network.named_modules())
    kinds = [node.op_type for node in model.graph.node]
    assert "BatchNormalization" not in kinds
    assert kinds.count("Conv") == 4
    layers = [node for node in model.graph.node if node.op_type in WEIGHTED]
    paths = [module_path(node) for node in layers]
    assert sorted(str(p) for p in paths) == sorted(
        name for name, module in modules.items() if isinstance(module, nn.Conv2d | nn.Linear)
    )
    for node in model.graph.node:
        path = module_path(node)
        assert path is None or path in modules
        assert node.name.rpartition("/")[0] == (path or "")
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)
    assert unclaimed(ir.from_proto(model)) == []
    # the factor 1.5 is not the user's, and the sum of the two branches is the network's own
    assert module_path(model.graph.node[-1]) is None
    assert [module_path(n) for n in model.graph.node if n.op_type == "Add"] == [""]
    assert {i.name for i in model.graph.initializer} >= {
        "stem.0.weight",
        "classifier.weight",
        "shortcut.bias",
    }


def test_a_tied_weight_and_a_module_called_twice(seeded: Seeded) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.two.weight = self.one.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.two(self.one(self.one(x).relu()).relu())
            return y.flatten(1)

    model = slim(exported(seeded(Tied())))
    convs = [n for n in model.graph.node if n.op_type == "Conv"]
    assert [module_path(n) for n in convs] == ["one", "one", "two"]
    assert [n.name for n in convs] == ["one/Conv", "one/Conv_1", "two/Conv"]


def test_twice_gives_the_same_bytes_and_nothing_of_the_machine(network: nn.Module) -> None:
    one, two = (slim(exported(network)).SerializeToString(deterministic=True) for _ in range(2))
    assert one == two
    for word in (b"site-packages", b"tinynets", b'File "', __file__.encode()):
        assert word not in one
    keys = {p.key for node in onnx.load_from_string(one).graph.node for p in node.metadata_props}
    assert keys == {MODULE_KEY}


def test_values_decide_the_branch(seeded: Seeded) -> None:
    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.sum() > 0:
                return x.flatten(1)
            return -x.flatten(1)

    network = nn.Sequential(nn.Conv2d(3, 3, 1), Branch())
    with pytest.raises(
        ExportError, match=r"decides by the values of a tensor in module 1 \(at .*test_export\.py, line \d+"
    ) as caught:
        exported(network)
    assert "torch.where" in str(caught.value)
    assert caught.value.__cause__ is not None
    assert "Traceback" not in str(caught.value)


def test_a_batch_that_is_written_into_the_model() -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(int(x.shape[0]), -1)[: len(list(x))]

    with pytest.raises(ExportError, match=r"batch.*set .?input\.batch"):
        exported(Fixed(), Batch(min=1, opt=2, max=4))


def test_an_error_of_the_forward_names_the_module() -> None:
    class Wrong(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ x.new_zeros(5, 5)

    with pytest.raises(ExportError, match=r"cannot be traced on an input of \(1, 3, 64, 64\) in module 0"):
        exported(nn.Sequential(Wrong()))


def test_an_operator_without_counterpart_names_operator_and_module() -> None:
    class Special(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = torch.special.bessel_j0(x)
            return y.flatten(1)

    with pytest.raises(UnsupportedOperatorError, match="bessel_j0 in module 1 has no counterpart") as caught:
        exported(nn.Sequential(nn.Conv2d(3, 3, 1), Special()))
    assert caught.value.operator == "aten.special_bessel_j0"
    assert caught.value.module == "1"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("/stem/conv/Conv", "stem.conv"),
        ("/layer1/layer1.0/conv1/Conv", "layer1.0.conv1"),
        ("/Conv", ""),
        ("Conv_3", None),
    ],
)
def test_names_of_the_old_exporter_are_understood(name: str, path: str | None) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20]> g (float[1,3,4,4] x) => (float[1,2,4,4] y) '
        "<float[2,3,1,1] w = {0,0,0,0,0,0}> { y = Conv(x, w) }"
    )
    model.graph.node[0].name = name
    graph = ir.from_proto(model)
    annotate(graph, None)
    assert module_path(next(iter(graph.graph))) == path
