"""What a DLA core needs from a bundle: TensorRT up to 10.7 programs it by calibrator, not by Q/DQ pairs."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from edgesmith.calibration.cache_file import write_cache
from edgesmith.converters.passes.strip_qdq import StripQdq
from edgesmith.converters.recipe import Recipe
from edgesmith.device_profiles import DeviceProfile
from edgesmith.sdk.errors import RecipeError

CACHE, MODEL = "calibration.cache", "model.dla.onnx"
LAST = (10, 7)  # the last TensorRT 10 with DLA


def tensorrt_for_dla(recipe: Recipe, device: DeviceProfile) -> str:
    """The version of TensorRT whose calibration cache the device reads.

    Raises:
        RecipeError: the device has no such DLA core, or none that is programmed this way.
    """
    core = recipe.target.dla
    cores = int(device.dla_cores.value) if device.dla_cores is not None else 0
    if core is None or not 0 <= core < cores:
        have = f"has {cores} DLA cores, numbered from 0" if cores else "has no DLA core"
        raise RecipeError(
            f"recipe: target.dla: {core}: {device.title} {have}; take the key out or name another "
            "target.device",
            key="target.dla",
        )
    for software in device.software:
        major, minor = (int(part) for part in software.tensorrt.split(".")[:2])
        if software.dla and (major, minor) <= LAST:
            return software.tensorrt
    raise RecipeError(
        f"recipe: target.dla: no TensorRT for {device.title} programs its DLA by calibration cache; take the "
        "key out: newer versions read the Q/DQ graph",
        key="target.dla",
    )


def dla_members(plain: onnx.ModelProto, version: str) -> dict[str, bytes]:
    """The graph without its pairs, and the scales that they held.

    Args:
        plain: the quantized graph without arithmetic in front of a rounding, the rest in float32.
        version: TensorRT's, such as ``10.3.0``.
    """
    result = StripQdq()(ir.serde.deserialize_model(plain))
    model = ir.to_proto(result.model)
    return {
        CACHE: write_cache(result.scales, version=version).encode(),
        MODEL: model.SerializeToString(deterministic=True),
    }
