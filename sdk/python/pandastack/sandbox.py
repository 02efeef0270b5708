# SPDX-License-Identifier: Apache-2.0
"""A sandbox: the object most programs need, and often the only one."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    ClassVar,
    Dict,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Type,
    TypeVar,
    Union,
)

from ._core import cells, commands, ports, sandboxes
from ._core import egress as egress_flows
from ._core.streams import ExecStream, LogLines, text_lines
from ._default import get_default_client, set_default_client
from .code_context import CodeContext
from .commands import SandboxCommands
from .exceptions import APIConnectionError, NotFoundError, PandastackError
from .filesystem import SandboxFilesystem
from .records import (
    Egress,
    ExecResult,
    Execution,
    FileInfo,
    Port,
    Result,
    SandboxInfo,
    sandbox_fields,
)

if TYPE_CHECKING:
    from ._drive import CancelEvent
    from .client import Client
    from .explore import Candidate, ExploreResult

__all__ = [
    "CodeContext",
    "ExecResult",
    "Execution",
    "FileInfo",
    "Port",
    "Result",
    "Sandbox",
    "SandboxCommands",
    "SandboxFilesystem",
    "SandboxInfo",
    "get_default_client",
    "set_default_client",
]

logger = logging.getLogger(__name__)
S = TypeVar("S", bound="Sandbox")


@dataclass
class Sandbox(SandboxInfo):
    """A microVM for code that is not trusted.

    Its fields are as of the last answer; `refresh` asks again. As a context manager it kills the
    sandbox at the end of the block unless it is persistent:

        with Sandbox.create() as sb:
            print(sb.exec("echo hello").stdout)
    """

    _client: Optional[Client] = field(default=None, repr=False, compare=False)

    default_template: ClassVar[str] = "code-interpreter"

    @classmethod
    def from_dict(
        cls: Type[S], data: Mapping[str, Any], client: Client, persistent: bool = False
    ) -> S:
        """A sandbox from the API's object."""
        return cls(**sandbox_fields(data, persistent), _client=client)

    @classmethod
    def create(
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
        cancel: Optional[CancelEvent] = None,
        client: Optional[Client] = None,
    ) -> S:
        """Makes a sandbox and returns when its guest is ready.

        ``cpu``, ``memory_mb`` and ``disk_mb`` default to the template's. The first sandbox of a
        size takes longer: the server prepares it. ``ttl_seconds`` ends it after that time
        whatever happens; 0 is no limit. ``from_snapshot`` takes the place of ``template``.
        ``egress`` is what it may reach, nothing unless it is given: see `set_egress`.

        A server without room is asked again within the client's ``max_create_retry_seconds``.
        ``cancel``, an event such as `threading.Event`, ends that early with `CreateCancelled`;
        an attempt already sent is waited for, and if it succeeds the sandbox is returned.
        """
        client = client or get_default_client()
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
        info = client._run(sandboxes.create(body, client._patience(cancel)))
        return cls.from_dict(info, client, persistent)

    @classmethod
    def list(cls: Type[S], *, client: Optional[Client] = None) -> List[S]:
        """All sandboxes of the key."""
        client = client or get_default_client()
        return [cls.from_dict(info, client) for info in client._run(sandboxes.listing())]

    @classmethod
    def get(cls: Type[S], sandbox_id: str, *, client: Optional[Client] = None) -> S:
        """The sandbox with this id; raises `NotFoundError`."""
        client = client or get_default_client()
        return cls.from_dict(client._run(sandboxes.get(sandbox_id)), client)

    @property
    def client(self) -> Client:
        """The client it was made with."""
        return self._client or get_default_client()

    @property
    def filesystem(self) -> SandboxFilesystem:
        """Its files."""
        return SandboxFilesystem(self)

    @property
    def commands(self) -> SandboxCommands:
        """``commands.run``: another spelling of `exec`."""
        return SandboxCommands(self)

    def exec(
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
        """Runs a command and waits for its end.

        A string goes to the guest's shell, a list is run as it is. The command runs as root in
        root's home with an empty standard input, unless ``user``, ``cwd`` and ``stdin`` say
        otherwise; ``env`` is added to its environment.

        Raises `SandboxTimeout` when it was killed after ``timeout_seconds``, and `CommandFailed`
        when ``check`` is set and it failed.
        """
        command = commands.Command(cmd, timeout_seconds, env, cwd, user, stdin)
        return self.client._run(commands.exec_command(self.id, command, check))

    def exec_stream(
        self,
        cmd: Union[str, Sequence[str]],
        on_stdout: Optional[Callable[[str], None]] = None,
        on_stderr: Optional[Callable[[str], None]] = None,
        timeout_seconds: Optional[int] = None,
        *,
        env: Optional[Mapping[str, str]] = None,
        cwd: Optional[str] = None,
        user: Optional[str] = None,
        stdin: Optional[str] = None,
    ) -> int:
        """Runs a command, hands its output over as it comes, and returns the exit code.

        Raises `SandboxTimeout` as `exec` does, and `ExecInterrupted` when the stream ends before
        the exit code has arrived: the outcome is then unknown. What a callback raises ends the
        command.
        """
        command = commands.Command(cmd, timeout_seconds, env, cwd, user, stdin)
        callbacks = {"stdout": on_stdout, "stderr": on_stderr}
        stream = ExecStream()

        def unbroken(chunks: Iterator[bytes]) -> Iterator[bytes]:
            try:
                yield from chunks
            except APIConnectionError as error:
                if stream.exit_code is None:
                    raise stream.interrupted() from error

        with self.client._stream(commands.exec_stream_request(self.id, command)) as chunks:
            for chunk in unbroken(chunks):
                for name, text in stream.feed(chunk):
                    callback = callbacks[name]
                    if callback is not None:
                        callback(text)
        return stream.finish()

    def run_code(self, code: str, language: str = "python") -> ExecResult:
        """Runs a piece of code once, in ``python`` or ``shell``; nothing is kept of its state."""
        return self.exec(commands.code_command(code, language))

    def create_code_context(self, language: str = "python") -> CodeContext:
        """Starts an interpreter that keeps its variables between cells."""
        name = cells.language_name(language)
        return CodeContext(self, self.client._run(cells.open_context(self.id, name)), name)

    def code_contexts(self) -> List[Dict[str, Any]]:
        """The running interpreters, as ``{id, language, created_at, cells}``."""
        return self.client._run(cells.list_contexts(self.id))

    def logs(
        self, stream: str = "both", follow: bool = False, *, tail: Optional[int] = None
    ) -> Iterator[str]:
        """The lines that commands printed, or the last ``tail`` of them; with ``follow`` also
        those to come, until it ends. ``stream`` is ``stdout``, ``stderr`` or ``both``."""
        request = commands.logs_request(self.id, stream, follow, tail)
        with self.client._stream(request) as chunks:
            if not follow:
                yield from text_lines(b"".join(chunks))
                return
            lines = LogLines()
            for chunk in chunks:
                yield from lines.feed(chunk)

    def get_egress(self) -> Egress:
        """What it may reach: ``"none"``, or a policy in its one spelling."""
        self.egress = self.client._run(egress_flows.get(self.id))
        return self.egress

    def set_egress(self, policy: Egress) -> Egress:
        """Changes what it may reach, also while it is paused, and returns it in its one spelling.

        ``policy`` is ``"none"`` or a mapping such as ``{"allow": [{"host": "pypi.org"}]}``, and
        replaces the one before. It is in force when this returns, and connections that it
        forbids are closed.
        """
        self.egress = self.client._run(egress_flows.put(self.id, policy))
        return self.egress

    def egress_log(
        self, tail: Optional[int] = None, *, after: Optional[int] = None
    ) -> List[Dict[str, Any]]:
        """What it tried to reach lately, and what was decided, oldest first.

        An entry has ``number``, ``time``, ``kind``, ``verdict`` (``allow``, ``deny`` or
        ``close``) and ``reason``, and where they are known ``name``, ``address``, ``port``,
        ``rule``, ``bytes_up`` and ``bytes_down``. ``tail`` asks for the last ones only, ``after``
        for those behind the entry with that number.
        """
        return self.client._run(egress_flows.log(self.id, tail, after))

    def follow_egress_log(
        self, tail: Optional[int] = None, *, after: Optional[int] = None
    ) -> Iterator[Dict[str, Any]]:
        """The entries of `egress_log`, and then those to come, until it ends."""
        decisions = egress_flows.Decisions()
        request = egress_flows.follow_request(self.id, tail, after)
        with self.client._stream(request) as chunks:
            for chunk in chunks:
                yield from decisions.feed(chunk)

    def events(self, tail: int = 50) -> List[Dict[str, Any]]:
        """What happened to it lately, as ``{time, sandbox_id, type, payload}``."""
        return self.client._run(sandboxes.events(self.id, tail))

    def metrics(self) -> Dict[str, Any]:
        """What it costs the host: memory, CPU share, threads, uptime."""
        return self.client._run(sandboxes.metrics(self.id))

    def kill(self) -> None:
        """Ends it now. One that is gone already is as good."""
        try:
            self.client._run(sandboxes.delete(self.id))
        except NotFoundError:
            pass
        self.status = "deleted"

    def pause(self) -> None:
        """Stops its CPUs; memory, files and processes stay as they are."""
        self.client._run(sandboxes.act(self.id, "pause"))
        self.status = "paused"

    def resume(self) -> None:
        """Lets a paused sandbox run on."""
        self.client._run(sandboxes.act(self.id, "resume"))
        self.status = "running"

    def hibernate(self) -> None:
        """Writes its memory to disk and frees what it holds of the host. Use wakes it."""
        self.client._run(sandboxes.act(self.id, "hibernate"))
        self.status = "hibernated"

    def wake(self) -> None:
        """Wakes a hibernated sandbox now; one that runs is left alone."""
        self.client._run(sandboxes.act(self.id, "wake"))
        self.status = "running"

    def snapshot(self) -> str:
        """Writes its memory and disk, and returns the id to use as ``from_snapshot``."""
        return self.client._run(sandboxes.snapshot(self.id))

    def fork(
        self: S,
        metadata: Optional[Mapping[str, str]] = None,
        *,
        egress: Optional[Egress] = None,
        cancel: Optional[CancelEvent] = None,
    ) -> S:
        """A copy of it as it is now: memory, files, processes. Retried like a create.

        It may reach what this one may, or what ``egress`` says.
        """
        client = self.client
        flow = sandboxes.fork(self.id, metadata, client._patience(cancel), egress)
        return type(self).from_dict(client._run(flow), client)

    def fork_tree(
        self: S,
        count: int,
        metadata: Optional[Mapping[str, str]] = None,
        *,
        egress: Optional[Egress] = None,
        cancel: Optional[CancelEvent] = None,
    ) -> List[S]:
        """``count`` copies of one moment; fewer when the host has no room for all. They may reach
        what this one may, or what ``egress`` says."""
        client = self.client
        patience = client._patience(cancel)
        flow = sandboxes.fork_tree(self.id, count, metadata, patience, egress)
        return [type(self).from_dict(info, client) for info in client._run(flow)]

    def promote(
        self, *, cleanup_siblings: bool = False, tree_id: Optional[str] = None
    ) -> Dict[str, Any]:
        """Makes it independent of its fork tree; see `SandboxAPI.promote`."""
        return self.client._run(sandboxes.promote(self.id, cleanup_siblings, tree_id))

    def explore(self, candidates: Sequence[Union[Candidate, str]], **kwargs: Any) -> ExploreResult:
        """Tries each candidate in a fork of its own and keeps the best; see
        `pandastack.explore`, which also explains the keywords."""
        from .explore import explore  # explore.py is built on this module

        return explore(self, candidates, **kwargs)

    def lifecycle(self) -> Dict[str, Any]:
        """How long it lives: ``{ttl_seconds, persistent, idle_seconds}``."""
        return self.client._run(sandboxes.lifecycle(self.id))

    def set_ttl(self, seconds: int) -> Dict[str, Any]:
        """Ends it this many seconds from now, 0 for never; returns `lifecycle`."""
        changed = self.client._run(sandboxes.set_lifecycle(self.id, {"ttl_seconds": seconds}))
        self.ttl_seconds = seconds
        return changed

    def set_persistent(self, persistent: bool) -> Dict[str, Any]:
        """Whether it outlives a ``with`` block; returns `lifecycle`."""
        change = {"persistent": persistent}
        changed = self.client._run(sandboxes.set_lifecycle(self.id, change))
        self.persistent = persistent
        return changed

    def ports(self) -> List[Port]:
        """The ports that are listed or found listening."""
        return self.client._run(ports.ports(self.id))

    def expose_port(
        self, port: int, label: Optional[str] = None, *, public: bool = False
    ) -> Port:
        """Lists a port. A public one needs no key: anybody who knows its address may reach it."""
        return self.client._run(ports.expose_port(self.id, port, label, public))

    def close_port(self, port: int) -> None:
        """Takes a port off the list."""
        self.client._run(ports.close_port(self.id, port))

    def preview_url(self, port: int, scheme: str = "https") -> str:
        """The address of a port's own site; the host is ``client.preview_host`` when that is set.

        It opens nothing: a port that is not public needs a key, or the address of a
        `preview_token`.
        """
        client = self.client
        return ports.preview_url(self.id, port, scheme, client.api_url, client.preview_host)

    def preview_urls(self) -> Dict[int, str]:
        """`preview_url` of each of `ports`."""
        return {entry.port: self.preview_url(entry.port) for entry in self.ports()}

    def preview_token(
        self, port: int, ttl_seconds: int = 3600, paths: Optional[Sequence[str]] = None
    ) -> Dict[str, Any]:
        """A signed address of a port for a limited time: ``{url, token, expires_at, ...}``."""
        return self.client._run(ports.preview_token(self.id, port, ttl_seconds, paths))

    def traffic_token(self, *, rotate: bool = False) -> str:
        """The token that opens every port, as ``X-Panda-Traffic-Token`` or ``?token=``.

        ``rotate`` voids every token and signed address that was given out before.
        """
        return self.client._run(ports.traffic_token(self.id, rotate))

    def refresh(self: S) -> S:
        """Asks for its fields again, in place."""
        self.__dict__.update(sandbox_fields(self.client._run(sandboxes.get(self.id))))
        return self

    def __enter__(self: S) -> S:
        return self

    def __exit__(
        self,
        exc_type: Optional[Type[BaseException]],
        exc: Optional[BaseException],
        tb: Optional[TracebackType],
    ) -> None:
        if self.persistent:
            return
        try:
            self.kill()
        except PandastackError as error:
            if exc is None:
                raise
            # What went wrong inside the block matters more; the TTL ends the sandbox.
            logger.warning("sandbox %s could not be killed: %s", self.id, error)
