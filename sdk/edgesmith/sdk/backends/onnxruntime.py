"""onnxruntime: the CPU everywhere, CUDA where its GPU build is installed.

A session that cannot have the provider it was asked for runs on the CPU and says so in a log
line at most, so the providers that it really got are compared with those asked for.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

from edgesmith.sdk.backends.base import Array, Options
from edgesmith.sdk.backends.processor import has_integer_products
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.errors import BackendError, BindingError, MissingExtraError

log = logging.getLogger(__name__)
_INSTALL = "pip install 'edgesmith[runtime]' (CPU) or 'edgesmith[gpu]' (NVIDIA GPU)"
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
    return _open(bundle, variant, options, "cpu", ["CPUExecutionProvider"])


def open_cuda(bundle: Bundle, variant: str, options: Options) -> OnnxRuntimeBackend:
    """Load the variant on an NVIDIA GPU.

    Raises:
        BackendError: the session runs on something else.
    """
    cuda = ("CUDAExecutionProvider", {"device_id": options.device})
    return _open(bundle, variant, options, "cuda", [cuda, "CPUExecutionProvider"])


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


def _open(
    bundle: Bundle, variant: str, options: Options, name: str, providers: list[Any]
) -> OnnxRuntimeBackend:
    library = _library()
    settings = library.SessionOptions()
    settings.log_severity_level = _SEVERITY_ERROR
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
    detail = f"onnxruntime {library.__version__}, {got[0].removesuffix('ExecutionProvider')}"
    return OnnxRuntimeBackend(session, name, detail, variant)
