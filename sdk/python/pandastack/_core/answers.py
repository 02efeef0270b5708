# SPDX-License-Identifier: Apache-2.0
"""From a reply to a value or to the exception that a caller sees."""

from __future__ import annotations

import json
from typing import Any, Dict, List, Type

from ..exceptions import (
    AuthError,
    BadRequestError,
    NotFoundError,
    PandastackError,
    SandboxTimeout,
    ServerError,
)
from .wire import Flow, Reply, Request, send

# An error page of something between us and the server can be long.
_MAX_MESSAGE = 1000


def decode(reply: Reply) -> Any:
    """The body as JSON if it is JSON, else as text if it says so, else as bytes."""
    if not reply.body:
        return None
    try:
        return json.loads(reply.body)
    except ValueError:
        pass
    if reply.headers.get("content-type", "").startswith("text/"):
        return reply.body.decode("utf-8", "replace")
    return reply.body


def error_text(reply: Reply) -> str:
    """What went wrong, in the server's words where it used any."""
    value = decode(reply)
    if isinstance(value, dict):
        for key in ("error", "message", "detail"):
            if value.get(key):
                return str(value[key])
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str) and value.strip():
        return value.strip()[:_MAX_MESSAGE]
    return f"PandaStack API returned HTTP {reply.status}"


def error_of(reply: Reply) -> PandastackError:
    """The exception for an answer that is not a success."""
    kind: Type[PandastackError] = BadRequestError
    if reply.status == 401:
        kind = AuthError
    elif reply.status == 404:
        kind = NotFoundError
    elif reply.status >= 500:
        kind = ServerError
    error = kind(error_text(reply))
    error.status_code = reply.status
    return error


def call(request: Request) -> Flow[Reply]:
    """Sends one request and raises unless it succeeded."""
    reply = yield from send(request)
    if not reply.ok:
        raise error_of(reply)
    return reply


def as_object(reply: Reply) -> Dict[str, Any]:
    """The JSON object of a reply; an empty body counts as an empty object."""
    value = decode(reply)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _unexpected(reply, "an object")
    return value


def as_list(reply: Reply, *keys: str) -> List[Any]:
    """The JSON array of a reply, bare or under one of ``keys``; null counts as empty."""
    value = decode(reply)
    if isinstance(value, dict):
        value = next((value[key] for key in keys if value.get(key) is not None), None)
    if value is None:
        return []
    if not isinstance(value, list):
        raise _unexpected(reply, "a list")
    return value


def as_objects(reply: Reply, *keys: str) -> List[Dict[str, Any]]:
    """The objects of a JSON array; anything else in it is dropped."""
    return [dict(item) for item in as_list(reply, *keys) if isinstance(item, dict)]


def object_call(request: Request) -> Flow[Dict[str, Any]]:
    """`call`, then `as_object`."""
    return as_object((yield from call(request)))


def objects_call(request: Request, *keys: str) -> Flow[List[Dict[str, Any]]]:
    """`call`, then `as_objects`."""
    return as_objects((yield from call(request)), *keys)


def void_call(request: Request) -> Flow[None]:
    """`call`, for its effect."""
    yield from call(request)


def raise_if_timeout(error: ServerError, label: str) -> None:
    """Raises `SandboxTimeout` when a 5xx says that the command ran out of time.

    An "i/o timeout" is the network's and not the command's.
    """
    text = str(error).lower()
    if "i/o timeout" in text or not ("timeout" in text or "deadline exceeded" in text):
        return
    timeout = SandboxTimeout(f"command timed out: {label}")
    timeout.status_code = error.status_code
    raise timeout from error


def _unexpected(reply: Reply, wanted: str) -> ServerError:
    error = ServerError(f"expected {wanted} from the PandaStack API, got {reply.body[:80]!r}")
    error.status_code = reply.status
    return error
