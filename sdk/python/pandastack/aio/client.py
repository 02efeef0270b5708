# SPDX-License-Identifier: Apache-2.0
"""The client for asyncio. Used from one event loop, by any number of its tasks."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, AsyncIterator, Callable, Dict, List, Mapping, Optional, Sequence, Type

import httpx

from .._core import accounts, sandboxes
from .._core.answers import call, decode
from .._core.capacity import CreateRetryEvent, Patience, budget_seconds
from .._core.config import Settings
from .._core.wire import Endpoint, Flow, Request, T
from ..records import Egress
from ._drive import AsyncDriver, check_cancel_event
from .resources import AsyncSnapshotsAPI, AsyncTemplatesAPI, AsyncTokensAPI, AsyncVolumesAPI
from .sandbox import AsyncSandbox


class AsyncClient:
    """Talks to one server. The arguments are those of `Client`."""

    def __init__(
        self,
        api_url: Optional[str] = None,
        api_key: Optional[str] = None,
        timeout: float = 30.0,
        api_base: Optional[str] = None,
        max_create_retry_seconds: Optional[float] = None,
        on_create_retry: Optional[Callable[[CreateRetryEvent], None]] = None,
        *,
        http: Optional[httpx.AsyncClient] = None,
    ) -> None:
        settings = Settings.resolve(api_url if api_url is not None else api_base, api_key)
        self.api_url = self.api_base = settings.api_url
        self.api_key = settings.api_key
        self.timeout = timeout
        self.max_create_retry_seconds = budget_seconds(max_create_retry_seconds)
        self.on_create_retry = on_create_retry
        #: Replaces the host of preview addresses.
        self.preview_host: Optional[str] = None
        self.session = http or httpx.AsyncClient(**settings.pool())
        self._driver = AsyncDriver(self.session)

        self.sandboxes = AsyncSandboxAPI(self)
        self.templates = AsyncTemplatesAPI(self)
        self.tokens = AsyncTokensAPI(self)
        self.volumes = AsyncVolumesAPI(self)
        self.snapshots = AsyncSnapshotsAPI(self)

    async def me(self) -> Dict[str, Any]:
        """Who the key belongs to."""
        return await self._run(accounts.me())

    async def request(
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
        return decode(await self._run(call(request)))

    async def close(self) -> None:
        """Closes the connections."""
        await self.session.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        exc_type: Optional[Type[BaseException]],
        exc: Optional[BaseException],
        tb: Optional[TracebackType],
    ) -> None:
        await self.close()

    @property
    def _endpoint(self) -> Endpoint:
        # Made anew each time: address, key and timeout are public and may be changed.
        return Endpoint(self.api_url, self.api_key, self.timeout)

    async def _run(self, flow: Flow[T]) -> T:
        return await self._driver.run(flow, self._endpoint)

    def _stream(self, request: Request) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        return self._driver.stream(request, self._endpoint)

    def _patience(self, cancel: Optional[asyncio.Event]) -> Patience:
        check_cancel_event(cancel)
        return Patience(self.max_create_retry_seconds, self.on_create_retry, cancel)


class AsyncSandboxAPI:
    """``client.sandboxes``: sandboxes by id. `AsyncSandbox` has the same on its objects."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def create(
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
        cancel: Optional[asyncio.Event] = None,
    ) -> AsyncSandbox:
        """Makes a sandbox; see `Sandbox.create`."""
        return await AsyncSandbox.create(
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

    async def list(self) -> List[AsyncSandbox]:
        """All sandboxes of the key."""
        return await AsyncSandbox.list(client=self._client)

    async def get(self, sandbox_id: str) -> AsyncSandbox:
        """One sandbox; raises `NotFoundError`."""
        return await AsyncSandbox.get(sandbox_id, client=self._client)

    async def fork(
        self,
        sandbox_id: str,
        metadata: Optional[Mapping[str, str]] = None,
        *,
        egress: Optional[Egress] = None,
        cancel: Optional[asyncio.Event] = None,
    ) -> AsyncSandbox:
        """Forks a sandbox; retried and cancelled like a create."""
        flow = sandboxes.fork(sandbox_id, metadata, self._client._patience(cancel), egress)
        return AsyncSandbox.from_dict(await self._client._run(flow), self._client)

    async def fork_tree(
        self,
        sandbox_id: str,
        count: int,
        metadata: Optional[Mapping[str, str]] = None,
        *,
        egress: Optional[Egress] = None,
        cancel: Optional[asyncio.Event] = None,
    ) -> List[AsyncSandbox]:
        """Forks a sandbox ``count`` times at one moment; retried and cancelled like a create."""
        patience = self._client._patience(cancel)
        flow = sandboxes.fork_tree(sandbox_id, count, metadata, patience, egress)
        return [
            AsyncSandbox.from_dict(info, self._client) for info in await self._client._run(flow)
        ]

    async def promote(
        self, sandbox_id: str, *, cleanup_siblings: bool = False, tree_id: Optional[str] = None
    ) -> Dict[str, Any]:
        """Makes a child independent of its fork tree; see `SandboxAPI.promote`."""
        return await self._client._run(sandboxes.promote(sandbox_id, cleanup_siblings, tree_id))

    async def delete(self, sandbox_id: str) -> None:
        """Ends a sandbox; raises `NotFoundError` when there is none."""
        await self._client._run(sandboxes.delete(sandbox_id))
