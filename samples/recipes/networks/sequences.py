"""Networks that read a line: text recognition (CRNN), and a wav2vec-like encoder over a spectrogram."""

from __future__ import annotations

from torch import Tensor, nn

from .blocks import Block

ALPHABET = 37  # a blank, ten digits, 26 letters
MELS = 80


class Crnn(nn.Module):
    """Convolutions to a row of features, a bidirectional LSTM, logits for CTC (Shi et al., 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            Block(1, 16, act=nn.ReLU), nn.MaxPool2d(2), Block(16, 32, act=nn.ReLU), nn.MaxPool2d(2),
            Block(32, 48, act=nn.ReLU), nn.MaxPool2d((2, 1)),
            Block(48, 64, act=nn.ReLU), nn.MaxPool2d((4, 1)),
        )  # fmt: skip
        self.memory = nn.LSTM(64, 48, bidirectional=True, batch_first=True)
        self.last = nn.Linear(96, ALPHABET)

    def forward(self, line: Tensor) -> dict[str, Tensor]:
        features = self.body(line).squeeze(2).transpose(1, 2)
        read, _ = self.memory(features)
        return {"characters": self.last(read)}


class Wav2Vec(nn.Module):
    """One-dimensional convolutions over time and a transformer encoder (after Baevski et al., 2020)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv1d(MELS, width, 5, 2, 2), nn.GroupNorm(8, width), nn.GELU(),
            nn.Conv1d(width, width, 3, 2, 1), nn.GELU(),
        )  # fmt: skip
        self.places = nn.Conv1d(width, width, 15, padding=7, groups=8)
        layer = nn.TransformerEncoderLayer(
            width, 4, 128, batch_first=True, dropout=0.0, activation="gelu", norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, spectrogram: Tensor) -> dict[str, Tensor]:
        x = self.convs(spectrogram.squeeze(1))
        x = (x + nn.functional.gelu(self.places(x))).transpose(1, 2)
        return {"states": self.norm(self.encoder(x))}


def crnn() -> nn.Module:
    return Crnn()


def wav2vec() -> nn.Module:
    return Wav2Vec()
