# SPDX-License-Identifier: Apache-2.0
"""Flows on the ports of a sandbox and the addresses that lead to them."""

from __future__ import annotations

import os
from typing import Any, Dict, List, Optional, Sequence
from urllib.parse import urlsplit

from ..records import Port
from .answers import as_list, call, object_call, void_call
from .config import is_this_machine
from .wire import Flow, Request, path


def ports(sandbox_id: str) -> Flow[List[Port]]:
    """The ports that are listed or listening; some servers send bare numbers."""
    request = Request("GET", path("sandboxes", sandbox_id, "ports"))
    items = as_list((yield from call(request)), "ports")
    return [Port.from_dict(item if isinstance(item, dict) else {"port": item}) for item in items]


def expose_port(sandbox_id: str, port: int, label: Optional[str], public: bool) -> Flow[Port]:
    """Lists a port; what is not said to be public is private."""
    body: Dict[str, Any] = {"port": port}
    if label is not None:
        body["label"] = label
    if public:
        body["public"] = True
    where = path("sandboxes", sandbox_id, "ports")
    answer = yield from object_call(Request("POST", where, json=body))
    return Port.from_dict({**body, "source": "user", **answer})


def close_port(sandbox_id: str, port: int) -> Flow[None]:
    """Takes a port off the list."""
    return void_call(Request("DELETE", path("sandboxes", sandbox_id, "ports", str(port))))


def preview_token(
    sandbox_id: str, port: int, ttl_seconds: int, paths: Optional[Sequence[str]]
) -> Flow[Dict[str, Any]]:
    """A signed address of a port that needs no key."""
    body: Dict[str, Any] = {"port": port, "ttl_seconds": ttl_seconds}
    if paths is not None:
        body["paths"] = list(paths)
    return object_call(Request("POST", path("sandboxes", sandbox_id, "preview-token"), json=body))


def traffic_token(sandbox_id: str, rotate: bool) -> Flow[str]:
    """The token that opens every port of a sandbox; a new one voids all that were given out."""
    where = path("sandboxes", sandbox_id, "traffic-token")
    answer = yield from object_call(Request("POST" if rotate else "GET", where))
    return str(answer.get("traffic_token") or "")


def preview_url(
    sandbox_id: str, port: int, scheme: str, api_url: str, preview_host: Optional[str]
) -> str:
    """The address of a port's own site, ``{scheme}://{port}-{id}.{host}``.

    The host is ``preview_host``, else ``PANDASTACK_PREVIEW_HOST``, else the API's host without a
    leading ``api.``. A server on this machine shows its sandboxes below ``localhost``, at the port
    and with the scheme of its API, and so does a host that is given with them. It opens nothing: a port that is not public needs a key, or the address
    of a `preview_token`.
    """
    if not isinstance(port, int) or not 1 <= port <= 65535:
        raise ValueError(f"port must be 1-65535, got {port!r}")
    host = (preview_host or os.getenv("PANDASTACK_PREVIEW_HOST") or "").strip().lstrip(".")
    said, _, host = host.rpartition("://")
    host = host.rstrip("/")
    if not host:
        api = urlsplit(api_url)
        host = api.hostname or "localhost"
        if is_this_machine(host):
            said = api.scheme
            host = "localhost" if api.port is None else f"localhost:{api.port}"
        elif host.startswith("api."):
            host = host[len("api.") :]
    return f"{said or scheme}://{port}-{sandbox_id}.{host}"
