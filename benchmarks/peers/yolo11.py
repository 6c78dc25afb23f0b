"""A yolo11n with seeded weights, exported by Ultralytics; runs in the environment ``ultralytics``.

    python yolo11.py CLIP IMAGES FOLDER SIZE

``yolo11n.onnx`` is Ultralytics' own export, for the tools that run one; ``yolo11n.pt2`` is the same module
as a program of torch; ``frames`` are the clip's first pictures. Seeded weights find nothing: BatchNorm takes
the statistics of ``IMAGES``, and the last layer of the classes is scaled so that some boxes of the clip's
pictures score above 0.25, as a trained network's would.
"""

from __future__ import annotations

import copy
import importlib
import math
import os
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

CANDIDATES = 60  # boxes above the threshold in a picture, before the suppression
PICTURES, VARIOUS = 8, 32


def tensor_of(pictures: list[Any], size: int) -> torch.Tensor:
    """Pictures as the network takes them, (N, 3, H, W) in 0..1."""
    resized = [cv2.resize(picture, (size, size))[..., ::-1].transpose(2, 0, 1) for picture in pictures]
    return torch.from_numpy(np.stack(resized).astype(np.float32)) / 255


def marked(picture: Any, seed: int) -> Any:
    """Every second picture with two lines of blocks at its top, as the stream's number and clock are."""
    if seed % 2:
        height, width = picture.shape[:2]
        for line in range(2):
            bits = np.random.default_rng(2 * seed + line).integers(0, 2, 40)
            row = (255 * bits[np.arange(width) * 40 // width]).astype(np.uint8)
            picture[line * height // 12 : (line + 1) * height // 12] = row[:, None]
    return picture


def tune(network: Any, various: torch.Tensor, images: torch.Tensor) -> None:
    """Set the statistics, spread the scores, and shift them so that some candidates pass 0.25."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(various)
    layers = [branch[-1] for branch in network.model[-1].cv3]
    maps: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda layer, given, made: maps.append(made - layer.bias[:, None, None]))
        for layer in layers
    ]
    network.eval()
    with torch.no_grad():
        network(images)
        for hook in hooks:
            hook.remove()
        scale = 1 / torch.cat([each.flatten() for each in maps]).std()
        best = torch.cat([(scale * each).amax(dim=1).flatten(1) for each in maps], dim=1)
        # The mean over the pictures: with the blocks there are many more candidates than without.
        threshold = best.sort(dim=1, descending=True)[0][:, CANDIDATES].mean()
        for layer in layers:
            layer.weight.mul_(scale)
            layer.bias.fill_(math.log(0.25 / 0.75) - float(threshold))


def main() -> None:
    clip, images, folder = (Path(argument).resolve() for argument in sys.argv[1:4])
    size = int(sys.argv[4])
    os.environ |= {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_CONFIG_DIR": str(folder)}
    YOLO: Any = importlib.import_module("ultralytics").YOLO

    os.chdir(folder)  # the export writes beside the model's name
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = YOLO("yolo11n.yaml")
    capture = cv2.VideoCapture(str(clip))
    frames = [marked(capture.read()[1], number) for number in range(PICTURES)]
    files = [np.fromfile(path, np.uint8) for path in sorted(images.glob("*.jpg"))[:VARIOUS]]
    various = [cv2.imdecode(file, cv2.IMREAD_COLOR) for file in files]
    tune(model.model, tensor_of(various, size), tensor_of(frames, size))
    (folder / "frames").mkdir(exist_ok=True)
    for number, frame in enumerate(frames):
        cv2.imwrite(str(folder / "frames" / f"{number}.png"), frame)
    module = copy.deepcopy(model.model).float().eval().fuse()
    for part in module.modules():
        if type(part).__name__ == "Detect":
            part.export, part.format = True, "onnx"  # one tensor: boxes and scores of all levels
    example = torch.zeros(1, 3, size, size)
    with torch.no_grad():
        module(example)  # makes the anchors
        torch.export.save(torch.export.export(module, (example,)), "yolo11n.pt2")
    model.export(format="onnx", imgsz=size, opset=19, simplify=True)


if __name__ == "__main__":
    main()
