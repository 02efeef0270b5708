# SPDX-License-Identifier: Apache-2.0
"""A sandbox, for asyncio. Each method is explained at its namesake in `pandastack.Sandbox`."""

from __future__ import annotations

import asyncio
import inspect
import logging
from dataclasses import dataclass, field
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    AsyncIterator,
    Awaitable,
    Callable,
    ClassVar,
    Dict,
    List,
    Mapping,
    Optional,
    Sequence,
    Type,
    TypeVar,
    Union,
)

from .._core import cells, commands, ports, sandboxes
from .._core import egress as egress_flows
from .._core.streams import ExecStream, LogLines, text_lines
from ..exceptions import APIConnectionError, NotFoundError, PandastackError
from ..records import Egress, ExecResult, Port, SandboxInfo, sandbox_fields
from .code_context import AsyncCodeContext
from .default import get_default_async_client
from .filesystem import AsyncSandboxCommands, AsyncSandboxFilesystem

if TYPE_CHECKING:
    from .client import AsyncClient

logger = logging.getLogger(__name__)
S = TypeVar("S", bound="AsyncSandbox")

#: Takes a piece of output; may be a coroutine function.
OnOutput = Callable[[str], Union[Awaitable[None], None]]


@dataclass
class AsyncSandbox(SandboxInfo):
    """A microVM for code that is not trusted.

    At the end of an ``async with`` block it is killed, unless it is persistent:

        async with await AsyncSandbox.create() as sb:
            print((await sb.exec("echo hello")).stdout)
    """

    _client: Optional[AsyncClient] = field(default=None, repr=False, compare=False)

    default_template: ClassVar[str] = "code-interpreter"

    @classmethod
    def from_dict(
        cls: Type[S], data: Mapping[str, Any], client: AsyncClient, persistent: bool = False
    ) -> S:
        """A sandbox from the API's object."""
        return cls(**sandbox_fields(data, persistent), _client=client)

    @classmethod
    async def create(
        cls: Type[S],
        template: str = default_template,
        cpu: Optional[int] = None,
        memory_mb: Optional[int] = None,
        metadata: Optional[Mapping[str, str]] = None,
        ttl_seconds: Optional[int] = None,
        persistent: bool = False,
        from_snapshot: Optional[str] = None,
        volumes: Optional[Sequence[Mapping[str, Any]]] = None,
        *,
        egress: Optional[Egress] = None,
        disk_mb: Optional[int] = None,
        cancel: Optional[asyncio.Event] = None,
        client: Optional[AsyncClient] = None,
    ) -> S:
        """Makes a sandbox and returns when its guest is ready."""
        client = client or get_default_async_client()
        body = sandboxes.create_body(
            template,
            cpu,
            memory_mb,
            metadata,
            ttl_seconds,
            persistent,
            from_snapshot,
            volumes,
            egress,
            disk_mb,
        )
        info = await client._run(sandboxes.create(body, client._patience(cancel)))
        return cls.from_dict(info, client, persistent)

    @classmethod
    async def list(cls: Type[S], *, client: Optional[AsyncClient] = None) -> List[S]:
        """All sandboxes of the key."""
        client = client or get_default_async_client()
        return [cls.from_dict(info, client) for info in await client._run(sandboxes.listing())]

    @classmethod
    async def get(cls: Type[S], sandbox_id: str, *, client: Optional[AsyncClient] = None) -> S:
        """The sandbox with this id; raises `NotFoundError`."""
        client = client or get_default_async_client()
        return cls.from_dict(await client._run(sandboxes.get(sandbox_id)), client)

    @property
    def client(self) -> AsyncClient:
        """The client it was made with."""
        return self._client or get_default_async_client()

    @property
    def filesystem(self) -> AsyncSandboxFilesystem:
        """Its files."""
        return AsyncSandboxFilesystem(self)

    @property
    def commands(self) -> AsyncSandboxCommands:
        """``commands.run``: another spelling of `exec`."""
        return AsyncSandboxCommands(self)

    async def exec(
        self,
        cmd: Union[str, Sequence[str]],
        timeout_seconds: Optional[int] = None,
        check: bool = False,
        *,
        env: Optional[Mapping[str, str]] = None,
        cwd: Optional[str] = None,
        user: Optional[str] = None,
        stdin: Optional[str] = None,
    ) -> ExecResult:
        """Runs a command and waits for its end."""
        command = commands.Command(cmd, timeout_seconds, env, cwd, user, stdin)
        return await self.client._run(commands.exec_command(self.id, command, check))

    async def exec_stream(
        self,
        cmd: Union[str, Sequence[str]],
        on_stdout: Optional[OnOutput] = None,
        on_stderr: Optional[OnOutput] = None,
        timeout_seconds: Optional[int] = None,
        *,
        env: Optional[Mapping[str, str]] = None,
        cwd: Optional[str] = None,
        user: Optional[str] = None,
        stdin: Optional[str] = None,
    ) -> int:
        """Runs a command, hands its output over as it comes, and returns the exit code."""
        command = commands.Command(cmd, timeout_seconds, env, cwd, user, stdin)
        callbacks = {"stdout": on_stdout, "stderr": on_stderr}
        stream = ExecStream()

        async def unbroken(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
            try:
                async for chunk in chunks:
                    yield chunk
            except APIConnectionError as error:
                if stream.exit_code is None:
                    raise stream.interrupted() from error

        async with self.client._stream(commands.exec_stream_request(self.id, command)) as chunks:
            async for chunk in unbroken(chunks):
                for name, text in stream.feed(chunk):
                    callback = callbacks[name]
                    result = callback(text) if callback is not None else None
                    if inspect.isawaitable(result):
                        await result
        return stream.finish()

    async def run_code(self, code: str, language: str = "python") -> ExecResult:
        """Runs a piece of code once, in ``python`` or ``shell``; nothing is kept of its state."""
        return await self.exec(commands.code_command(code, language))

    async def create_code_context(self, language: str = "python") -> AsyncCodeContext:
        """Starts an interpreter that keeps its variables between cells."""
        name = cells.language_name(language)
        context_id = await self.client._run(cells.open_context(self.id, name))
        return AsyncCodeContext(self, context_id, name)

    async def code_contexts(self) -> List[Dict[str, Any]]:
        """The running interpreters."""
        return await self.client._run(cells.list_contexts(self.id))

    async def logs(
        self, stream: str = "both", follow: bool = False, *, tail: Optional[int] = None
    ) -> AsyncIterator[str]:
        """The lines of its log; with ``follow`` also those to come, until it ends."""
        request = commands.logs_request(self.id, stream, follow, tail)
        async with self.client._stream(request) as chunks:
            if not follow:
                for line in text_lines(b"".join([chunk async for chunk in chunks])):
                    yield line
                return
            lines = LogLines()
            async for chunk in chunks:
                for line in lines.feed(chunk):
                    yield line

    async def get_egress(self) -> Egress:
        """What it may reach."""
        self.egress = await self.client._run(egress_flows.get(self.id))
        return self.egress

    async def set_egress(self, policy: Egress) -> Egress:
        """Changes what it may reach, and returns it in its one spelling."""
        self.egress = await self.client._run(egress_flows.put(self.id, policy))
        return self.egress

    async def egress_log(
        self, tail: Optional[int] = None, *, after: Optional[int] = None
    ) -> List[Dict[str, Any]]:
        """What it tried to reach lately, and what was decided, oldest first."""
        return await self.client._run(egress_flows.log(self.id, tail, after))

    async def follow_egress_log(
        self, tail: Optional[int] = None, *, after: Optional[int] = None
    ) -> AsyncIterator[Dict[str, Any]]:
        """The entries of `egress_log`, and then those to come, until it ends."""
        decisions = egress_flows.Decisions()
        request = egress_flows.follow_request(self.id, tail, after)
        async with self.client._stream(request) as chunks:
            async for chunk in chunks:
                for entry in decisions.feed(chunk):
                    yield entry

    async def events(self, tail: int = 50) -> List[Dict[str, Any]]:
        """What happened to it lately, as ``{time, sandbox_id, type, payload}``."""
        return await self.client._run(sandboxes.events(self.id, tail))

    async def metrics(self) -> Dict[str, Any]:
        """What it costs the host."""
        return await self.client._run(sandboxes.metrics(self.id))

    async def kill(self) -> None:
        """Ends it now. One that is gone already is as good."""
        try:
            await self.client._run(sandboxes.delete(self.id))
        except NotFoundError:
            pass
        self.status = "deleted"

    async def pause(self) -> None:
        """Stops its CPUs."""
        await self.client._run(sandboxes.act(self.id, "pause"))
        self.status = "paused"

    async def resume(self) -> None:
        """Lets a paused sandbox run on."""
        await self.client._run(sandboxes.act(self.id, "resume"))
        self.status = "running"

    async def hibernate(self) -> None:
        """Writes its memory to disk and frees what it holds of the host."""
        await self.client._run(sandboxes.act(self.id, "hibernate"))
        self.status = "hibernated"

    async def wake(self) -> None:
        """Wakes a hibernated sandbox now."""
        await self.client._run(sandboxes.act(self.id, "wake"))
        self.status = "running"

    async def snapshot(self) -> str:
        """Writes its memory and disk, and returns the snapshot's id."""
        return await self.client._run(sandboxes.snapshot(self.id))

    async def fork(
        self: S,
        metadata: Optional[Mapping[str, str]] = None,
        *,
        egress: Optional[Egress] = None,
        cancel: Optional[asyncio.Event] = None,
    ) -> S:
        """A copy of it as it is now."""
        client = self.client
        flow = sandboxes.fork(self.id, metadata, client._patience(cancel), egress)
        return type(self).from_dict(await client._run(flow), client)

    async def fork_tree(
        self: S,
        count: int,
        metadata: Optional[Mapping[str, str]] = None,
        *,
        egress: Optional[Egress] = None,
        cancel: Optional[asyncio.Event] = None,
    ) -> List[S]:
        """``count`` copies of one moment."""
        client = self.client
        patience = client._patience(cancel)
        flow = sandboxes.fork_tree(self.id, count, metadata, patience, egress)
        return [type(self).from_dict(info, client) for info in await client._run(flow)]

    async def promote(
        self, *, cleanup_siblings: bool = False, tree_id: Optional[str] = None
    ) -> Dict[str, Any]:
        """Makes it independent of its fork tree."""
        return await self.client._run(sandboxes.promote(self.id, cleanup_siblings, tree_id))

    async def lifecycle(self) -> Dict[str, Any]:
        """How long it lives."""
        return await self.client._run(sandboxes.lifecycle(self.id))

    async def set_ttl(self, seconds: int) -> Dict[str, Any]:
        """Ends it this many seconds from now, 0 for never."""
        change = {"ttl_seconds": seconds}
        changed = await self.client._run(sandboxes.set_lifecycle(self.id, change))
        self.ttl_seconds = seconds
        return changed

    async def set_persistent(self, persistent: bool) -> Dict[str, Any]:
        """Whether it outlives an ``async with`` block."""
        change = {"persistent": persistent}
        changed = await self.client._run(sandboxes.set_lifecycle(self.id, change))
        self.persistent = persistent
        return changed

    async def ports(self) -> List[Port]:
        """The ports that are listed or found listening."""
        return await self.client._run(ports.ports(self.id))

    async def expose_port(
        self, port: int, label: Optional[str] = None, *, public: bool = False
    ) -> Port:
        """Lists a port. A public one needs no key: anybody who knows its address may reach it."""
        return await self.client._run(ports.expose_port(self.id, port, label, public))

    async def close_port(self, port: int) -> None:
        """Takes a port off the list."""
        await self.client._run(ports.close_port(self.id, port))

    def preview_url(self, port: int, scheme: str = "https") -> str:
        """The address of a port's own site. Nothing is sent, so nothing is awaited."""
        client = self.client
        return ports.preview_url(self.id, port, scheme, client.api_url, client.preview_host)

    async def preview_urls(self) -> Dict[int, str]:
        """`preview_url` of each of `ports`."""
        return {entry.port: self.preview_url(entry.port) for entry in await self.ports()}

    async def preview_token(
        self, port: int, ttl_seconds: int = 3600, paths: Optional[Sequence[str]] = None
    ) -> Dict[str, Any]:
        """A signed address of a port for a limited time."""
        return await self.client._run(ports.preview_token(self.id, port, ttl_seconds, paths))

    async def traffic_token(self, *, rotate: bool = False) -> str:
        """The token that opens every port, as ``X-Panda-Traffic-Token`` or ``?token=``.

        ``rotate`` voids every token and signed address that was given out before.
        """
        return await self.client._run(ports.traffic_token(self.id, rotate))

    async def refresh(self: S) -> S:
        """Asks for its fields again, in place."""
        self.__dict__.update(sandbox_fields(await self.client._run(sandboxes.get(self.id))))
        return self

    async def __aenter__(self: S) -> S:
        return self

    async def __aexit__(
        self,
        exc_type: Optional[Type[BaseException]],
        exc: Optional[BaseException],
        tb: Optional[TracebackType],
    ) -> None:
        if self.persistent:
            return
        try:
            # A task that is being cancelled still owes the server this request.
            await asyncio.shield(self.kill())
        except PandastackError as error:
            if exc is None:
                raise
            # What went wrong inside the block matters more; the TTL ends the sandbox.
            logger.warning("sandbox %s could not be killed: %s", self.id, error)
