# SPDX-License-Identifier: Apache-2.0
"""Requests, replies and flows.

A *flow* is a generator that performs one API call, however many requests and waits that takes:
it yields a `Request` and is sent the `Reply`, or yields a `Pause` and is told whether it was cut
short. It does no I/O, so the sync and the async driver run the same flow, and every policy (what
to retry, what an answer means) exists once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, Generator, Mapping, Optional, TypeVar, Union, cast
from urllib.parse import quote

import httpx

from .._version import __version__
from ..exceptions import AuthError

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """One HTTP request. At most one of ``json``, ``content`` and ``form`` is set."""

    method: str
    #: Below ``/v1``, already escaped: see `path`.
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    json: Union[Mapping[str, Any], str, None] = None
    content: Optional[bytes] = None
    form: Optional[Mapping[str, str]] = None
    files: Optional[Mapping[str, Any]] = None
    headers: Mapping[str, str] = field(default_factory=dict)
    #: Seconds of silence that are normal for this call, when more than the client's timeout.
    patience: float = 0.0


@dataclass(frozen=True)
class Reply:
    """An answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def ok(self) -> bool:
        """Whether the request did what it asked for."""
        return 200 <= self.status < 300


@dataclass(frozen=True)
class Pause:
    """A wait. ``cancel`` is an event of the driver's own kind that ends it early."""

    seconds: float
    cancel: Any = None


Step = Union[Request, Pause]
Flow = Generator[Step, Any, T]


def send(request: Request) -> Flow[Reply]:
    """Sends one request; an answer of any status is a reply."""
    return cast(Reply, (yield request))


def pause(seconds: float, cancel: Any = None) -> Flow[bool]:
    """Waits; true when ``cancel`` was set meanwhile."""
    return cast(bool, (yield Pause(seconds, cancel)))


def path(*segments: str) -> str:
    """A path of segments, each escaped so that none can add a segment or a query."""
    return "".join("/" + quote(str(segment), safe="") for segment in segments)


@dataclass
class Endpoint:
    """Turns a `Request` into the arguments of ``httpx``'s ``build_request``."""

    api_url: str
    api_key: Optional[str]
    timeout: float

    def arguments(self, request: Request) -> Dict[str, Any]:
        """Address, headers, body and time limits of one request."""
        if not self.api_key:
            raise AuthError(
                "PANDASTACK_API_KEY is required: set it, pass api_key=, or start a server on this "
                "machine, which writes its key to ~/.config/pandastack/config.json"
            )
        headers = {
            "Accept": "application/json",
            "Authorization": f"Bearer {self.api_key}",
            "User-Agent": f"pandastack-py/{__version__}",
            **request.headers,
        }
        silence = max(self.timeout, request.patience)
        arguments: Dict[str, Any] = {
            "method": request.method,
            "url": self._url(request.path),
            "headers": headers,
            # No limit on waiting for a free connection: parallel calls are the caller's choice.
            "timeout": httpx.Timeout(self.timeout, read=silence, write=silence, pool=None),
        }
        bodies = {
            "params": request.params or None,
            "json": request.json,
            "content": request.content,
            "data": request.form,
            "files": request.files,
        }
        arguments.update((name, body) for name, body in bodies.items() if body is not None)
        return arguments

    def _url(self, path: str) -> str:
        """Keeps a path prefix of the server's address and does not double its ``/v1``."""
        base = self.api_url if self.api_url.endswith("/v1") else self.api_url + "/v1"
        return base + path
