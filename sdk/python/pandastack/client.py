# SPDX-License-Identifier: Apache-2.0
"""The client: one server, one key, one pool of connections. Safe to share between threads."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Type

import httpx

from ._core import accounts, sandboxes
from ._core.answers import call, decode
from ._core.capacity import (
    DEFAULT_MAX_CREATE_RETRY_SECONDS,
    CreateRetryEvent,
    Patience,
    budget_seconds,
)
from ._core.config import DEFAULT_API_URL, Settings
from ._core.wire import Endpoint, Flow, Request, T
from ._drive import CancelEvent, Driver, check_cancel_event
from .apps import AppsAPI
from .databases import DatabasesAPI
from .functions import FunctionsAPI
from .records import Egress
from .sandbox import Sandbox
from .schedules import SchedulesAPI
from .snapshots import SnapshotsAPI
from .templates import TemplatesAPI
from .tokens import TokensAPI
from .volumes import VolumesAPI

__all__ = [
    "DEFAULT_API_URL",
    "DEFAULT_MAX_CREATE_RETRY_SECONDS",
    "CancelEvent",
    "Client",
    "CreateRetryEvent",
    "SandboxAPI",
]


class Client:
    """Talks to one server.

    ``timeout`` is the longest silence, in seconds, that a request bears; calls that are known to
    take long bear more. ``api_base`` is another name of ``api_url``.

    ``max_create_retry_seconds`` is how long creates and forks keep trying while the server says
    that it has no room (see `pandastack._core.capacity` for the exact rule); 0 tries once. It
    bounds when the last attempt starts, so a create may block for this long plus ``timeout``.
    ``on_create_retry`` is called before each wait; what it raises ends the retries.

    ``http`` replaces the connection pool, for proxies and certificates of one's own.
    """

    def __init__(
        self,
        api_url: Optional[str] = None,
        api_key: Optional[str] = None,
        timeout: float = 30.0,
        api_base: Optional[str] = None,
        max_create_retry_seconds: Optional[float] = None,
        on_create_retry: Optional[Callable[[CreateRetryEvent], None]] = None,
        *,
        http: Optional[httpx.Client] = None,
    ) -> None:
        settings = Settings.resolve(api_url if api_url is not None else api_base, api_key)
        self.api_url = self.api_base = settings.api_url
        self.api_key = settings.api_key
        self.timeout = timeout
        self.max_create_retry_seconds = budget_seconds(max_create_retry_seconds)
        self.on_create_retry = on_create_retry
        #: Replaces the host of preview addresses.
        self.preview_host: Optional[str] = None
        self.session = http or httpx.Client(**settings.pool())
        self._driver = Driver(self.session)

        self.sandboxes = SandboxAPI(self)
        self.templates = TemplatesAPI(self)
        self.tokens = TokensAPI(self)
        self.volumes = VolumesAPI(self)
        self.snapshots = SnapshotsAPI(self)
        self.functions = FunctionsAPI(self)
        self.schedules = SchedulesAPI(self)
        self.databases = DatabasesAPI(self)
        self.apps = AppsAPI(self)

    def me(self) -> Dict[str, Any]:
        """Who the key belongs to."""
        return self._run(accounts.me())

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Optional[Mapping[str, str]] = None,
        json: Optional[Mapping[str, Any]] = None,
        content: Optional[bytes] = None,
        headers: Optional[Mapping[str, str]] = None,
    ) -> Any:
        """Sends a request of one's own to a path below ``/v1`` and decodes the answer."""
        request = Request(
            method,
            "/" + path.lstrip("/"),
            params=params or {},
            json=json,
            content=content,
            headers=headers or {},
        )
        return decode(self._run(call(request)))

    def close(self) -> None:
        """Closes the connections."""
        self.session.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        exc_type: Optional[Type[BaseException]],
        exc: Optional[BaseException],
        tb: Optional[TracebackType],
    ) -> None:
        self.close()

    @property
    def _endpoint(self) -> Endpoint:
        # Made anew each time: address, key and timeout are public and may be changed.
        return Endpoint(self.api_url, self.api_key, self.timeout)

    def _run(self, flow: Flow[T]) -> T:
        return self._driver.run(flow, self._endpoint)

    def _stream(self, request: Request) -> AbstractContextManager[Iterator[bytes]]:
        return self._driver.stream(request, self._endpoint)

    def _patience(self, cancel: Optional[CancelEvent]) -> Patience:
        check_cancel_event(cancel)
        return Patience(self.max_create_retry_seconds, self.on_create_retry, cancel)


class SandboxAPI:
    """``client.sandboxes``: sandboxes by id. `Sandbox` has the same on its objects."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(
        self,
        template: str = "code-interpreter",
        cpu: Optional[int] = None,
        memory_mb: Optional[int] = None,
        ttl_seconds: Optional[int] = None,
        persistent: bool = False,
        metadata: Optional[Mapping[str, str]] = None,
        from_snapshot: Optional[str] = None,
        volumes: Optional[Sequence[Mapping[str, Any]]] = None,
        *,
        egress: Optional[Egress] = None,
        disk_mb: Optional[int] = None,
        cancel: Optional[CancelEvent] = None,
    ) -> Sandbox:
        """Makes a sandbox; see `Sandbox.create`."""
        return Sandbox.create(
            template,
            cpu=cpu,
            memory_mb=memory_mb,
            disk_mb=disk_mb,
            metadata=metadata,
            ttl_seconds=ttl_seconds,
            persistent=persistent,
            from_snapshot=from_snapshot,
            volumes=volumes,
            egress=egress,
            cancel=cancel,
            client=self._client,
        )

    def list(self) -> List[Sandbox]:
        """All sandboxes of the key."""
        return Sandbox.list(client=self._client)

    def get(self, sandbox_id: str) -> Sandbox:
        """One sandbox; raises `NotFoundError`."""
        return Sandbox.get(sandbox_id, client=self._client)

    def fork(
        self,
        sandbox_id: str,
        metadata: Optional[Mapping[str, str]] = None,
        *,
        egress: Optional[Egress] = None,
        cancel: Optional[CancelEvent] = None,
    ) -> Sandbox:
        """Forks a sandbox; retried and cancelled like a create."""
        flow = sandboxes.fork(sandbox_id, metadata, self._client._patience(cancel), egress)
        return Sandbox.from_dict(self._client._run(flow), self._client)

    def fork_tree(
        self,
        sandbox_id: str,
        count: int,
        metadata: Optional[Mapping[str, str]] = None,
        *,
        egress: Optional[Egress] = None,
        cancel: Optional[CancelEvent] = None,
    ) -> List[Sandbox]:
        """Forks a sandbox ``count`` times at one moment; retried and cancelled like a create."""
        patience = self._client._patience(cancel)
        flow = sandboxes.fork_tree(sandbox_id, count, metadata, patience, egress)
        return [Sandbox.from_dict(info, self._client) for info in self._client._run(flow)]

    def promote(
        self, sandbox_id: str, *, cleanup_siblings: bool = False, tree_id: Optional[str] = None
    ) -> Dict[str, Any]:
        """Makes a child independent of its fork tree and, if asked, deletes its siblings.

        Returns ``{winner, tree_id, deleted, failures}``. The server knows the tree of a child;
        ``tree_id`` is for those that do not.
        """
        return self._client._run(sandboxes.promote(sandbox_id, cleanup_siblings, tree_id))

    def delete(self, sandbox_id: str) -> None:
        """Ends a sandbox; raises `NotFoundError` when there is none, unlike `Sandbox.kill`."""
        self._client._run(sandboxes.delete(sandbox_id))
