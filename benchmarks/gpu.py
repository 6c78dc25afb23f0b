"""What the GPU parts are worth, on the GPU that is here.

    python benchmarks/gpu.py [--assets DIR] [--rounds N]

1. The preprocess kernel against `prepare` of the host on 50 real frames: largest difference in steps.
2. The kernel on a batch of 16 frames of 3840 x 2160: share of the device's own copy bandwidth, counting
   every byte that has to be read and every byte written once. `linear` reads the rows it needs of each
   frame, `area` all of it.
3. A 1920 x 1080 frame on the host to `Detections`, YOLOX-nano: ours (onnxruntime CUDA, kernel, graph
   replay, page-locked memory) against the same chain with OpenCV's preprocess and torch.compile in
   FP16, call by call in turn.
4. `Detector` on the CUDA provider against bare IOBinding with graph replay of the same graph, call by
   call in turn: frames prepared beforehand on both sides, and the whole call beside it.

Needs an NVIDIA GPU, pycuda, onnxruntime-gpu and a torch with CUDA; without them the results say that
nothing was run, and why.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import ASSETS, interleaved, print_table, trained_recipe, write_results
from edgesmith.converters import convert
from edgesmith.sdk import Bundle, Detector
from edgesmith.sdk.cameras.pictures import list_pictures, read_image
from edgesmith.sdk.cuda.buffers import Buffers
from edgesmith.sdk.cuda.context import Gpu, find_gpu, load_driver
from edgesmith.sdk.cuda.preprocess import FramePreparer
from edgesmith.sdk.cuda.taps import axis_taps
from edgesmith.sdk.decode.canonical import detections
from edgesmith.sdk.errors import EdgesmithError
from edgesmith.sdk.manifest import Preprocess
from edgesmith.sdk.preprocess import geometry_of, prepared

NOT_RUN = "not run on a GPU"
BARS = {
    "kernel_equals_host": "steps <= 1",
    "kernel_bandwidth": "share >= 0.6",
    "frame_to_detections": "ratio <= 0.5",
    "detector_over_binding": "ratio <= 1.05",
}
Frame8 = NDArray[np.uint8]
_COPY_BYTES = 1 << 30


def missing() -> str | None:
    """Why nothing can be run here, or None."""
    try:
        find_gpu(0, load_driver())
    except EdgesmithError as error:
        return str(error)
    onnxruntime = importlib.import_module("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "this onnxruntime has no CUDA provider: install onnxruntime-gpu"
    if not importlib.import_module("torch").cuda.is_available():
        return "this torch has no CUDA"
    return None


class Rig:
    """The kernel with room for its output."""

    def __init__(self, gpu: Gpu, preprocess: Preprocess, frames: int, shape: tuple[int, ...]) -> None:
        self.gpu, self.shape = gpu, (frames, *shape)
        self.buffers = Buffers(gpu)
        self.stream = gpu.stream()
        self.preparer = FramePreparer(gpu, self.stream, preprocess, np.dtype(np.float32))
        self.out = self.buffers.take(int(np.prod(self.shape)) * 4)

    def __call__(self, frames: list[Frame8]) -> NDArray[Any]:
        """The batch as the kernel makes it."""
        self.preparer.place(frames, self.out.address)
        self.out.download(self.stream)
        self.stream.synchronize()
        return self.out.array(np.dtype(np.float32), self.shape)

    def close(self) -> None:
        """Free all."""
        self.preparer.close()
        self.buffers.close()


def kernel_equals_host(gpu: Gpu, assets: Path) -> dict[str, Any]:
    """Largest difference over 50 pictures, in steps of a pixel, by interpolation."""
    frames = [read_image(path) for path in list_pictures(assets / "coco_val")[:50]]
    steps: dict[str, float] = {}
    differing: dict[str, float] = {}
    for kind in ("linear", "area", "cubic", "nearest"):
        preprocess = Preprocess(size=(416, 416), interpolation=kind, scale=1.0)
        with gpu.current():
            rig = Rig(gpu, preprocess, 1, (3, 416, 416))
            pairs = [(rig([frame]).copy(), prepared(preprocess, frame)[0]) for frame in frames]
            rig.close()
        steps[kind] = max(float(np.abs(got - want).max()) for got, want in pairs)
        differing[kind] = float(np.mean([np.mean(got != want) for got, want in pairs]))
    return {"frames": len(frames), "steps": steps, "share_of_pixels_that_differ": differing}


def gpu_seconds(gpu: Gpu, stream: Any, work: Callable[[], object], rounds: int) -> float:
    """Median time of the work on the device, by events."""
    driver, spent = gpu.driver, []
    for _ in range(rounds + 3):
        start, end = driver.Event(), driver.Event()
        start.record(stream)
        work()
        end.record(stream)
        end.synchronize()
        spent.append(1e-3 * start.time_till(end))
    return float(statistics.median(spent[3:]))


def kernel_bandwidth(gpu: Gpu, rounds: int) -> dict[str, Any]:
    """Bytes per second of the kernel alone, frames on the device already, over those of a copy."""
    frames = [np.full((2160, 3840, 3), number, np.uint8) for number in range(16)]
    figures: dict[str, Any] = {}
    with gpu.current():
        buffers, stream = Buffers(gpu), gpu.stream()
        a, b = (buffers.take(_COPY_BYTES, host=False) for _ in range(2))
        copy = partial(gpu.driver.memcpy_dtod_async, a.address, b.address, _COPY_BYTES, stream)
        device = 2 * _COPY_BYTES / gpu_seconds(gpu, stream, copy, rounds)
        buffers.close()
        for kind in ("linear", "area"):
            preprocess = Preprocess(size=(640, 640), interpolation=kind)
            rig = Rig(gpu, preprocess, len(frames), (3, 640, 640))
            rig(frames)
            down, _ = axis_taps(preprocess, geometry_of(preprocess, 2160, 3840))
            rows = len(np.unique(down.start[:, None] + np.arange(down.width)[down.weights.any(0)]))
            nbytes = len(frames) * rows * 3840 * 3 + rig.out.nbytes
            seconds = gpu_seconds(gpu, rig.stream, partial(rig.preparer.launch, len(frames)), rounds)
            figures[kind] = {
                "ms": 1e3 * seconds,
                "bytes": nbytes,
                "share": nbytes / seconds / device,
            }
            rig.close()
    return {"copy_gb_per_s": device / 1e9, **figures}


def compiled_chain(recipe: Any, bundle: Bundle) -> Callable[[Frame8], object]:
    """The same network by torch.compile in FP16, with the host's preprocess and decode."""
    import torch

    from edgesmith.converters.adapters import adapt
    from edgesmith.converters.sources import load_source

    module = load_source(recipe).module
    assert module is not None
    preprocess, manifest = bundle.manifest.preprocess, bundle.manifest
    example = torch.zeros(1, *preprocess.tensor_shape(1, 1))
    adapted = adapt(
        module, "yolox", example=example, task="detect", options={}, nms=manifest.nms,
        names=len(manifest.labels), python_path=[],
    )  # fmt: skip
    network = torch.compile(adapted.module.cuda().half(), mode="reduce-overhead")
    assert manifest.nms is not None
    nms = manifest.nms

    def run(frame: Frame8) -> object:
        tensor, geometry = prepared(preprocess, frame)
        with torch.inference_mode():
            outputs = network(torch.from_numpy(tensor).cuda().half())
            arrays = {
                name: value.float().cpu().numpy()
                for name, value in zip(adapted.output_names, outputs, strict=True)
            }
        return detections(arrays, 0, geometry, nms, manifest.labels)

    return run


def bare_binding(bundle: Bundle, variant: str) -> Callable[[NDArray[np.float32]], object]:
    """IOBinding with graph replay and nothing else: a batch on the host to the outputs on the host."""
    ort = importlib.import_module("onnxruntime")
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    provider = ("CUDAExecutionProvider", {"enable_cuda_graph": "1"})
    graph = bundle.read(bundle.manifest.variants[variant].member)
    session = ort.InferenceSession(graph, settings, providers=[provider, "CPUExecutionProvider"])
    shape = (1, *bundle.manifest.preprocess.tensor_shape(1, 1))
    source = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32), "cuda", 0)
    feeds = {session.get_inputs()[0].name: np.zeros(shape, np.float32)}
    cpu = ort.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_ortvalue_input(session.get_inputs()[0].name, source)
    kept = []
    for value, array in zip(session.get_outputs(), cpu.run(None, feeds), strict=True):
        kept.append(ort.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
        binding.bind_ortvalue_output(value.name, kept[-1])

    def run(batch: NDArray[np.float32]) -> object:
        source.update_inplace(batch)
        session.run_with_iobinding(binding)
        return [value.numpy() for value in kept]

    return run


def chains(assets: Path, rounds: int) -> dict[str, dict[str, Any]]:
    """Figures 3 and 4."""
    recipe = trained_recipe("yolox_nano", assets)
    clip = read_image(list_pictures(assets / "coco_val")[0])
    frame = np.ascontiguousarray(np.resize(clip, (1080, 1920, 3)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "yolox_nano.edge"
        convert(recipe, path)
        bundle = Bundle.open(path)
        with Detector.load(path, backend="cuda") as detector:
            batch, _ = prepared(bundle.manifest.preprocess, frame)
            bare = bare_binding(bundle, detector.backend.variant)
            calls: dict[str, Callable[[], object]] = {
                "ours": partial(detector, frame),
                "compiled": partial(compiled_chain(recipe, bundle), frame),
                "backend": partial(detector.backend.run, batch),
                "binding": partial(bare, batch),
            }
            for call in calls.values():
                for _ in range(20):
                    call()
            spent = interleaved(calls, rounds=rounds)
            detail = detector.backend.detail
    ms = {name: 1e3 * statistics.median(times) for name, times in spent.items()}
    return {
        "frame_to_detections": {
            "ms": {"ours": ms["ours"], "compiled": ms["compiled"]},
            "ratio": ms["ours"] / ms["compiled"],
            "backend": detail,
        },
        "detector_over_binding": {
            "ms": {name: ms[name] for name in ("backend", "binding", "ours")},
            "ratio": ms["backend"] / ms["binding"],
        },
    }


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--assets", type=Path, default=ASSETS)
    parser.add_argument("--rounds", type=int, default=200)
    arguments = parser.parse_args()
    reason = missing()
    if reason is not None:
        print(f"{NOT_RUN}: {reason}")
        bars = {name: {"bar": bar, "state": NOT_RUN} for name, bar in BARS.items()}
        print(f"results: {write_results('gpu', {'state': NOT_RUN, 'reason': reason, 'bars': bars}).name}")
        return
    gpu = Gpu()
    facts = gpu.facts
    figures: dict[str, Any] = {
        "kernel_equals_host": kernel_equals_host(gpu, arguments.assets),
        "kernel_bandwidth": kernel_bandwidth(gpu, arguments.rounds),
        **chains(arguments.assets, arguments.rounds),
    }
    gpu.close()
    rows = [[name, BARS[name], str(figures[name])] for name in BARS]
    print_table(["figure", "bar", facts.name], rows)
    device = {"name": facts.name, "compute_capability": facts.compute_capability, "driver": facts.driver}
    bars = {name: {"bar": bar, **figures[name]} for name, bar in BARS.items()}
    print(f"results: {write_results('gpu', {'state': 'run', 'device': device, 'bars': bars}).name}")


if __name__ == "__main__":
    main()
