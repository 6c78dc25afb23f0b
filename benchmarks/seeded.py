"""Weights for networks that nobody trained: seeded, with statistics of real images, so that answers differ.

A freshly made network is degenerate: scales that are all one, branches that begin at zero, BatchNorm without
statistics, and a classifier that gives every picture the same answer. Comparing number formats on it proves
little. Here constants are spread, BatchNorm gets the mean and variance of what really flows through it, and a
classifier's last layer is centred on the pictures.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SPREAD = 0.05  # of biases and other values around a constant
SMALL = 1e-3  # a scale below this switches a branch off (LayerScale)
MOST_GAIN = 100.0
WEIGHTED = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
# Of torchvision's detectors: what names the layers that make class scores, and how many a picture has.
CLASS_LAYERS = ("classification_head", "cls_logits", "cls_score")
FOUND = 40


def seed_weights(module: nn.Module, images: Tensor, *, classifier: bool, seed: int = 0) -> nn.Module:
    """Fill a module in place, from the weights that its constructor gave it.

    Args:
        module: in eval mode afterwards.
        images: prepared inputs (N, C, H, W), real ones; 8 or more.
        classifier: centre the last layer, so that pictures get different answers.
        seed: of the spread.
    """
    generator = torch.Generator().manual_seed(seed)
    module.eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
                parameter.copy_(_spread(name, parameter, generator))
        take_statistics(module, images)
        if classifier:
            centre(module, images)
    return module


def _spread(name: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
    """Values around a constant: small for offsets, half to one and a half of it for scales."""
    value = float(parameter.flatten()[0])
    noise: Tensor = torch.randn(parameter.shape, generator=generator)
    if value == 0 and parameter.ndim > 1:
        drawn: Tensor = noise / parameter[0].numel() ** 0.5
        return drawn
    if value == 0 or name.endswith("bias"):
        return value + SPREAD * noise
    if abs(value) < SMALL:
        value = 0.1
    spread: Tensor = value * (0.5 + torch.rand(parameter.shape, generator=generator))
    return spread


def take_statistics(module: nn.Module, images: Tensor, *, units: bool = False) -> None:
    """Mean and variance of every BatchNorm from these inputs, all layers in one forward pass.

    With ``units`` the outputs of convolutions and matrix products are brought to unit variance on the way.
    """
    kind = nn.modules.batchnorm._BatchNorm
    norms = [m for m in module.modules() if isinstance(m, kind) and m.running_mean is not None]
    layers = [m for m in module.modules() if isinstance(m, WEIGHTED)] if units else []
    hooks = [layer.register_forward_hook(_Unit()) for layer in layers]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over batches
        norm.train()
    if norms or hooks:
        with torch.no_grad():
            module(images)
    for hook in hooks:
        hook.remove()
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
        norm.eval()


class _Unit:
    """Divides a layer's weight by what its first output's standard deviation is."""

    def __init__(self) -> None:
        self.done = False

    def __call__(self, layer: Any, _: Any, result: Tensor) -> Tensor:
        if self.done or result.numel() < 2:
            return result
        self.done = True
        spread = result.std().clamp(min=1e-6)
        layer.weight.div_(spread)
        return (
            result / spread
            if layer.bias is None
            else (result - _bias(layer, result)) / spread + _bias(layer, result)
        )


def _bias(layer: Any, result: Tensor) -> Tensor:
    offset: Tensor = layer.bias if result.ndim == 2 else layer.bias.reshape(-1, *[1] * (result.ndim - 2))
    return offset


def centre(module: nn.Module, images: Tensor) -> None:
    """Give each output of the last layer with weights mean 0 and spread 2 over these inputs."""
    last: list[tuple[nn.Module, Tensor]] = []

    def seen(layer: nn.Module, _: Any, result: Any) -> None:
        last[:] = [(layer, result)]

    layers = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    hooks = [layer.register_forward_hook(seen) for layer in layers]
    with torch.no_grad():
        module(images)
    for hook in hooks:
        hook.remove()
    if not last:
        return
    layer, result = last[0]
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    values = (
        result.flatten(2).transpose(1, 2).flatten(0, 1)
        if isinstance(layer, nn.Conv2d)
        else result.flatten(0, -2)
    )
    mean, spread = values.mean(0), values.std(0).mean()
    gain = float(min(2.0 / max(float(spread), 1e-6), MOST_GAIN))
    with torch.no_grad():
        layer.weight.mul_(gain)
        if layer.bias is not None:
            layer.bias.sub_(mean).mul_(gain)


def seed_detector(module: Any, images: Tensor, *, seed: int = 0) -> nn.Module:
    """Fill one of torchvision's detectors, so that it finds some tens of objects in a picture.

    Layers get outputs of unit variance on the pictures (frozen BatchNorm leaves nothing else), and the class
    layers an offset under which :data:`FOUND` pairs of box and class a picture are likely.
    """
    generator = torch.Generator().manual_seed(seed)
    module.eval()
    height, width = images.shape[-2:]
    module.transform.min_size, module.transform.max_size = (min(height, width),), max(height, width)
    if module.transform.fixed_size is not None:
        module.transform.fixed_size = (width, height)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, WEIGHTED):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
        take_statistics(module, images, units=True)
        _make_rare(module, images)
    return module  # type: ignore[no-any-return]


def _make_rare(module: nn.Module, images: Tensor) -> None:
    """Move the class layers' offsets."""
    named = dict(module.named_modules())
    layers = {
        name: layer
        for name, layer in named.items()
        if isinstance(layer, WEIGHTED) and any(part in name for part in CLASS_LAYERS)
    }
    last = _last_of_each(layers)
    softmax = type(module).__name__ not in ("RetinaNet", "FCOS")
    classes = 91
    seen: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(
            lambda _, __, out: seen.append(out.movedim(1, -1).reshape(-1, classes) if out.ndim == 4 else out)
        )
        for layer in last
    ]
    module(images)
    for hook in hooks:
        hook.remove()
    logits = torch.cat(seen)
    margins = logits[:, 1:] - logits[:, :1] if softmax else logits
    sure = margins.flatten().topk(min(FOUND * len(images), margins.numel())).values[-1]
    for layer in last:
        assert layer.bias is not None
        rows = layer.bias.reshape(-1, classes)
        if softmax:
            rows[:, 0] += sure
        else:
            rows -= sure


def _last_of_each(layers: dict[str, Any]) -> list[Any]:
    """Of the layers that share a branch those with 91 classes to an anchor: the ones that make the scores."""
    return [layer for layer in layers.values() if layer.bias is not None and len(layer.bias) % 91 == 0]
