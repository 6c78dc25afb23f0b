"""Writes ``api_members.json``: which of TensorRT's members that we use each version has.

    python tests/sdk/backends/tensorrt/make_api_members.py FOLDER

FOLDER holds one JSON file a version, made by introspecting the real bindings: ``classes[NAME]`` with
``methods``, ``properties``, ``values`` (of an enum) and ``nested``, ``functions``, ``constants``. Of these
only the names stay that the code or the fake touches. The test beside it holds the code against the result,
and says when to run this again.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from edgesmith.sdk.testing import fake_builder, fake_enums, fake_runtime

HERE = Path(__file__).resolve().parent
CODE = HERE.parents[3] / "sdk/edgesmith/sdk/backends/tensorrt"
VERSIONS = ("10.3.0", "10.13.3", "10.16", "11.0", "11.4", "rtx-1.7")
# What the names of variables (or of attributes of `self`) stand for, by file.
BUILDING = {
    "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser", "config": "IBuilderConfig",
    "profile": "IOptimizationProfile", "value": "ITensor", "error": "ParserError", "layer": "ILayer",
    "timing": "ITimingCache", "levels": "ILogger.Severity",
}  # fmt: skip
RUNNING = {
    "runtime": "Runtime", "_runtime": "Runtime", "engine": "ICudaEngine", "_engine": "ICudaEngine",
    "context": "IExecutionContext", "_context": "IExecutionContext",
}  # fmt: skip
FILES = {"worker.py": BUILDING, "dla.py": BUILDING, "library.py": {}, "target.py": {}, "run.py": RUNNING}
# Classes of the fake and what they stand for.
FAKES: dict[type, str] = {
    fake_builder.Builder: "Builder",
    fake_builder.Network: "INetworkDefinition",
    fake_builder.Parser: "OnnxParser",
    fake_builder.ParserError: "ParserError",
    fake_builder.Profile: "IOptimizationProfile",
    fake_builder.TimingCache: "ITimingCache",
    fake_builder.Config: "IBuilderConfig",
    fake_builder.CalibratedConfig: "IBuilderConfig",
    fake_builder.RtxConfig: "IBuilderConfig",
    fake_builder.Layer: "ILayer",
    fake_builder.Tensor: "ITensor",
    fake_runtime.Runtime: "Runtime",
    fake_runtime.Engine: "ICudaEngine",
    fake_runtime.Context: "IExecutionContext",
}


def touched(path: Path, variables: dict[str, str]) -> Iterator[tuple[str, str, int]]:
    """(class, member, line) of each attribute of TensorRT's that a file names; class ``""``: the module."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        owner = node.value
        name = (
            owner.id
            if isinstance(owner, ast.Name)
            else owner.attr
            if isinstance(owner, ast.Attribute)
            else ""
        )
        if isinstance(owner, ast.Name) and name == "trt":
            yield "", node.attr, node.lineno
        elif isinstance(owner, ast.Attribute) and _is_trt(owner.value):
            yield owner.attr, node.attr, node.lineno
        elif name in variables and (not isinstance(owner, ast.Attribute) or _is_self(owner.value)):
            yield variables[name], node.attr, node.lineno


def _is_trt(node: ast.expr) -> bool:
    return (isinstance(node, ast.Name) and node.id == "trt") or (
        isinstance(node, ast.Attribute) and node.attr == "_trt" and _is_self(node.value)
    )


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


@cache
def public(kind: type) -> frozenset[str]:
    """Members that a class of the fake shows: methods, properties, and what its __init__ sets."""
    tree = ast.parse(Path(sys.modules[kind.__module__].__file__ or "").read_text())
    names = {name for name in dir(kind) if not name.startswith("_")}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name in {base.__name__ for base in kind.__mro__}:
            for part in ast.walk(node):
                if (
                    isinstance(part, ast.Attribute)
                    and isinstance(part.ctx, ast.Store)
                    and _is_self(part.value)
                ):
                    names.add(part.attr)
    return frozenset(name for name in names if not name.startswith("_"))


def wanted() -> dict[str, set[str]]:
    """All names that matter, by class."""
    names: dict[str, set[str]] = {}
    for file, variables in FILES.items():
        if (CODE / file).is_file():
            for owner, member, _ in touched(CODE / file, variables):
                names.setdefault(owner, set()).add(member)
    for kind, real in FAKES.items():
        names.setdefault(real, set()).update(public(kind))
    # Looked up by name at run time.
    names.setdefault("", set()).update(
        (
            "Builder",
            "OnnxParser",
            "Runtime",
            "ILogger",
            "Logger",
            "IProgressMonitor",
            "IInt8EntropyCalibrator2",
        )
    )
    names[""] |= {"ComputeCapability", "nptype", "CalibrationAlgoType", *fake_enums.FIXED}
    return names


def members(data: dict[str, Any], names: dict[str, set[str]]) -> dict[str, Any]:
    """Of one version: the names it has by class, and the enums with their numbers."""
    classes = data["classes"]
    found: dict[str, Any] = {"classes": {}, "enums": {}}
    everything = {*classes, *data["functions"], *data["constants"], "__version__"}
    for owner, wished in sorted(names.items()):
        if owner == "":
            have = everything
        else:
            outer, _, inner = owner.partition(".")
            entry = classes.get(outer, {})
            entry = (entry.get("nested") or {}).get(inner, {}) if inner else entry
            have = {
                m for part in ("methods", "properties", "values", "nested") for m in entry.get(part) or {}
            }
            have |= set(entry.get("constants") or {})
        found["classes"][owner] = sorted(wished & have)
    for name in (*fake_enums.FIXED, "BuilderFlag", "NetworkDefinitionCreationFlag", *fake_enums.RTX):
        if name in classes:
            found["enums"][name] = classes[name]["values"]
    if "CalibrationAlgoType" in classes:
        found["enums"]["CalibrationAlgoType"] = classes["CalibrationAlgoType"]["values"]
    found["enums"]["Severity"] = classes["ILogger"]["nested"]["Severity"]["values"]
    return found


def main(folder: Path) -> None:
    """Write the file."""
    names = wanted()
    table: dict[str, Any] = {
        v: members(json.loads((folder / f"{v}.json").read_text()), names) for v in VERSIONS
    }
    table["touched"] = {owner: sorted(wished) for owner, wished in sorted(names.items())}
    text = json.dumps(table, separators=(",", ":"), sort_keys=True)
    (HERE / "api_members.json").write_text(text.replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
