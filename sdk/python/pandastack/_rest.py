# SPDX-License-Identifier: Apache-2.0
"""Plain REST calls, for the parts of the API that are nothing more.

Apps, functions, schedules and databases are services that a server may or may not offer; one that
does not answers 404, which is `NotFoundError` here as everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Mapping, Optional

from ._core.answers import object_call, objects_call, void_call
from ._core.streams import BuildLines
from ._core.wire import Request, path

if TYPE_CHECKING:
    from .client import Client

Info = Dict[str, Any]

#: A service's log may be quiet for as long as one step of a build takes.
_LOG_PATIENCE = 900.0


def given(**fields: Any) -> Info:
    """The fields that the caller set."""
    return {name: value for name, value in fields.items() if value is not None}


class Rest:
    """Requests to paths that are given as segments below ``/v1``."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def object(
        self,
        method: str,
        *segments: str,
        json: Optional[Mapping[str, Any]] = None,
        params: Optional[Mapping[str, str]] = None,
        patience: float = 0.0,
    ) -> Info:
        """A call that answers with an object."""
        request = Request(
            method, path(*segments), json=json, params=params or {}, patience=patience
        )
        return self._client._run(object_call(request))

    def objects(self, *segments: str, key: str = "items") -> List[Info]:
        """A call that answers with objects, bare or under ``key``."""
        return self._client._run(objects_call(Request("GET", path(*segments)), key))

    def delete(self, *segments: str) -> None:
        """A deletion."""
        self._client._run(void_call(Request("DELETE", path(*segments))))

    def lines(self, *segments: str) -> Iterator[str]:
        """The lines of a log that is sent as events."""
        headers = {"Accept": "text/event-stream"}
        request = Request("GET", path(*segments), headers=headers, patience=_LOG_PATIENCE)
        lines = BuildLines()
        with self._client._stream(request) as chunks:
            for chunk in chunks:
                yield from lines.feed(chunk)
                if lines.ended:
                    return
