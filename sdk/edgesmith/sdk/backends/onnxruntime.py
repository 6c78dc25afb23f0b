"""onnxruntime: the CPU everywhere, CUDA and TensorRT where its GPU build is installed.

    cpu            the session as it is
    cuda           on our stream, page-locked memory and graph replay where pycuda is installed
                   (sdk/cuda/onnxruntime.py); without it the session as it is
    tensorrt-ep    onnxruntime builds and runs TensorRT engines inside of a session

A session that cannot have the provider it was asked for runs on the CPU and says so in a log
line at most, so the providers that it really got are compared with those asked for.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import numpy as np

from edgesmith.sdk.backends.base import Array, Backend, Options
from edgesmith.sdk.backends.processor import has_integer_products
from edgesmith.sdk.board.facts import cache_folder
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.cuda.backend import DeviceBackend
from edgesmith.sdk.cuda.context import Gpu, load_driver
from edgesmith.sdk.cuda.onnxruntime import CudaSession, OpenOutputsError, has_open_outputs, input_of
from edgesmith.sdk.errors import BackendError, BindingError, MissingExtraError

log = logging.getLogger(__name__)
_INSTALL = "pip install 'edgesmith[runtime]' (CPU) or 'edgesmith[gpu]' (NVIDIA GPU)"
_CPU = ("CPUExecutionProvider",)
_SEVERITY_ERROR = 3  # onnxruntime's scale: 0 verbose .. 4 fatal
# It rounds biases to integers where TensorRT keeps them in float, and beside FP16 scales it is wrong
# (onnxruntime 1.32: MobileNetV1's logits come out at a cosine of 0.21).
UNSOUND_OPTIMIZERS = ("WeightBiasQuantization",)


def cpu_unavailable() -> str | None:
    """Why the CPU provider cannot be had, or None."""
    return None if importlib.util.find_spec("onnxruntime") else f"onnxruntime is not installed: {_INSTALL}"


def cuda_unavailable() -> str | None:
    """Why the CUDA provider cannot be had, or None; a listed provider may still fail to load."""
    reason = cpu_unavailable()
    if reason is None and "CUDAExecutionProvider" not in _library().get_available_providers():
        reason = "this onnxruntime has no CUDA: install edgesmith[gpu] in place of edgesmith[runtime]"
    return reason


def open_cpu(bundle: Bundle, variant: str, options: Options) -> OnnxRuntimeBackend:
    """Load the variant on the CPU."""
    return _open(bundle, variant, options, "cpu", list(_CPU))


def tensorrt_ep_unavailable() -> str | None:
    """Why onnxruntime's TensorRT provider cannot be had, or None; a listed one may still fail to load."""
    reason = cpu_unavailable()
    if reason is None and "TensorrtExecutionProvider" not in _library().get_available_providers():
        reason = "this onnxruntime has no TensorRT: install edgesmith[gpu] in place of edgesmith[runtime]"
    return reason


def open_cuda(bundle: Bundle, variant: str, options: Options) -> Backend:
    """Load the variant on an NVIDIA GPU.

    Raises:
        BackendError: the session runs on something else.
        CudaError: pycuda is installed and cannot use the GPU.
    """
    library = _library()
    try:
        driver = load_driver()
    except MissingExtraError as error:
        log.info("frames and answers go through ordinary memory, without graphs: %s", error)
    else:
        try:
            return open_bound(bundle, variant, options, library=library, driver=driver)
        except OpenOutputsError as error:
            log.info("answers go through ordinary memory, without graphs: %s", error)
    return _open(bundle, variant, options, "cuda", [_cuda_provider(options), *_CPU])


def open_bound(bundle: Bundle, variant: str, options: Options, *, library: Any, driver: Any) -> DeviceBackend:
    """The variant on the CUDA provider, on a stream and memory of ours, with graph replay where it can.

    Args:
        bundle, variant, options: as of every backend.
        library: the module onnxruntime.
        driver: pycuda's driver module.

    Raises:
        OpenOutputsError: an output's shape is not known before a run.
        BackendError: the session runs on something else, or the graph cannot be loaded.
        CudaError: the GPU cannot be used.
    """
    manifest = bundle.manifest
    if options.graphs and manifest.preprocess.size is not None:
        # A graph with control flow, or with nodes on the CPU, is refused as late as in its first runs.
        shape = (manifest.batch.min, *manifest.preprocess.tensor_shape(1, 1))
        backend: DeviceBackend | None = None
        try:
            backend = _bound(bundle, variant, options, library, driver, graphs=True)
            for _ in range(2):
                backend.run(np.zeros(shape, np.uint8))
            return backend
        except OpenOutputsError:
            raise
        except BackendError as error:
            log.warning("%s: runs without a CUDA graph: %s", bundle.path, error)
            if backend is not None:
                backend.close()
    return _bound(bundle, variant, options, library, driver, graphs=False)


def _bound(
    bundle: Bundle, variant: str, options: Options, library: Any, driver: Any, *, graphs: bool
) -> DeviceBackend:
    gpu = Gpu(options.device, driver=driver)
    try:
        with gpu.current("onnxruntime cannot be opened on the GPU"):
            stream = gpu.stream()
            provider = _cuda_provider(options, stream.handle, graphs=graphs)
            session = _session(library, bundle, variant, options, [provider, *_CPU])
            if has_open_outputs(session):
                raise OpenOutputsError(f"{bundle.path}: an output's shape depends on the data")
            spec = input_of(session)
            shared = CudaSession(library, session, options.device, graphs=graphs)
        return DeviceBackend(
            name="cuda",
            detail=f"{_detail(library, session)}, {gpu.facts.name}{', graphs' if graphs else ''}",
            variant=variant,
            gpu=gpu,
            spec=spec,
            open_execution=shared.open,
            preprocess=bundle.manifest.preprocess,
            release=shared.close,
            # A session replays its graphs on one stream: another thread needs another session.
            clone=lambda: _bound(bundle, variant, options, library, driver, graphs=graphs),
            stream=stream,
        )
    except BaseException:
        gpu.close()
        raise


def open_tensorrt_ep(bundle: Bundle, variant: str, options: Options) -> OnnxRuntimeBackend:
    """Load the variant on TensorRT inside of onnxruntime, which builds its engines at the first run.

    Raises:
        BackendError: the session runs on something else.
    """
    folder = cache_folder() / "onnxruntime"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    precision = bundle.manifest.variants[variant].precision
    settings = {
        "device_id": str(options.device),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
        # Its networks are weakly typed: it has to be allowed what the graph says.
        "trt_fp16_enable": str(int(precision in ("fp16", "int8", "auto"))),
        "trt_int8_enable": str(int(precision in ("int8", "auto"))),
    }
    providers = [("TensorrtExecutionProvider", settings), _cuda_provider(options), *_CPU]
    return _open(bundle, variant, options, "tensorrt-ep", providers)


class OnnxRuntimeBackend:
    """One inference session, which its clones share: onnxruntime runs it from several threads at once."""

    def __init__(self, session: Any, name: str, detail: str, variant: str) -> None:
        self.name = name
        self.detail = detail
        self.variant = variant
        self._session: Any | None = session
        self._input = session.get_inputs()[0].name
        self._outputs = [output.name for output in session.get_outputs()]

    def run(self, images: Array) -> dict[str, Array]:
        """Outputs by name for a batch ``(N, ...)``.

        Raises:
            BindingError: the batch does not fit the graph's input.
            BackendError: closed already, or the run failed.
        """
        if self._session is None:
            raise BackendError("this backend was closed")
        try:
            values = self._session.run(self._outputs, {self._input: images})
        except Exception as error:
            # onnxruntime's exception classes are private to its C module; the text tells them apart.
            kind = BindingError if "INVALID_ARGUMENT" in str(error) else BackendError
            raise kind(f"onnxruntime could not run {images.dtype} {images.shape}: {error}") from error
        return dict(zip(self._outputs, values, strict=True))

    def clone(self) -> OnnxRuntimeBackend:
        """A backend for another thread, on the same session."""
        if self._session is None:
            raise BackendError("this backend was closed")
        return OnnxRuntimeBackend(self._session, self.name, self.detail, self.variant)

    def close(self) -> None:
        """Let go of the session."""
        self._session = None


def _library() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(f"onnxruntime is not installed: {_INSTALL}", extra="runtime") from error
    return onnxruntime


def _cuda_provider(
    options: Options, stream: int | None = None, *, graphs: bool = False
) -> tuple[str, dict[str, str]]:
    settings = {"device_id": str(options.device)}
    if stream is not None:
        settings |= {"user_compute_stream": str(stream), "enable_cuda_graph": str(int(graphs))}
    return "CUDAExecutionProvider", settings


def _open(
    bundle: Bundle, variant: str, options: Options, name: str, providers: list[Any]
) -> OnnxRuntimeBackend:
    library = _library()
    session = _session(library, bundle, variant, options, providers)
    return OnnxRuntimeBackend(session, name, _detail(library, session), variant)


def _detail(library: Any, session: Any) -> str:
    return (
        f"onnxruntime {library.__version__}, {session.get_providers()[0].removesuffix('ExecutionProvider')}"
    )


def _session(library: Any, bundle: Bundle, variant: str, options: Options, providers: list[Any]) -> Any:
    settings = library.SessionOptions()
    settings.log_severity_level = _SEVERITY_ERROR
    if bundle.manifest.batch.min != bundle.manifest.batch.max:
        # A plan of the memory is kept for every batch size seen, each with blocks of its own: YOLOX-nano with
        # batches of 1 to 8 took 170 MiB in place of 133 on the CPU, and was no faster for it.
        settings.enable_mem_pattern = False
    if options.threads is not None:
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
    if not has_integer_products():
        # Else 16-bit sums of uint8 x int8 products saturate: logits at 7 dB of signal to noise, not at 19.
        settings.add_session_config_entry("session.x64quantprecision", "1")
    graph = bundle.read(bundle.manifest.variants[variant].member)
    try:
        session = library.InferenceSession(
            graph, settings, providers=providers, disabled_optimizers=list(UNSOUND_OPTIMIZERS)
        )
    except Exception as error:
        raise BackendError(f"{bundle.path}: onnxruntime cannot load variant {variant!r}: {error}") from error
    asked = providers[0] if isinstance(providers[0], str) else providers[0][0]
    got = session.get_providers()
    if got[0] != asked:
        raise BackendError(
            f"onnxruntime was asked for {asked} and runs on {got[0]}: its CUDA libraries did not load; "
            "`edgesmith doctor` says what is missing, or use backend='cpu'"
        )
    return session
