# SPDX-License-Identifier: Apache-2.0
"""Everything public in the published package is here too.

``PANDASTACK_PUBLISHED_SITE`` names a directory that holds the published ``pandastack`` 0.10.0 and
what it needs: ``pip install --target DIR pandastack==0.10.0``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest

HERE = Path(__file__).parent

Surface = Dict[str, Any]

# What differs: where the default is a server, it is one on this machine.
ALLOWED_DEFAULTS = {
    ("pandastack.CmaConfig", "__init__", "pandastack_api"),
    ("pandastack.cma.CmaConfig", "__init__", "pandastack_api"),
}


def surface(site: Path) -> Surface:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    ran = subprocess.run(
        [sys.executable, str(HERE / "surface.py")],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    printed: Surface = json.loads(ran.stdout)
    return printed


@pytest.fixture(scope="module")
def published() -> Surface:
    site = os.getenv("PANDASTACK_PUBLISHED_SITE")
    if not site:
        pytest.skip("PANDASTACK_PUBLISHED_SITE does not name the published package's directory")
    return surface(Path(site))


@pytest.fixture(scope="module")
def ours() -> Surface:
    return surface(HERE.parent)


def test_our_own_surface_can_be_printed(ours: Surface) -> None:
    assert "create" in ours["modules"]["pandastack"]["Sandbox"]["class"]["members"]


def test_names(published: Surface, ours: Surface) -> None:
    assert set(published["modules"]) <= set(ours["modules"])
    assert set(published["all"]) <= set(ours["all"])
    assert set(published["client"]) <= set(ours["client"])
    assert sum(1 for _ in names(published, ours)) > 60


def test_classes(published: Surface, ours: Surface) -> None:
    for where, theirs, mine in names(published, ours):
        if "class" not in theirs:
            continue
        theirs, mine = theirs["class"], mine["class"]
        assert set(theirs["bases"]) <= set(mine["bases"]), where
        assert set(theirs["members"]) <= set(mine["members"]), where
        fields = [name for name in theirs["fields"] if not name.startswith("_")]
        assert mine["fields"][: len(fields)] == fields, where


def test_parameters(published: Surface, ours: Surface) -> None:
    compared = 0
    for where, theirs, mine in functions(published, ours):
        places = {p["name"]: place for place, p in enumerate(mine)}
        for place, parameter in enumerate(theirs):
            name, kind = parameter["name"], parameter["kind"]
            if name.startswith("_"):
                continue
            assert name in places, (*where, name)
            our = mine[places[name]]
            assert our["kind"] == kind, (*where, name)
            assert kind != "POSITIONAL_OR_KEYWORD" or places[name] == place, (*where, name)
            if (*where, name) not in ALLOWED_DEFAULTS:
                assert our["default"] == parameter["default"], (*where, name)
            compared += 1
        # What we added must not be in the way of a call that was right before.
        known = {parameter["name"] for parameter in theirs}
        for parameter in mine:
            optional = parameter["default"] is not None or parameter["kind"].startswith("VAR_")
            assert parameter["name"] in known or optional, (*where, parameter["name"])
    assert compared > 300


def names(published: Surface, ours: Surface) -> Iterator[Tuple[str, Surface, Surface]]:
    """What each public module defines, and everything that the package itself offers."""
    for module, found in published["modules"].items():
        for name, theirs in found.items():
            if module == "pandastack" or theirs["defined_here"]:
                mine = ours["modules"][module].get(name)
                assert mine is not None, f"{module}.{name}"
                yield f"{module}.{name}", theirs, mine


def functions(
    published: Surface, ours: Surface
) -> Iterator[Tuple[Tuple[str, ...], List[Any], List[Any]]]:
    """Every function and method that has a signature in both."""
    for where, theirs, mine in names(published, ours):
        if theirs.get("function") and mine.get("function"):
            yield (where,), theirs["function"], mine["function"]
        for member, signature in theirs.get("class", {}).get("members", {}).items():
            our = mine["class"]["members"][member]
            if isinstance(signature, list) and isinstance(our, list) and not builtin(signature):
                yield (where, member), signature, our


def builtin(signature: List[Any]) -> bool:
    """Whether a method is one of Python's own, which takes anything."""
    return any(parameter["kind"] == "POSITIONAL_ONLY" for parameter in signature)
