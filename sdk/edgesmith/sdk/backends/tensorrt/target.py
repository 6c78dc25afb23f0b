"""What an engine is bound to: the library, the GPU, the system's release, the driver."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path
from typing import Any

import msgspec

from edgesmith.sdk.backends.tensorrt.library import VARIABLE, is_rtx
from edgesmith.sdk.board.facts import l4t_release

DRIVER = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One device with its software.

    Attributes:
        library: ``tensorrt`` or ``tensorrt-rtx``.
        tensorrt: its version.
        gpu: the GPU's name, empty where there is no CUDA driver.
        compute_capability: such as ``8.7``, empty where it is not known.
        l4t: the Jetson's release, empty on other machines.
        driver: the CUDA driver's version, empty where there is none.
    """

    library: str
    tensorrt: str
    gpu: str = ""
    compute_capability: str = ""
    l4t: str = ""
    driver: str = ""

    @property
    def shared_memory(self) -> bool:
        """True where CPU and GPU share the RAM: on a Jetson."""
        return bool(self.l4t) or self.compute_capability in ("7.2", "8.7", "11.0")


def detect_target(trt: Any, device: int = 0) -> Target:
    """The target of this machine; of the machine that the library simulates, where it is a fake."""
    simulated = getattr(trt, "simulated", None)
    library = "tensorrt-rtx" if is_rtx(trt) else "tensorrt"
    if simulated is not None:
        return Target(
            library=library,
            tensorrt=str(trt.__version__),
            gpu=simulated.gpu,
            compute_capability=".".join(str(n) for n in simulated.compute_capability),
            l4t=simulated.l4t,
            driver=simulated.driver,
        )
    gpu, capability, driver = _cuda(device)
    return Target(
        library=library,
        tensorrt=str(trt.__version__),
        gpu=gpu,
        compute_capability=capability,
        l4t=l4t_release() or "",
        driver=driver,
    )


def no_driver() -> bool:
    """Whether there is no CUDA driver, nor a simulated one."""
    if os.environ.get(VARIABLE):
        return False
    try:
        ctypes.CDLL(DRIVER)
    except OSError:
        return True
    return False


def _cuda(device: int) -> tuple[str, str, str]:
    """Name, compute capability and driver, asked of the driver itself: no context is made."""
    try:
        cuda = ctypes.CDLL(DRIVER)
    except OSError:
        return "", "", ""
    number, handle = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(number))
    driver = f"{number.value // 1000}.{number.value % 1000 // 10}"
    module = kernel_driver()
    if module:
        driver = f"{driver} ({module})"
    name = ctypes.create_string_buffer(256)
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(handle), device):
        return "", "", driver
    if cuda.cuDeviceGetName(name, len(name), handle):
        return "", "", driver
    parts = []
    for attribute in (_MAJOR, _MINOR):
        if cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, handle):
            return name.value.decode(errors="replace"), "", driver
        parts.append(str(number.value))
    return name.value.decode(errors="replace"), ".".join(parts), driver


def kernel_driver(path: Path = Path("/proc/driver/nvidia/version")) -> str:
    """The kernel module's version, which changes more often than the CUDA version that it offers."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return ""
    found = re.search(r"(?:Module|x86_64|aarch64)\s+(\d+\.\d[\d.]*)", text)
    return found[1] if found else ""
