# SPDX-License-Identifier: Apache-2.0
"""Prints the public surface of the ``pandastack`` package on the path, as JSON.

Run as a program: two packages of one name do not fit into one process.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import pkgutil
from types import ModuleType
from typing import Any, Dict, List, Optional

Signature = Optional[List[Dict[str, Any]]]


def signature_of(function: Any) -> Signature:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    return [
        {
            "name": p.name,
            "kind": p.kind.name,
            # Enough to compare constants; objects that print their address are "set".
            "default": None if p.default is p.empty else plain(p.default),
        }
        for p in parameters
    ]


def plain(value: Any) -> str:
    text = repr(value)
    return "set" if " at 0x" in text or "factory" in text else text


def class_of(cls: Any) -> Dict[str, Any]:
    members: Dict[str, Any] = {}
    for name in dir(cls):
        if name.startswith("_") and name not in ("__enter__", "__exit__", "__init__"):
            continue
        member = inspect.getattr_static(cls, name)
        if isinstance(member, property):
            members[name] = "property"
        elif callable(getattr(cls, name)):
            members[name] = signature_of(getattr(cls, name))
    return {
        "bases": [base.__name__ for base in cls.__mro__],
        "fields": [f.name for f in dataclasses.fields(cls)]
        if dataclasses.is_dataclass(cls)
        else [],
        "members": members,
    }


def surface_of(module: ModuleType, package: str) -> Dict[str, Any]:
    found: Dict[str, Any] = {}
    for name, value in vars(module).items():
        if name.startswith("_") or not callable(value):
            continue
        if not str(getattr(value, "__module__", "")).startswith(package):
            continue
        kind, detail = ("class", class_of) if inspect.isclass(value) else ("function", signature_of)
        found[name] = {kind: detail(value), "defined_here": value.__module__ == module.__name__}
    return found


def main() -> None:
    package = importlib.import_module("pandastack")
    modules = {"pandastack": surface_of(package, "pandastack")}
    for info in pkgutil.iter_modules(package.__path__):
        if not info.name.startswith("_"):
            module = importlib.import_module(f"pandastack.{info.name}")
            modules[module.__name__] = surface_of(module, "pandastack")
    client = package.Client(api_key="pds_x")
    attributes = sorted(name for name in vars(client) if not name.startswith("_"))
    exported = sorted(package.__all__)
    print(json.dumps({"modules": modules, "all": exported, "client": attributes}))


if __name__ == "__main__":
    main()
