"""``torchvision:NAME`` and ``timm:NAME`` in place of a recipe: what the library knows of its model.

That is the task, the input's size and preprocess, and the names of the classes. Trained weights come from a
file, from the cache of an earlier fetch, or over the network where the user asked for that.
"""

from __future__ import annotations

import importlib
import logging
import math
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgesmith.converters.recipe import Recipe
from edgesmith.converters.recipe_keys import from_here, put_at, value_at
from edgesmith.sdk.errors import SourceError
from edgesmith.sdk.manifest import Task
from edgesmith.sdk.replacing import replaced

log = logging.getLogger(__name__)
REACH_S = 5.0  # how long a server may take to answer at all
_ZOOS = ("torchvision:", "timm:")
# Networks whose trained form takes its input in [-1, 1], whatever the library's transform says: it is turned
# back inside of the network, which a network without the library's own weights does not do.
_IN_ONE = frozenset({"googlenet", "inception_v3"})
# torchvision's detectors by how their names begin: the side of a square input where they have one of their
# own, and the thresholds that their builders set.
_DETECTORS: dict[str, tuple[int | None, dict[str, Any]]] = {
    "ssd300": (300, {"iou": 0.45, "evaluation_score": 0.01, "max_detections": 200}),
    "ssdlite320": (320, {"iou": 0.55, "evaluation_score": 0.001, "max_detections": 300}),
    "retinanet": (None, {"iou": 0.5, "evaluation_score": 0.05, "max_detections": 300}),
    "fcos": (None, {"iou": 0.6, "evaluation_score": 0.2, "max_detections": 100}),
    "fasterrcnn": (None, {"iou": 0.5, "evaluation_score": 0.05, "where": "graph"}),
    "maskrcnn": (None, {"iou": 0.5, "evaluation_score": 0.05, "where": "graph"}),
}
_FILTERS = {"bilinear": "linear", "bicubic": "cubic", "nearest": "nearest"}


def is_shorthand(text: str) -> bool:
    """Whether a command's argument names a model of a zoo and no file."""
    return text.startswith(_ZOOS)


def recipe_of(text: str, overrides: Mapping[str, Any], *, fetch: bool = False) -> Recipe:
    """The recipe that a command's argument means: that of a file, or of a zoo's model.

    Args:
        text: a recipe file, ``torchvision:NAME`` or ``timm:NAME``.
        overrides: values by dotted key in place of the file's or the library's.
        fetch: whether trained weights may be fetched over the network.

    Raises:
        RecipeError: the recipe cannot be used.
        SourceError: there is no such model, or it has no weights here.
        MissingExtraError: the zoo is not installed.
    """
    if not is_shorthand(text):
        return Recipe.from_toml(text, overrides)
    table = table_of(text)
    for key, value in overrides.items():
        put_at(table, key, from_here(key, value))
    if value_at(table, "model.weights") is None:
        put_at(table, "model.weights", str(weights_of(text, fetch=fetch)))
    return Recipe.from_dict(table, where=text)


def table_of(reference: str) -> dict[str, Any]:
    """A recipe's tables as the library would write them, without weights and images.

    Raises:
        SourceError: there is no such model, or it is not one of pictures.
        MissingExtraError: the zoo is not installed.
    """
    from edgesmith.converters.sources.zoo import found

    zoo, name, library = found(reference)
    table = _of_torchvision(library, name) if zoo == "torchvision" else _of_timm(library, name)
    return {**table, "model": {"zoo": reference, **table.get("model", {})}}


def _of_torchvision(library: Any, name: str) -> dict[str, Any]:
    kinds: dict[str, Task] = {"detection": "detect", "segmentation": "segment"}
    kind = library.get_model_builder(name).__module__.split(".")[2]
    if kind in ("quantization", "video", "optical_flow"):
        raise SourceError(
            f"torchvision:{name} is a model of {kind.replace('_', ' ')}, which is not converted"
        )
    trained = library.get_model_weights(name)
    weights = trained.DEFAULT
    if kind == "detection":
        return _torchvision_detector(name, weights)
    preset = weights.transforms()
    task = kinds.get(kind, "classify")
    given: dict[str, Any] = {
        "mean": list(preset.mean),
        "std": list(preset.std),
        "interpolation": _FILTERS[preset.interpolation.value],
        "antialias": True,
        "rounding": "floor",
    }
    if name in _IN_ONE:
        given |= {"mean": 0.5, "std": 0.5}
    if task == "segment":
        given["size"] = [preset.resize_size[0]] * 2
    else:
        crop, side = preset.crop_size[0], preset.resize_size[0]
        given |= {"size": [crop, crop], "shorter_side": side}
    return {"task": task, "labels": list(weights.meta["categories"]), "input": given}


def _torchvision_detector(name: str, weights: Any) -> dict[str, Any]:
    """The network normalizes by itself; its own resizing is the recipe's part."""
    family = next((known for known in _DETECTORS if name.startswith(known)), None)
    if family is None:
        raise SourceError(f"torchvision:{name} is a detector of a kind that is not converted")
    side, suppression = _DETECTORS[family]
    if name.endswith("_320_fpn"):
        side = 320
    given: dict[str, Any] = {"size": [480, 640] if side is None else [side, side]}
    if family.startswith("ssd"):
        given["fit"] = "stretch"
    log.info("torchvision:%s: input.size %s; input.size takes any other", name, given["size"])
    return {
        "task": "detect",
        "labels": [text for text in weights.meta["categories"] if text != "__background__"],
        "model": {"head": "torchvision"},
        "input": given,
        "nms": {"classes": "all", **suppression},
    }


def _of_timm(library: Any, name: str) -> dict[str, Any]:
    config = library.get_pretrained_cfg(name)
    read = _timm_data().resolve_data_config(pretrained_cfg=config.to_dict())
    channels, rows, columns = read["input_size"]
    if channels != 3:
        raise SourceError(f"timm:{name} takes {channels} channels, a picture has 3")
    given: dict[str, Any] = {
        "size": [rows, columns],
        "mean": list(read["mean"]),
        "std": list(read["std"]),
        "interpolation": _FILTERS.get(read["interpolation"], "cubic"),
        "antialias": True,
        "rounding": "floor",
    }
    mode = read["crop_mode"]
    if mode == "squash":
        given["fit"] = "stretch"
    elif mode == "border":
        given |= {"fit": "letterbox", "pad": round(255 * sum(read["mean"]) / 3)}
    else:
        given |= {"fit": "resize-crop", "shorter_side": math.floor(max(rows, columns) / read["crop_pct"])}
    table: dict[str, Any] = {"task": "classify" if config.num_classes else "tensor", "input": given}
    names = _timm_names(config)
    return {**table, "labels": names} if names else table


def _timm_data() -> Any:
    return importlib.import_module("timm.data")


def _timm_names(config: Any) -> list[str]:
    """Class names of ImageNet and its relatives; empty where the number of classes fits none."""
    data = _timm_data()
    if config.label_names:
        return list(config.label_names)
    subset = data.infer_imagenet_subset(config.to_dict())
    names = list(data.ImageNetInfo(subset).label_descriptions()) if subset else []
    return names if len(names) == config.num_classes else []


def weights_of(reference: str, *, fetch: bool) -> Path:
    """The file of a model's trained weights: fetched before, or fetched now.

    Raises:
        SourceError: it is not here and may not be fetched, or cannot be; the message has the command.
    """
    from edgesmith.converters.sources.zoo import found, how_to_fetch
    from edgesmith.sdk.board.facts import cache_folder

    zoo, name, library = found(reference)
    path = cache_folder() / "zoo" / f"{zoo}-{name}.safetensors"
    if path.is_file():
        return path
    if not fetch:
        raise SourceError(
            f"{reference}: its trained weights are not on this machine: add --fetch to download them once, "
            f"or give --model.weights FILE, made elsewhere by {how_to_fetch(zoo, name)}"
        )
    address = _address(zoo, name, library)
    reason = _unreachable(address)
    if reason is not None:
        host = urllib.parse.urlsplit(address).hostname
        raise SourceError(
            f"{reference}: trained weights cannot be fetched, {host} does not answer ({reason}). On a "
            f"machine with a network: {how_to_fetch(zoo, name)}; then give --model.weights {name}.pt here"
        )
    try:
        state = _fetched(zoo, name, library)
    except Exception as error:
        # The libraries pass on whatever their downloaders raise.
        raise SourceError(f"{reference}: trained weights cannot be fetched: {error}") from error
    _keep(state, path)
    return path


def _address(zoo: str, name: str, library: Any) -> str:
    if zoo == "torchvision":
        return str(library.get_model_weights(name).DEFAULT.url)
    config = library.get_pretrained_cfg(name)
    return f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else str(config.url)


def _unreachable(address: str) -> str | None:
    """Why a server cannot be asked, None where it answers, in whatever words."""
    outcome: list[str | None] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=REACH_S):
                outcome.append(None)
        except urllib.error.HTTPError:
            outcome.append(None)
        except (OSError, ValueError) as error:
            outcome.append(str(getattr(error, "reason", error)))

    # In a thread: looking up a name does not keep to any timeout.
    thread = threading.Thread(target=ask, name="zoo-reach", daemon=True)
    thread.start()
    thread.join(REACH_S)
    return outcome[0] if outcome else f"nothing came within {REACH_S:g} s"


def _fetched(zoo: str, name: str, library: Any) -> Mapping[str, Any]:
    if zoo == "torchvision":
        state: Mapping[str, Any] = library.get_model_weights(name).DEFAULT.get_state_dict(
            progress=False, check_hash=True
        )
        return state
    own: Mapping[str, Any] = library.create_model(name, pretrained=True).state_dict()
    return own


def _keep(state: Mapping[str, Any], path: Path) -> None:
    """Write whole or not at all."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    # Tensors that share memory are written one by one.
    tensors = {key: value.contiguous().clone() for key, value in state.items()}
    with replaced(path) as temporary:
        save_file(tensors, temporary)
