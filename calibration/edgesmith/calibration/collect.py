"""One pass over the images: statistics of every tensor that a quantizable layer reads.

The pass can be stopped at any moment, by a kill too, and goes on from what it had seen: the statistics
after image n do not depend on where it was interrupted.
"""

from __future__ import annotations

import hashlib
import io
import logging
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.calibration.images import Images
from edgesmith.calibration.scale_table import Activation, ScaleTable, warnings_of
from edgesmith.calibration.sites import sites_of
from edgesmith.calibration.statistics import Histogram, Scratch, TensorStatistics
from edgesmith.sdk.errors import CalibrationError, MissingExtraError
from edgesmith.sdk.preprocess import Preprocess, prepared

log = logging.getLogger(__name__)
FEW_IMAGES = 32
SAVE_EVERY_S = 5.0
_STATE = 1  # version of the state file


class Statistics:
    """Statistics by tensor name, of the first ``done`` images."""

    def __init__(self, model_sha256: str, data_sha256: str, names: tuple[str, ...]) -> None:
        self.model_sha256 = model_sha256
        self.data_sha256 = data_sha256
        self.tensors = {name: TensorStatistics(name) for name in names}
        self.done = 0

    def table(self) -> ScaleTable:
        """The scale table that follows, for every method at once."""
        return ScaleTable(
            model_sha256=self.model_sha256,
            data_sha256=self.data_sha256,
            images=self.done,
            activations={name: Activation.of(t) for name, t in self.tensors.items()},
            warnings=warnings_of(self.tensors, self.done, FEW_IMAGES),
        )

    def save(self, path: Path) -> None:
        """Write the whole state in one step: a kill leaves the state before it or the new one."""
        arrays: dict[str, NDArray[Any]] = {
            "head": np.array([_STATE, self.done], np.int64),
            "hashes": np.array([self.model_sha256, self.data_sha256]),
            "names": np.array(list(self.tensors)),
        }
        for number, tensor in enumerate(self.tensors.values()):
            arrays[f"counts{number}"] = tensor.histogram.counts
            arrays[f"limit{number}"] = np.array([tensor.histogram.limit])
            if tensor.least is not None and tensor.largest is not None:
                arrays[f"least{number}"], arrays[f"largest{number}"] = tensor.least, tensor.largest
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]  # numpy types every keyword as its flag
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            temporary.write_bytes(buffer.getvalue())
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise CalibrationError(f"{path}: cannot be written: {error.strerror or error}") from error

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Read what :meth:`save` wrote.

        Raises:
            CalibrationError: it cannot be read.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                version, done = (int(v) for v in file["head"])
                if version != _STATE:
                    raise CalibrationError(f"{path}: state of another version: delete it and calibrate again")
                model, data = (str(v) for v in file["hashes"])
                state = cls(model, data, tuple(str(n) for n in file["names"]))
                state.done = done
                for number, tensor in enumerate(state.tensors.values()):
                    limit = float(file[f"limit{number}"][0])
                    tensor.histogram = Histogram(file[f"counts{number}"].copy(), limit)
                    tensor.images = done
                    if f"least{number}" in file:
                        tensor.least = file[f"least{number}"].copy()
                        tensor.largest = file[f"largest{number}"].copy()
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
            raise CalibrationError(
                f"{path}: state of an interrupted calibration, damaged ({error}): delete it and start again"
            ) from error
        return state


def collect(
    graph: bytes,
    images: Images,
    preprocess: Preprocess,
    *,
    state: Path | None = None,
    threads: int | None = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Statistics:
    """Run the float graph over the images and keep the statistics.

    Args:
        graph: the float ONNX model, one image input.
        images: what to calibrate on; every one of them is used, in order.
        preprocess: how each becomes the input.
        state: file that holds the statistics while the pass runs; where it exists from an interrupted
            pass over the same model and images, the pass goes on from it.
        threads: CPU threads of one run; None leaves it to onnxruntime.
        progress: called with images done and images in all.

    Raises:
        CalibrationError: an activation holds NaN or Inf (the message names tensor, layer and image), or
            the state belongs to another model or other images.
        DataError: an image cannot be read.
    """
    model = ir.serde.deserialize_model(onnx.load_from_string(graph))
    readers = {site.activation: site.module or site.name for site in reversed(sites_of(model))}
    if not readers:
        raise CalibrationError(
            "the graph has no convolution or matrix product with constant weights to quantize"
        )
    statistics = _begun(hashlib.sha256(graph).hexdigest(), images.fingerprint(), tuple(readers), state)
    run = _tapped(graph, tuple(readers), threads)
    scratch, saved = Scratch(), time.monotonic()
    for number in range(statistics.done, len(images)):
        values = run(prepared(preprocess, images[number])[0])
        for name, tensor in statistics.tensors.items():
            try:
                tensor.add(values[name], scratch)
            except CalibrationError as error:
                raise CalibrationError(
                    f"{error}, read by {readers[name]}, on image {images.names[number]}: "
                    "the float model itself is unsound on it"
                ) from error
        statistics.done = number + 1
        if state is not None and time.monotonic() - saved > SAVE_EVERY_S:
            statistics.save(state)
            saved = time.monotonic()
        if progress is not None:
            progress(statistics.done, len(images))
    return statistics


def _begun(model: str, data: str, names: tuple[str, ...], state: Path | None) -> Statistics:
    """Fresh statistics, or those of an interrupted pass."""
    if state is None or not state.exists():
        return Statistics(model, data, names)
    found = Statistics.load(state)
    for what, ours, theirs in (
        ("model", model, found.model_sha256),
        ("set of images", data, found.data_sha256),
    ):
        if ours != theirs:
            raise CalibrationError(
                f"{state}: state of a calibration of another {what}: delete it, or name another file"
            )
    log.info("going on after image %d of an interrupted calibration", found.done)
    return found


def _tapped(
    graph: bytes, names: tuple[str, ...], threads: int | None
) -> Callable[[NDArray[np.float32]], Mapping[str, NDArray[np.float32]]]:
    """A run of the graph that shows the named inner tensors."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(
            "calibration needs onnxruntime: pip install 'edgesmith[convert]'", extra="convert"
        ) from error
    proto = onnx.load_from_string(graph)
    entry = proto.graph.input[0].name
    shown = {output.name for output in proto.graph.output}
    for name in names:
        if name != entry and name not in shown:
            proto.graph.output.append(onnx.ValueInfoProto(name=name))
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    if threads is not None:
        settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    inner = [name for name in names if name != entry]
    sizes = {value.name: value.shape for value in session.get_outputs()}
    if inner and all(_static(sizes[name]) for name in inner):
        return _bound(session, entry, {name: tuple(sizes[name]) for name in inner})

    def run(tensor: NDArray[np.float32]) -> Mapping[str, NDArray[np.float32]]:
        values = dict(zip(inner, session.run(inner, {entry: tensor}), strict=True))
        values[entry] = tensor
        return values

    return run


def _static(shape: Sequence[object] | None) -> bool:
    return shape is not None and all(isinstance(size, int) for size in shape)


def _bound(
    session: Any, entry: str, sizes: Mapping[str, tuple[int, ...]]
) -> Callable[[NDArray[np.float32]], Mapping[str, NDArray[np.float32]]]:
    """A run that writes into the same arrays each time.

    Arrays that onnxruntime makes anew for each image are memory that the system must map and clear: a
    third of the inference of a small network.
    """
    binding = session.io_binding()
    values = {name: np.empty(shape, np.float32) for name, shape in sizes.items()}
    for name, array in values.items():
        binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)

    def run(tensor: NDArray[np.float32]) -> Mapping[str, NDArray[np.float32]]:
        binding.bind_cpu_input(entry, np.ascontiguousarray(tensor))
        session.run_with_iobinding(binding)
        return {**values, entry: tensor}

    return run
