# SPDX-License-Identifier: Apache-2.0
"""Commands: run to their end, and as streams."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, List

import pytest

from pandastack import (
    CommandFailed,
    ExecInterrupted,
    ExecResult,
    Sandbox,
    SandboxTimeout,
    ServerError,
)
from pandastack._core import streams, warmup

from .fake import HERE, Answer, Fake, Stream, event

EXEC = f"{HERE}/exec"
STREAM = f"{HERE}/exec/stream"
DONE = {"stdout": "out", "stderr": "err", "exit_code": 0, "duration_ms": 12}
AWKWARD = "é 🐼 next\u0085line\u2028separator\n"


def test_the_result(fake: Fake, sandbox: Sandbox) -> None:
    fake.on("POST", EXEC, Answer(200, DONE))
    assert sandbox.exec("ls") == ExecResult("out", "err", 0, 12, truncated=False)
    assert fake.only("POST", EXEC).json == {"cmd": "ls"}
    fake.on("POST", EXEC, Answer(200, {"stdout": AWKWARD, "exit": 137, "truncated": True}))
    assert sandbox.exec("ls") == ExecResult(AWKWARD, "", 137, 0, truncated=True)


def test_only_what_is_given_is_sent(fake: Fake, sandbox: Sandbox) -> None:
    fake.on("POST", EXEC, Answer(200, DONE))
    sandbox.exec(
        ["printf", "%s", "a b"],
        timeout_seconds=5,
        env={"A": "1"},
        cwd="/srv",
        user="nobody",
        stdin="text",
    )
    assert fake.only("POST", EXEC).json == {
        "argv": ["printf", "%s", "a b"],
        "timeout_seconds": 5,
        "env": {"A": "1"},
        "cwd": "/srv",
        "user": "nobody",
        "stdin": "text",
    }


def test_commands_run_is_exec(fake: Fake, sandbox: Sandbox) -> None:
    fake.on("POST", EXEC, Answer(200, DONE))
    assert sandbox.commands.run("ls", timeout=3, cwd="/").stdout == "out"
    assert fake.only("POST", EXEC).json == {"cmd": "ls", "timeout_seconds": 3, "cwd": "/"}


def test_check(fake: Fake, sandbox: Sandbox) -> None:
    fake.on("POST", EXEC, Answer(200, {**DONE, "exit_code": 3}))
    assert sandbox.exec("x").exit_code == 3
    with pytest.raises(CommandFailed, match="code 3: run -a 'b c'") as caught:
        sandbox.exec(["run", "-a", "b c"], check=True)
    assert (caught.value.exit_code, caught.value.stdout, caught.value.stderr) == (3, "out", "err")


@pytest.mark.parametrize(
    ("code", "language", "sent"),
    [
        ("print('x')", "Python", "python3 -c 'print('\"'\"'x'\"'\"')'"),
        ("ls", "sh", "bash -c ls"),
    ],
)
def test_run_code(fake: Fake, sandbox: Sandbox, code: str, language: str, sent: str) -> None:
    fake.on("POST", EXEC, Answer(200, DONE))
    sandbox.run_code(code, language)
    assert fake.only("POST", EXEC).json == {"cmd": sent}
    with pytest.raises(ValueError, match="cobol"):
        sandbox.run_code(code, "cobol")


@pytest.mark.parametrize(
    "answer",
    [
        Answer(504, {"error": "exec timeout after 1s"}),
        Answer(500, {"error": "context Deadline Exceeded"}),
        # The server had begun to answer, to keep the connection alive, when time ran out.
        Answer(200, b'   {"error": "exec timeout after 40s"}'),
    ],
)
def test_timeouts(fake: Fake, sandbox: Sandbox, answer: Answer) -> None:
    fake.on("POST", EXEC, answer)
    with pytest.raises(SandboxTimeout, match="command timed out: sleep 9") as caught:
        sandbox.exec("sleep 9", timeout_seconds=1)
    assert isinstance(caught.value.__cause__, ServerError)


def test_a_late_timeout_brings_the_output(fake: Fake, sandbox: Sandbox) -> None:
    late = {"stdout": "part", "stderr": "exec timeout", "exit_code": 124, "timed_out": True}
    fake.on("POST", EXEC, Answer(200, late))
    with pytest.raises(SandboxTimeout, match="command timed out: sleep 9") as caught:
        sandbox.exec(["sleep", "9"], timeout_seconds=40)
    assert (caught.value.partial_stdout, caught.value.partial_stderr) == ("part", "exec timeout")


def test_white_space_may_come_first(fake: Fake, sandbox: Sandbox) -> None:
    body = [b" ", b"  ", json.dumps(DONE).encode()]
    fake.on("POST", EXEC, Stream(body, content_type="application/json"))
    assert sandbox.exec("x").stdout == "out"


def test_no_exit_code_is_no_success(fake: Fake, sandbox: Sandbox) -> None:
    fake.on("POST", EXEC, Answer(200, {"stdout": "part"}))
    with pytest.raises(ServerError, match="no exit code"):
        sandbox.exec("x")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "_FIRST_DELAY", 0.001)


@pytest.mark.usefixtures("hasty")
def test_a_guest_that_is_coming_up_is_waited_for(fake: Fake, sandbox: Sandbox) -> None:
    early = Answer(502, {"error": "dial: connect: connection refused"})
    late = Answer(502, {"error": "read: i/o timeout"})
    fake.on("POST", EXEC, early, late, Answer(200, DONE))
    assert sandbox.exec("x").exit_code == 0
    assert len(fake.seen) == 3


def test_patience_ends(fake: Fake, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PANDASTACK_EXEC_READY_TIMEOUT", "0")
    fake.on("POST", EXEC, Answer(502, {"error": "no route to host"}))
    with pytest.raises(ServerError, match="no route"):
        sandbox.exec("x")
    fake.on("POST", EXEC, Answer(502, {"error": "i/o timeout"}))
    with pytest.raises(ServerError, match="i/o timeout"):
        sandbox.exec("x")


def test_other_failures_are_sent_once(fake: Fake, sandbox: Sandbox) -> None:
    fake.on("POST", EXEC, Answer(500, {"error": "agent failed"}))
    with pytest.raises(ServerError, match="agent failed"):
        sandbox.exec("x")
    assert len(fake.seen) == 1


def test_threads_share_a_client(fake: Fake, sandbox: Sandbox) -> None:
    fake.on("POST", EXEC, Answer(200, DONE))
    with ThreadPoolExecutor(32) as pool:
        results = list(pool.map(lambda n: sandbox.exec(f"echo {n}").exit_code, range(128)))
    assert results == [0] * 128


def test_a_stream_arrives_as_it_is_written(fake: Fake, sandbox: Sandbox) -> None:
    arrived = threading.Event()
    waited: List[bool] = []
    fake.on(
        "POST",
        STREAM,
        Stream(
            [
                b": ping\n\n",
                event("stdout", {"chunk": "first"}),
                lambda: waited.append(arrived.wait(10)),
                event("stderr", {"chunk": AWKWARD}),
                event("exit", {"exit_code": 5}),
            ]
        ),
    )
    out: List[str] = []
    err: List[str] = []

    def on_stdout(chunk: str) -> None:
        out.append(chunk)
        arrived.set()

    assert sandbox.exec_stream("x", on_stdout, err.append, timeout_seconds=9) == 5
    assert waited == [True]
    assert (out, err) == (["first"], [AWKWARD])
    seen = fake.only("POST", STREAM)
    assert seen.json == {"cmd": "x", "timeout_seconds": 9}
    assert seen.headers["accept"] == "text/event-stream"


def test_raw_utf_8_in_pieces(fake: Fake, sandbox: Sandbox) -> None:
    body = f'event: stdout\ndata: {{"chunk": "{AWKWARD.strip()}"}}\n\n'.encode()
    pieces: List[Any] = [body[i : i + 1] for i in range(len(body))]
    fake.on("POST", STREAM, Stream([*pieces, event("exit", {"exit_code": 0})]))
    out: List[str] = []
    assert sandbox.exec_stream("x", out.append) == 0
    assert "".join(out) == AWKWARD.strip()


@pytest.mark.parametrize("cut", [False, True])
def test_a_stream_without_an_exit_code_is_interrupted(
    fake: Fake, sandbox: Sandbox, cut: bool
) -> None:
    pieces = [event("stdout", {"chunk": "some"}), event("stderr", {"chunk": "thing"})]
    fake.on("POST", STREAM, Stream(pieces, cut=cut))
    with pytest.raises(ExecInterrupted) as caught:
        sandbox.exec_stream("x")
    assert (caught.value.partial_stdout, caught.value.partial_stderr) == ("some", "thing")


def test_an_exit_event_without_a_code_is_interrupted(fake: Fake, sandbox: Sandbox) -> None:
    fake.on("POST", STREAM, Stream([event("exit", {})]))
    with pytest.raises(ExecInterrupted):
        sandbox.exec_stream("x")


def test_once_the_exit_code_is_here_nothing_is_lost(fake: Fake, sandbox: Sandbox) -> None:
    fake.on("POST", STREAM, Stream([event("exit", {"exit_code": 0})], cut=True))
    assert sandbox.exec_stream("x") == 0


def test_errors_in_a_stream(fake: Fake, sandbox: Sandbox) -> None:
    late = [event("stdout", {"chunk": "part"}), event("error", {"error": "exec Timeout after 1s"})]
    fake.on("POST", STREAM, Stream(late))
    with pytest.raises(SandboxTimeout, match="exec Timeout") as caught:
        sandbox.exec_stream("x")
    assert caught.value.partial_stdout == "part"
    fake.on("POST", STREAM, Stream([event("error", {"error": "machine ended"})]))
    with pytest.raises(ServerError, match="machine ended"):
        sandbox.exec_stream("x")
    fake.on("POST", STREAM, Answer(500, {"error": "agent failed"}))
    with pytest.raises(ServerError, match="agent failed"):
        sandbox.exec_stream("x")


def test_what_a_callback_raises_comes_out(fake: Fake, sandbox: Sandbox) -> None:
    fake.on("POST", STREAM, Stream([event("stdout", {"chunk": "a"})] * 3))

    def stop(chunk: str) -> None:
        raise KeyError(chunk)

    with pytest.raises(KeyError):
        sandbox.exec_stream("x", stop)


def test_what_is_kept_of_a_long_stream_is_bounded(
    fake: Fake, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_KEPT", 10)
    fake.on("POST", STREAM, Stream([event("stdout", {"chunk": c * 4}) for c in "abcdef"]))
    with pytest.raises(ExecInterrupted) as caught:
        sandbox.exec_stream("x")
    assert caught.value.partial_stdout == "ddeeeeffff"


def test_logs(fake: Fake, sandbox: Sandbox) -> None:
    fake.on("GET", f"{HERE}/logs", Answer(200, "é\nb\n".encode(), {"Content-Type": "text/plain"}))
    assert list(sandbox.logs("stderr", tail=2)) == ["é", "b"]
    assert fake.seen[-1].query == {"stream": "stderr", "follow": "false", "tail": "2"}
    fake.on("GET", f"{HERE}/logs", Stream([b": ping\n\n", b'data: {"line": "x\\n"}\n\n']))
    assert list(sandbox.logs(follow=True)) == ["x"]
    assert fake.seen[-1].query == {"stream": "both", "follow": "true"}
