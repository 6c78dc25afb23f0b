"""The tree of errors is the one that is drawn at the top of its file."""

from __future__ import annotations

import builtins
import inspect
import re

import pytest

from edgesmith.sdk import errors
from edgesmith.sdk.errors import EdgesmithError

CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, EdgesmithError)
}
STATUSES = {
    2: {"ConfigError", "MissingExtraError", "RecipeError", "DeviceProfileError"},
    3: {
        "SourceError", "CalibrationError", "BundleError", "BundleMissingError", "DataError", "SinkError",
        "CameraError", "CameraLost", "StaleFrameError", "CameraFormatError",
    },
    4: {"ExportError", "UnsupportedOperatorError", "ParityError", "AccuracyBudgetError"},
    5: {
        "EdgesmithError", "BackendError", "BuildError", "IncompatibleEngineError", "BindingError",
        "CudaError",
    },
}  # fmt: skip


def drawn() -> dict[str, tuple[str | None, str | None]]:
    """Name to (parent, builtin) as in the module's docstring."""
    tree: dict[str, tuple[str | None, str | None]] = {}
    above: list[str] = []
    assert errors.__doc__ is not None
    for line in errors.__doc__.splitlines():
        found = re.match(r"    ((?:[|`] {3}| {4}|[|`]-- )*)([A-Z]\w+)(?: \((\w+)\))?(?: {2,}.*)?$", line)
        if found is None:
            continue
        depth = len(found[1]) // 4
        del above[depth:]
        tree[found[2]] = (above[-1] if above else None, found[3])
        above.append(found[2])
    return tree


def test_the_drawing_is_the_tree() -> None:
    real = {}
    for name, kind in CLASSES.items():
        ours = [b.__name__ for b in kind.__bases__ if issubclass(b, EdgesmithError)]
        others = [
            b.__name__ for b in kind.__bases__ if not issubclass(b, EdgesmithError) and b is not Exception
        ]
        assert len(ours) <= 1
        assert len(others) <= 1
        assert all(hasattr(builtins, other) for other in others)
        real[name] = (ours[0] if ours else None, others[0] if others else None)
    assert drawn() == real
    assert list(drawn()) == list(CLASSES), "the drawing and the classes stand in one order"


def test_each_error_has_its_exit_status() -> None:
    assert {n: kind.exit_status for n, kind in CLASSES.items()} == {
        name: status for status, names in STATUSES.items() for name in names
    }


@pytest.mark.parametrize("name", CLASSES)
def test_each_error_says_when(name: str) -> None:
    assert len((CLASSES[name].__doc__ or "").split()) >= 4


def test_what_a_caller_branches_on_is_an_attribute() -> None:
    assert errors.MissingExtraError("m", extra="video").extra == "video"
    assert errors.RecipeError("m").key is None
    assert errors.RecipeError("m", key="input.size").key == "input.size"
    source = errors.SourceError("m", missing=["a"], unexpected=["b", "c"])
    assert (source.missing, source.unexpected) == (("a",), ("b", "c"))
    operator = errors.UnsupportedOperatorError("m", operator="aten::fft_rfft", module="head.fft")
    assert (operator.operator, operator.module) == ("aten::fft_rfft", "head.fft")
    assert errors.ParityError("m", figures={"max_abs": 0.5}).figures == {"max_abs": 0.5}
    for error in (source, operator, errors.BundleMissingError("m"), errors.DeviceProfileError("m")):
        assert str(error) == "m"
