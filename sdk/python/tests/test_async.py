# SPDX-License-Identifier: Apache-2.0
"""The asyncio classes: the same surface, and what only they have to get right.

The flows they run are the sync ones, tested elsewhere; here it is the driver that is tested.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from pathlib import Path
from typing import Any, AsyncIterator, Awaitable, Callable, Dict, List, Tuple, TypeVar

import pytest

from pandastack import (
    AsyncClient,
    AsyncCodeContext,
    AsyncSandbox,
    Client,
    CodeContext,
    ConnectionError,
    CreateCancelled,
    ExecInterrupted,
    NotFoundError,
    Sandbox,
    SandboxCommands,
    SandboxFilesystem,
    SandboxTimeout,
    ServerError,
    get_default_async_client,
    set_default_async_client,
)
from pandastack._core import warmup
from pandastack.aio import (
    AsyncSandboxAPI,
    AsyncSandboxCommands,
    AsyncSandboxFilesystem,
    AsyncSnapshotsAPI,
    AsyncTemplatesAPI,
    AsyncTokensAPI,
    AsyncVolumesAPI,
)
from pandastack.client import SandboxAPI
from pandastack.snapshots import SnapshotsAPI
from pandastack.templates import TemplatesAPI
from pandastack.tokens import TokensAPI
from pandastack.volumes import VolumesAPI

from .fake import HERE, KEY, SANDBOX, Answer, Fake, Piece, Stream, event

R = TypeVar("R")
DONE = {"stdout": "out", "stderr": "", "exit_code": 0}


def with_sandbox(fake: Fake, test: Callable[[AsyncSandbox], Awaitable[R]]) -> R:
    """Runs a test on a sandbox, in an event loop of its own."""

    async def run() -> R:
        async with AsyncClient(fake.url, KEY, timeout=5) as client:
            return await test(AsyncSandbox.from_dict(SANDBOX, client))

    return asyncio.run(run())


TWINS = [
    (Client, AsyncClient, {"functions", "schedules", "databases", "apps"}),
    (Sandbox, AsyncSandbox, {"explore"}),
    (SandboxAPI, AsyncSandboxAPI, set()),
    (SandboxFilesystem, AsyncSandboxFilesystem, set()),
    (SandboxCommands, AsyncSandboxCommands, set()),
    (CodeContext, AsyncCodeContext, set()),
    # These run the local Docker, which blocks.
    (TemplatesAPI, AsyncTemplatesAPI, {"build", "push"}),
    (TokensAPI, AsyncTokensAPI, set()),
    (VolumesAPI, AsyncVolumesAPI, set()),
    (SnapshotsAPI, AsyncSnapshotsAPI, set()),
]


def parameters(function: Any) -> List[Tuple[str, Any, Any]]:
    listed = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, p.default) for p in listed]


@pytest.mark.parametrize(("sync", "other", "missing"), TWINS)
def test_the_surfaces_are_the_same(sync: type, other: type, missing: set[str]) -> None:
    def public(cls: type) -> Dict[str, Any]:
        return {n: m for n, m in inspect.getmembers(cls) if callable(m) and n[0] != "_"}

    ours, theirs = public(sync), public(other)
    assert set(ours) - missing == set(theirs)
    for name in theirs:
        assert parameters(ours[name]) == parameters(theirs[name]), name


def test_a_block_kills_unless_persistent(fake: Fake) -> None:
    async def run() -> None:
        async with AsyncClient(fake.url, KEY) as client:
            set_default_async_client(client)
            assert get_default_async_client() is client
            async with await AsyncSandbox.create(cpu=2, ttl_seconds=9) as made:
                assert fake.requests("DELETE", HERE) == []
            assert made.status == "deleted"
            fake.on("GET", HERE, Answer(200, {**SANDBOX, "persistent": True}))
            async with await AsyncSandbox.get(SANDBOX["id"]):
                pass

    asyncio.run(run())
    sent = fake.only("POST", "/v1/sandboxes").json
    assert sent == {"template": "code-interpreter", "cpu": 2, "ttl_seconds": 9}
    assert fake.only("DELETE", HERE)


def test_each_loop_has_its_own_default(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PANDASTACK_API", fake.url)
    monkeypatch.setenv("PANDASTACK_API_KEY", KEY)
    fake.on("GET", "/v1/sandboxes", Answer(200, [SANDBOX]))

    async def run() -> AsyncClient:
        assert [s.id for s in await AsyncSandbox.list()] == [SANDBOX["id"]]
        client = get_default_async_client()
        await client.close()
        return client

    assert asyncio.run(run()) is not asyncio.run(run())


def test_a_cancelled_task_still_kills(fake: Fake) -> None:
    async def test(sandbox: AsyncSandbox) -> None:
        inside = asyncio.Event()

        async def work() -> None:
            async with sandbox:
                inside.set()
                await asyncio.sleep(60)

        task = asyncio.create_task(work())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with_sandbox(fake, test)
    assert fake.only("DELETE", HERE)


def test_a_failed_kill_does_not_hide_what_went_wrong(fake: Fake) -> None:
    fake.on("DELETE", HERE, Answer(500, {"error": "stuck"}))

    async def test(sandbox: AsyncSandbox) -> None:
        with pytest.raises(KeyError):
            async with sandbox:
                raise KeyError("mine")
        with pytest.raises(ServerError, match="stuck"):
            async with sandbox:
                pass

    with_sandbox(fake, test)


def test_exec(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "_FIRST_DELAY", 0.001)
    early = Answer(502, {"error": "no route to host"})
    fake.on("POST", f"{HERE}/exec", early, Answer(200, DONE))

    async def test(sandbox: AsyncSandbox) -> None:
        assert (await sandbox.exec("x", env={"A": "1"})).stdout == "out"
        assert (await sandbox.commands.run(["x"], timeout=2)).exit_code == 0
        assert (await sandbox.run_code("1", "bash")).exit_code == 0
        fake.on("POST", f"{HERE}/exec", Answer(504, {"error": "timeout"}))
        with pytest.raises(SandboxTimeout):
            await sandbox.exec("x")

    with_sandbox(fake, test)
    assert fake.seen[0].json == {"cmd": "x", "env": {"A": "1"}}


def test_commands_run_side_by_side(fake: Fake) -> None:
    together = threading.Barrier(16, timeout=10)
    body: List[Piece] = [together.wait, b'{"exit_code": 0}']
    fake.on("POST", f"{HERE}/exec", Stream(body, content_type="application/json"))

    async def test(sandbox: AsyncSandbox) -> None:
        results = await asyncio.gather(*(sandbox.exec("x") for _ in range(16)))
        assert [r.exit_code for r in results] == [0] * 16

    with_sandbox(fake, test)


def test_streams(fake: Fake) -> None:
    arrived = threading.Event()
    waited: List[bool] = []
    pieces: List[Piece] = [
        event("stdout", {"chunk": "a"}),
        lambda: waited.append(arrived.wait(10)),
        event("stderr", {"chunk": "b"}),
        event("exit", {"exit_code": 4}),
    ]
    fake.on("POST", f"{HERE}/exec/stream", Stream(pieces))
    heard: List[str] = []

    async def on_stdout(chunk: str) -> None:
        await asyncio.sleep(0)
        heard.append(chunk)
        arrived.set()

    async def test(sandbox: AsyncSandbox) -> int:
        return await sandbox.exec_stream("x", on_stdout, heard.append)

    assert with_sandbox(fake, test) == 4
    assert (heard, waited) == (["a", "b"], [True])


@pytest.mark.parametrize("cut", [False, True])
def test_a_stream_without_an_exit_code_is_interrupted(fake: Fake, cut: bool) -> None:
    pieces = [event("stdout", {"chunk": "part"})]
    fake.on("POST", f"{HERE}/exec/stream", Stream(pieces, cut=cut))

    async def test(sandbox: AsyncSandbox) -> None:
        with pytest.raises(ExecInterrupted) as caught:
            await sandbox.exec_stream("x")
        assert caught.value.partial_stdout == "part"
        fake.on("POST", f"{HERE}/exec/stream", Answer(404, {"error": "gone"}))
        with pytest.raises(NotFoundError):
            await sandbox.exec_stream("x")

    with_sandbox(fake, test)


async def collected(lines: AsyncIterator[str]) -> List[str]:
    return [line async for line in lines]


def test_logs(fake: Fake) -> None:
    async def test(sandbox: AsyncSandbox) -> None:
        fake.on("GET", f"{HERE}/logs", Answer(200, b"a\nb\n"))
        assert await collected(sandbox.logs()) == ["a", "b"]
        fake.on("GET", f"{HERE}/logs", Stream([b'data: {"line": "x\\n"}\n\n']))
        assert await collected(sandbox.logs(follow=True)) == ["x"]
        fake.on("GET", "/v1/templates/builds/b/logs", Stream([b"data: one\n\ndata: end\n\n"]))
        assert await collected(sandbox.client.templates.build_logs("b")) == ["one"]

    with_sandbox(fake, test)


def test_files(fake: Fake, tmp_path: Path) -> None:
    every_byte = bytes(range(256))
    fake.on("GET", f"{HERE}/fs", Answer(200, every_byte))
    fake.on("PUT", f"{HERE}/fs", Answer(200, {"bytes": 256}))
    fake.on("DELETE", f"{HERE}/fs", Answer(204))
    fake.on("POST", f"{HERE}/fs/mkdir", Answer(200, {"path": "/d"}))
    fake.on("GET", f"{HERE}/fs/stat", Answer(404, {"error": "missing"}))
    below = {"entries": [{"name": "d", "is_dir": True}, {"name": "f"}]}
    fake.on("GET", f"{HERE}/fs/dir", Answer(200, below), Answer(200, {"entries": None}))
    (tmp_path / "up").write_bytes(every_byte)

    async def test(sandbox: AsyncSandbox) -> None:
        files = sandbox.filesystem
        await files.upload(tmp_path / "up", "/a")
        assert fake.seen[-1].body == every_byte
        await files.download("/a", tmp_path / "down")
        await files.remove("/a")
        await files.mkdir("/d")
        assert not await files.exists("/a")
        walked = [(path, len(dirs), len(plain)) async for path, dirs, plain in files.walk("/")]
        assert walked == [("/", 1, 1), ("/d", 0, 0)]
        fake.on("GET", f"{HERE}/fs", Answer(200, "é".encode()))
        assert await files.read_text("/a") == "é"

    with_sandbox(fake, test)
    assert (tmp_path / "down").read_bytes() == every_byte


def test_the_rest_of_a_sandbox(fake: Fake) -> None:
    lifecycle = {"ttl_seconds": 5, "persistent": True, "idle_seconds": 0}
    fake.on("GET", f"{HERE}/lifecycle", Answer(200, lifecycle))
    fake.on("PATCH", f"{HERE}/lifecycle", Answer(200, lifecycle))
    fake.on("GET", f"{HERE}/metrics", Answer(200, {"threads": 1}))
    fake.on("GET", f"{HERE}/events", Answer(200, {"events": [{"type": "x"}]}))
    fake.on("GET", f"{HERE}/ports", Answer(200, [80]))
    fake.on("POST", f"{HERE}/ports", Answer(201, {"port": 80}))
    fake.on("DELETE", f"{HERE}/ports/80", Answer(204))
    fake.on("POST", f"{HERE}/preview-token", Answer(200, {"url": "u"}))
    fake.on("GET", f"{HERE}/traffic-token", Answer(200, {"traffic_token": "pdt_1"}))
    fake.on("POST", f"{HERE}/snapshots", Answer(201, {"id": "snap"}))
    fake.on("POST", f"{HERE}/fork", Answer(201, SANDBOX))
    fake.on("POST", f"{HERE}/fork-tree", Answer(201, {"children": [SANDBOX]}))
    fake.on("POST", f"{HERE}/promote", Answer(200, {"winner": "x"}))
    for verb in ("pause", "resume", "hibernate", "wake"):
        fake.on("POST", f"{HERE}/{verb}", Answer(204))
    sessions = f"{HERE}/repl/sessions"
    fake.on("POST", sessions, Answer(201, {"id": "s"}))
    fake.on("GET", sessions, Answer(200, [{"id": "s"}]))
    fake.on("POST", f"{sessions}/s/run", Answer(200, {"stdout": "1\n"}))
    fake.on("DELETE", f"{sessions}/s", Answer(204))

    async def test(sandbox: AsyncSandbox) -> None:
        assert await sandbox.lifecycle() == await sandbox.set_ttl(5)
        assert await sandbox.set_persistent(True) == lifecycle
        assert await sandbox.metrics() == {"threads": 1}
        assert await sandbox.events() == [{"type": "x"}]
        assert (await sandbox.expose_port(80)).port == 80
        await sandbox.close_port(80)
        assert list(await sandbox.preview_urls()) == [80]
        assert await sandbox.preview_token(80) == {"url": "u"}
        assert await sandbox.traffic_token() == "pdt_1"
        assert sandbox.preview_url(80).startswith(f"http://80-{sandbox.id}.localhost:")
        assert (await sandbox.expose_port(80, public=True)).port == 80
        assert await sandbox.snapshot() == "snap"
        assert (await sandbox.fork({"a": "b"})).id == sandbox.id
        assert len(await sandbox.fork_tree(1)) == 1
        assert await sandbox.promote() == {"winner": "x"}
        for act in (sandbox.pause, sandbox.resume, sandbox.hibernate, sandbox.wake):
            await act()
        async with await sandbox.create_code_context() as context:
            assert (await context.run_code("print(1)")).stdout == "1\n"
            assert await sandbox.code_contexts() == [{"id": "s"}]
        assert await sandbox.refresh() is sandbox
        await sandbox.kill()

    with_sandbox(fake, test)


def test_the_rest_of_a_client(fake: Fake) -> None:
    queued = {"id": "b", "name": "t", "status": "queued"}
    answers = {
        ("GET", "/me"): {"user_id": "u"},
        ("GET", "/sandboxes"): [SANDBOX],
        ("GET", "/me/tokens"): [{"prefix": "p"}],
        ("POST", "/me/tokens"): {"prefix": "p", "token": "t"},
        ("DELETE", "/me/tokens/p"): None,
        ("GET", "/volumes"): [{"name": "v"}],
        ("POST", "/volumes"): {"name": "v"},
        ("GET", "/volumes/v"): {"name": "v"},
        ("DELETE", "/volumes/v"): None,
        ("GET", "/snapshots"): {"snapshots": [{"id": "s"}]},
        ("GET", "/snapshots/s"): {"id": "s"},
        ("DELETE", "/snapshots/s"): None,
        ("GET", "/templates"): [{"name": "t"}],
        ("GET", "/templates/t"): {"name": "t"},
        ("DELETE", "/templates/t"): None,
        ("GET", "/templates/builds"): [queued],
        ("POST", "/templates/build"): queued,
        ("GET", "/templates/builds/b"): {**queued, "status": "done"},
    }
    for (method, path), body in answers.items():
        fake.on(method, f"/v1{path}", Answer(200, body))

    async def test(sandbox: AsyncSandbox) -> None:
        client = sandbox.client
        assert await client.me() == await client.request("GET", "me")
        assert (await client.sandboxes.list())[0] == await client.sandboxes.get(sandbox.id)
        assert (await client.sandboxes.create()).id == sandbox.id
        await client.sandboxes.delete(sandbox.id)
        assert (await client.tokens.list())[0].prefix == "p"
        assert (await client.tokens.create("n")).token == "t"
        await client.tokens.revoke("p")
        assert await client.volumes.list() == [await client.volumes.get("v")]
        await client.volumes.create("v", 1)
        await client.volumes.delete("v")
        assert await client.snapshots.list() == [await client.snapshots.get("s")]
        await client.snapshots.delete("s")
        assert await client.templates.list() == [await client.templates.get("t")]
        await client.templates.delete("t")
        assert not (await client.templates.builds())[0].is_terminal
        assert (await client.templates.register("t", "ref")).id == "b"
        assert (await client.templates.build_from_dockerfile("t", "FROM x\n")).id == "b"
        assert (await client.templates.wait_for_build("b")).is_done

    with_sandbox(fake, test)


def test_an_event_ends_a_wait(fake: Fake) -> None:
    fake.on("POST", "/v1/sandboxes", Answer(503, {"error": "full"}, {"Retry-After": "30"}))

    async def run() -> None:
        cancel = asyncio.Event()
        client = AsyncClient(fake.url, KEY, on_create_retry=lambda event: cancel.set())
        async with client:
            with pytest.raises(CreateCancelled):
                await client.sandboxes.create(cancel=cancel)
            with pytest.raises(TypeError, match=r"asyncio\.Event"):
                await client.sandboxes.create(cancel=threading.Event())  # type: ignore[arg-type]

    asyncio.run(asyncio.wait_for(run(), 10))
    assert len(fake.seen) == 1


def test_refused_creates_are_retried(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: low)
    refusal = Answer(503, {"error": "full"}, {"Retry-After": "0"})
    fake.on("POST", "/v1/sandboxes", refusal, refusal, Answer(201, SANDBOX))

    async def test(sandbox: AsyncSandbox) -> None:
        never = asyncio.Event()
        await sandbox.client.sandboxes.create(cancel=never)

    with_sandbox(fake, test)
    assert len(fake.seen) == 3


def test_no_server_is_a_connection_error() -> None:
    async def run() -> None:
        async with AsyncClient("http://127.0.0.1:1", KEY) as client:
            with pytest.raises(ConnectionError):
                await client.me()

    asyncio.run(run())
