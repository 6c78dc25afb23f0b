"""``torchscript``: an archive of ``torch.jit.save``, traced back to a module that can be exported."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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
        sizes = _Sizes()
        try:
            module = _retraced(script, example, sizes)
        except Exception as error:
            # The interpreter passes on whatever the scripted code raised.
            raise SourceError(f"{path}: {_why(error, sizes, tuple(example.shape))}") from error
    return Loaded(kind="torchscript", name=f"torchscript {path.name}", sha256=sha256_of(path), module=module)


class _Sizes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's has no types
    """Computes what an archive makes of sizes at once, outside of the trace.

    An archive of ``torch.jit.trace`` holds sizes as tensors without axes, computes with them and reads them
    back as numbers, which a traced tensor cannot be. Sizes come from no operator, so a tensor without axes
    that no traced operator made is one of them, or another constant: for one input shape both are fixed.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Kept alive, so that no other tensor gets the same identity.
        self.traced: dict[int, torch.Tensor] = {}
        self.failed: tuple[Any, Exception] | None = None

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        given = [value for value in tree_leaves((args, named)) if isinstance(value, torch.Tensor)]
        fixed = bool(given) and all(value.ndim == 0 and id(value) not in self.traced for value in given)
        if fixed and not operator._schema.is_mutable:
            with disable_proxy_modes_tracing():
                return operator(*args, **named)
        try:
            made = operator(*args, **named)
        except Exception as error:
            # Kept, since the interpreter between here and the caller drops the message.
            self.failed = operator, error
            raise
        self.traced |= {id(v): v for v in tree_leaves(made) if isinstance(v, torch.Tensor) and v.ndim == 0}
        return made


def _why(error: Exception, sizes: _Sizes, shape: tuple[int, ...]) -> str:
    operator, cause = sizes.failed or (None, error)
    if operator is torch.ops.aten._local_scalar_dense.default:
        return (
            "its code reads a number out of a tensor that depends on the picture (an if, a loop, or a size "
            "from a count of what was found), which no graph of fixed shapes holds; export it without that "
            "part (of a detector: without its suppression), or bring the module itself (model.factory) or "
            "an exported program (model.program)"
        )
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    # Of the operator's own error the first line, of the interpreter's report the last.
    why = type(cause).__name__ if not lines else lines[0] if operator is not None else lines[-1]
    at = "" if operator is None else f" (at {operator})"
    return f"does not run on an input of {shape}: {why}{at}; check input.size and input.color"


def _retraced(script: Any, example: torch.Tensor, sizes: _Sizes) -> nn.Module:
    def run(images: torch.Tensor) -> Any:
        with sizes:
            return script(images)

    with torch.no_grad():
        traced = make_fx(run)(example)
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
