# SPDX-License-Identifier: Apache-2.0
"""Flows on what a sandbox may reach, and on what it tried to."""

from __future__ import annotations

import json
from typing import Any, Dict, Iterator, List, Optional

from ..exceptions import ServerError
from ..records import Egress
from .answers import call, decode, objects_call
from .commands import STREAM_PATIENCE
from .sse import SseDecoder
from .wire import Flow, Reply, Request, path


def get(sandbox_id: str) -> Flow[Egress]:
    """The policy in force."""
    return _policy((yield from call(Request("GET", path("sandboxes", sandbox_id, "egress")))))


def put(sandbox_id: str, policy: Egress) -> Flow[Egress]:
    """Replaces the policy."""
    request = Request("PUT", path("sandboxes", sandbox_id, "egress"), json=body(policy))
    return _policy((yield from call(request)))


def body(policy: Egress) -> Egress:
    """A policy as it is sent. What means nothing here could mean anything to a server."""
    if isinstance(policy, str):
        return policy
    try:
        return dict(policy)
    except (TypeError, ValueError):
        raise TypeError('egress is "none" or a mapping with a list "allow"') from None


def log(sandbox_id: str, tail: Optional[int], after: Optional[int]) -> Flow[List[Dict[str, Any]]]:
    """The decisions that are kept."""
    return objects_call(_log_request(sandbox_id, {"tail": tail, "after": after}), "entries")


def follow_request(sandbox_id: str, tail: Optional[int], after: Optional[int]) -> Request:
    """The request whose answer is decisions as events."""
    numbers = {"tail": tail, "after": after}
    return _log_request(sandbox_id, numbers, {"follow": "true"}, STREAM_PATIENCE)


class Decisions:
    """The decisions of a followed log."""

    def __init__(self) -> None:
        self._decoder = SseDecoder()

    def feed(self, chunk: bytes) -> Iterator[Dict[str, Any]]:
        """The decisions that became complete."""
        for event in self._decoder.feed(chunk):
            try:
                entry = json.loads(event.data)
            except ValueError:
                continue
            if not isinstance(entry, dict):
                continue
            if event.name == "error":
                raise ServerError(str(entry.get("error") or "egress log stream failed"))
            yield entry


def _log_request(
    sandbox_id: str,
    numbers: Dict[str, Optional[int]],
    params: Optional[Dict[str, str]] = None,
    patience: float = 0.0,
) -> Request:
    given = {name: str(number) for name, number in numbers.items() if number is not None}
    return Request(
        "GET",
        path("sandboxes", sandbox_id, "egress", "log"),
        params={**given, **(params or {})},
        headers={"Accept": "text/event-stream"} if params else {},
        patience=patience,
    )


def _policy(reply: Reply) -> Egress:
    value = decode(reply)
    if not isinstance(value, (str, dict)):
        raise ServerError(f"the answer holds no policy: {reply.body[:80]!r}")
    return value
