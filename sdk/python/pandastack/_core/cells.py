# SPDX-License-Identifier: Apache-2.0
"""Flows on code contexts: interpreters in a sandbox that keep their state between cells."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from ..exceptions import NotFoundError, ServerError
from ..records import Execution
from .answers import object_call, objects_call, raise_if_timeout, void_call
from .warmup import warmed_up
from .wire import Flow, Request, path

# What a server allows a cell that names no limit, and a moment for the answer.
_CELL_SECONDS = 30.0
_GRACE = 15.0


def open_context(sandbox_id: str, language: str) -> Flow[str]:
    """Starts an interpreter that keeps its state, and gives its id."""
    where = path("sandboxes", sandbox_id, "repl", "sessions")
    request = Request("POST", where, json={"language": language})
    answer = yield from warmed_up(lambda: object_call(request))
    if not answer.get("id"):
        raise ServerError(f"the answer holds no code context: {answer!r}")
    return str(answer["id"])


def list_contexts(sandbox_id: str) -> Flow[List[Dict[str, Any]]]:
    """The running interpreters."""
    where = path("sandboxes", sandbox_id, "repl", "sessions")
    return objects_call(Request("GET", where), "sessions", "items")


def run_cell(
    sandbox_id: str, context_id: str, code: str, timeout_seconds: Optional[float]
) -> Flow[Execution]:
    """Runs code in an interpreter."""
    body: Dict[str, Any] = {"code": code}
    if timeout_seconds is not None:
        body["timeout_ms"] = int(timeout_seconds * 1000)
    request = Request(
        "POST",
        path("sandboxes", sandbox_id, "repl", "sessions", context_id, "run"),
        json=body,
        patience=(timeout_seconds or _CELL_SECONDS) + _GRACE,
    )
    try:
        return Execution.from_dict((yield from object_call(request)))
    except ServerError as error:
        raise_if_timeout(error, code)
        raise


def close_context(sandbox_id: str, context_id: str) -> Flow[None]:
    """Ends an interpreter; one that is gone already is as good."""
    where = path("sandboxes", sandbox_id, "repl", "sessions", context_id)
    try:
        yield from void_call(Request("DELETE", where))
    except NotFoundError:
        return


def language_name(language: str) -> str:
    """The API's name of a language for code contexts."""
    name = language.lower()
    return "python" if name in ("py", "python3") else name
