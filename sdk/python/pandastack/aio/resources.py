# SPDX-License-Identifier: Apache-2.0
"""``client.templates``, ``.tokens``, ``.volumes`` and ``.snapshots``, for asyncio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, AsyncIterator, Dict, List, Optional

from .._core import accounts
from .._core import templates as flows
from .._core.streams import BuildLines
from .._core.wire import Flow, T
from ..records import Template, TemplateBuild, Token

if TYPE_CHECKING:
    from .client import AsyncClient


class _Resource:
    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def _run(self, flow: Flow[T]) -> T:
        return await self._client._run(flow)


class AsyncTemplatesAPI(_Resource):
    """What sandboxes are made from; each method is explained in `TemplatesAPI`."""

    async def list(self) -> List[Template]:
        """All templates."""
        return await self._run(flows.listing())

    async def get(self, name: str) -> Template:
        """One template, by its name or an alias."""
        return await self._run(flows.get(name))

    async def delete(self, name: str) -> None:
        """Deletes a template of one's own."""
        await self._run(flows.delete(name))

    async def builds(self) -> List[TemplateBuild]:
        """All builds that the server remembers."""
        return await self._run(flows.builds())

    async def get_build(self, build_id: str) -> TemplateBuild:
        """One build."""
        return await self._run(flows.get_build(build_id))

    async def register(
        self,
        name: str,
        image_ref: str,
        *,
        size_mb: int = 1024,
        cpu: Optional[int] = None,
        memory_mb: Optional[int] = None,
        kernel: Optional[str] = None,
    ) -> TemplateBuild:
        """Starts a build from an OCI image that the server can pull."""
        form = flows.build_form(name, size_mb, cpu, memory_mb, kernel, image_ref=image_ref)
        return await self._run(flows.start(form))

    async def build_from_dockerfile(
        self,
        name: str,
        dockerfile: str,
        *,
        context_dir: Optional[str] = None,
        cpu: Optional[int] = None,
        memory_mb: Optional[int] = None,
        size_mb: int = 1024,
    ) -> TemplateBuild:
        """Starts a build from a Dockerfile on the server."""
        text = flows.dockerfile_text(dockerfile)
        form = flows.build_form(name, size_mb, cpu, memory_mb, dockerfile=text)
        return await self._run(flows.build_from_dockerfile(form, context_dir))

    async def build_logs(self, build_id: str, *, follow: bool = True) -> AsyncIterator[str]:
        """The lines of a build's log; with ``follow`` until the build is over."""
        lines = BuildLines()
        async with self._client._stream(flows.logs_request(build_id, follow)) as chunks:
            async for chunk in chunks:
                for line in lines.feed(chunk):
                    yield line
                if lines.ended:
                    return

    async def wait_for_build(
        self, build_id: str, *, poll_interval: float = 2.0, timeout_seconds: float = 1200.0
    ) -> TemplateBuild:
        """Waits for a build; raises `TemplateBuildError` when it fails or takes too long."""
        return await self._run(flows.wait_for_build(build_id, poll_interval, timeout_seconds))


class AsyncTokensAPI(_Resource):
    """API keys of the user."""

    async def list(self) -> List[Token]:
        """All tokens, without the keys themselves."""
        return await self._run(accounts.tokens())

    async def create(self, name: str, expires_in_days: Optional[int] = None) -> Token:
        """A new token. Its ``token`` is the key, which the server tells only once."""
        return await self._run(accounts.create_token(name, expires_in_days))

    async def revoke(self, prefix: str) -> None:
        """Ends the token with this prefix."""
        await self._run(accounts.revoke_token(prefix))


class AsyncVolumesAPI(_Resource):
    """Named disks that outlive sandboxes."""

    async def create(self, name: str, size_mb: int) -> Dict[str, Any]:
        """Makes a volume."""
        return await self._run(accounts.create_volume(name, size_mb))

    async def list(self) -> List[Dict[str, Any]]:
        """All volumes."""
        return await self._run(accounts.volumes())

    async def get(self, name: str) -> Dict[str, Any]:
        """One volume."""
        return await self._run(accounts.volume(name))

    async def delete(self, name: str) -> None:
        """Deletes a volume and what is on it."""
        await self._run(accounts.delete_volume(name))


class AsyncSnapshotsAPI(_Resource):
    """Snapshots of sandboxes."""

    async def list(self, *, sandbox_id: Optional[str] = None) -> List[Dict[str, Any]]:
        """Snapshots, newest first; of one sandbox or of all."""
        return await self._run(accounts.snapshots(sandbox_id))

    async def get(self, snapshot_id: str) -> Dict[str, Any]:
        """One snapshot."""
        return await self._run(accounts.snapshot(snapshot_id))

    async def delete(self, snapshot_id: str) -> None:
        """Deletes a snapshot."""
        await self._run(accounts.delete_snapshot(snapshot_id))
