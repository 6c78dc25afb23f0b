"""DETR and an RT-DETR-like detector, small: a convolutional backbone, an encoder, queries."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from .blocks import Block, Residual

CLASSES = 4
WIDTH, HEADS, QUERIES = 64, 4, 20


class Backbone(nn.Module):
    """Stride 32, ``WIDTH`` channels."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 48, 64, WIDTH)
        self.body = nn.Sequential(
            *(nn.Sequential(Block(a, b, 3, 2), Residual(b)) for a, b in itertools.pairwise(widths))
        )

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.body(images)
        return features


def positions(rows: int, columns: int) -> Tensor:
    """Sines and cosines of both coordinates, (1, rows * columns, WIDTH)."""
    steps = torch.arange(WIDTH // 4) / (WIDTH // 4)
    waves = 10_000.0**-steps
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    parts = [f(axis.reshape(-1, 1) * waves) for axis in (y, x) for f in (torch.sin, torch.cos)]
    return torch.cat(parts, 1)[None]


class Perceptron(nn.Sequential):
    """Three layers to a box."""

    def __init__(self) -> None:
        super().__init__(
            nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4)
        )


class Detr(nn.Module):
    """torch's own transformer layers, learned queries, softmax scores with a last no-object class."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.backbone = Backbone()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 128, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(WIDTH, HEADS, 128, batch_first=True, dropout=0.0), 2
        )
        self.queries = nn.Parameter(torch.randn(1, QUERIES, WIDTH))
        self.logits, self.boxes = nn.Linear(WIDTH, CLASSES + 1), Perceptron()
        self.register_buffer("places", positions(side, side), persistent=False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        memory = self.encoder(self.backbone(images).flatten(2).transpose(1, 2) + self.places)
        found = self.decoder(self.queries.expand(images.shape[0], -1, -1), memory)
        return {"pred_logits": self.logits(found), "pred_boxes": self.boxes(found).sigmoid()}


class Attention(nn.Module):
    """Queries look at keys: scaled dot products."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.value, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(2, (HEADS, -1)).transpose(1, 2)
            for layer, x in ((self.query, queries), (self.key, keys), (self.value, keys))
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        found: Tensor = self.out(mixed)
        return found


class Layer(nn.Module):
    """Self-attention, attention to the memory, a feed-forward net, each normalised before."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.cross = Attention(), Attention()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.feed = nn.Sequential(nn.Linear(WIDTH, 128), nn.GELU(), nn.Linear(128, WIDTH))

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        near = self.norms[0](queries)
        queries = queries + self.own(near, near)
        queries = queries + self.cross(self.norms[1](queries), memory)
        refined: Tensor = queries + self.feed(self.norms[2](queries))
        return refined


class RtDetr(nn.Module):
    """Queries are the best cells of the encoder, boxes are refined from layer to layer, sigmoid scores."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.encoder = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 128, batch_first=True, dropout=0.0, activation="gelu"
        )
        self.first_logits, self.first_boxes = nn.Linear(WIDTH, CLASSES), Perceptron()
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.logits = nn.Linear(WIDTH, CLASSES)
        self.boxes = nn.ModuleList(Perceptron() for _ in range(2))
        nn.init.constant_(self.logits.bias, -1.0)
        self.register_buffer("places", positions(side, side), persistent=False)
        at = (torch.arange(side) + 0.5) / side
        y, x = torch.meshgrid(at, at, indexing="ij")
        anchors = torch.stack((x, y, torch.full_like(x, 0.2), torch.full_like(x, 0.2)), -1).reshape(1, -1, 4)
        self.register_buffer("anchors", torch.logit(anchors), persistent=False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        memory = self.encoder(self.backbone(images).flatten(2).transpose(1, 2) + self.places)
        first = self.first_logits(memory)
        _, best = first.amax(2).topk(QUERIES, 1)
        cells = best.unsqueeze(2)
        places = (self.first_boxes(memory) + self.anchors).gather(1, cells.expand(-1, -1, 4))
        queries = memory.gather(1, cells.expand(-1, -1, WIDTH))
        for layer, boxes in zip(self.layers, self.boxes, strict=True):
            queries = layer(queries, memory)
            places = places + boxes(queries)
        return {"pred_logits": self.logits(queries), "pred_boxes": places.sigmoid()}


def detr() -> nn.Module:
    return Detr(8)


def rtdetr() -> nn.Module:
    return RtDetr(8)
