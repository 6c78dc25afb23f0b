"""``torchscript``: an archive of ``torch.jit.save``, traced back to a module that can be exported."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from edgesmith.converters.recipe import Recipe
from edgesmith.converters.sources.base import Loaded, sha256_of
from edgesmith.sdk.errors import SourceError


def load(recipe: Recipe) -> Loaded:
    """Load an archive and retrace it at the recipe's input shape.

    torch.export does not enter scripted modules. Running one over a proxy tensor records the
    operators it calls, whatever it was written in; what comes out is a plain module for one
    input shape, with the parameters under their own names.

    Raises:
        SourceError: the file is no archive, a batch range is asked, or the module cannot be traced.
    """
    assert recipe.model.torchscript is not None
    path = recipe.resolve(recipe.model.torchscript)
    preprocess = recipe.preprocess()
    if not recipe.batch.fixed or preprocess.size is None:
        raise SourceError(
            f"{path}: a TorchScript archive is exported for one input shape; set input.size and a single "
            "number in input.batch, or bring the module itself (model.factory) or model.program"
        )
    with warnings.catch_warnings():
        # torch says that TorchScript is deprecated; the user's file is what it is.
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        try:
            open_archive: Any = torch.jit.load
            script = open_archive(path, map_location="cpu").eval()
        except (RuntimeError, ValueError, OSError) as error:
            raise SourceError(
                f"{path}: cannot be read as a TorchScript archive ({str(error).strip().splitlines()[0]})"
            ) from error
        example = torch.zeros(recipe.batch.opt, preprocess.channels, *preprocess.size)
        try:
            module = _retraced(script, example)
        except Exception as error:
            # The interpreter passes on whatever the scripted code raised.
            shape, why = tuple(example.shape), str(error).strip().splitlines()[-1]
            raise SourceError(f"{path}: does not run on an input of {shape}: {why}") from error
    return Loaded(kind="torchscript", name=f"torchscript {path.name}", sha256=sha256_of(path), module=module)


def _retraced(script: Any, example: torch.Tensor) -> nn.Module:
    with torch.no_grad():
        traced = make_fx(lambda images: script(images))(example)
    names = {id(v): k for k, v in [*script.named_parameters(), *script.named_buffers()]}
    pointers = {
        v.data_ptr(): k for k, v in [*script.named_parameters(), *script.named_buffers()] if v.numel()
    }
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            value = getattr(traced, node.target)
            name = names.get(id(value)) or pointers.get(value.data_ptr()) or f"constants.{node.target}"
            _place(traced, name, value)
            node.target = name
        elif node.target is torch.ops.aten._convolution.default:
            # The traced spelling: the same operator with four flags of cuDNN behind it.
            node.target = torch.ops.aten.convolution.default
            node.args = node.args[:9]
    traced.graph.eliminate_dead_code()
    module = fx.GraphModule(traced, traced.graph)
    return module.eval().requires_grad_(False)


def _place(root: nn.Module, name: str, value: torch.Tensor) -> None:
    """Register a tensor as a buffer under a dotted name, making the modules on the way."""
    *parents, last = name.split(".")
    for part in parents:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    if last not in root._buffers:
        root.register_buffer(last, value.detach())
