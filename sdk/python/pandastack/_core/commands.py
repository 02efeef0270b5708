# SPDX-License-Identifier: Apache-2.0
"""Flows and requests that run commands in a sandbox and read what it wrote."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional, Sequence, Union

from ..exceptions import CommandFailed, SandboxTimeout, ServerError
from ..records import ExecResult
from .answers import as_object, call, raise_if_timeout
from .warmup import warmed_up
from .wire import Flow, Request, path

#: Silence that a stream of output may keep: servers send a comment every few seconds.
STREAM_PATIENCE = 900.0
# A server ends a command when its time is up; the answer needs a moment more. The answer to a
# command without a limit begins in time for clients that give up after 30 seconds.
_SILENT_SECONDS = 30.0
_GRACE = 15.0


@dataclass(frozen=True)
class Command:
    """A command line for the guest's shell, or an argument vector without a shell."""

    cmd: Union[str, Sequence[str]]
    timeout_seconds: Optional[int] = None
    env: Optional[Mapping[str, str]] = None
    cwd: Optional[str] = None
    user: Optional[str] = None
    stdin: Optional[str] = None

    def __str__(self) -> str:
        return self.cmd if isinstance(self.cmd, str) else shlex.join(self.cmd)

    def body(self) -> Dict[str, Any]:
        """The JSON fields; only what was given."""
        body: Dict[str, Any] = {}
        if isinstance(self.cmd, str):
            body["cmd"] = self.cmd
        else:
            body["argv"] = [str(word) for word in self.cmd]
        optional = {
            "timeout_seconds": self.timeout_seconds,
            "env": None if self.env is None else dict(self.env),
            "cwd": self.cwd,
            "user": self.user,
            "stdin": self.stdin,
        }
        body.update((name, value) for name, value in optional.items() if value is not None)
        return body

    def patience(self) -> float:
        """A command that may run for long may be silent for long."""
        return (self.timeout_seconds or _SILENT_SECONDS) + _GRACE


def exec_command(sandbox_id: str, command: Command, check: bool) -> Flow[ExecResult]:
    """Runs a command to its end."""
    request = Request(
        "POST",
        path("sandboxes", sandbox_id, "exec"),
        json=command.body(),
        patience=command.patience(),
    )
    try:
        answer = as_object((yield from warmed_up(lambda: call(request))))
        result = _exec_result(answer, command)
    except ServerError as error:
        raise_if_timeout(error, str(command))
        raise
    if check and result.exit_code != 0:
        raise CommandFailed(
            f"command exited with code {result.exit_code}: {command}",
            exit_code=result.exit_code,
            stdout=result.stdout,
            stderr=result.stderr,
        )
    return result


def _exec_result(answer: Dict[str, Any], command: Command) -> ExecResult:
    """A server that had begun to answer when something failed can only say so in the body."""
    if answer.get("timed_out"):
        raise SandboxTimeout(
            f"command timed out: {command}",
            partial_stdout=str(answer.get("stdout") or ""),
            partial_stderr=str(answer.get("stderr") or ""),
        )
    if "exit_code" not in answer and "exit" not in answer:
        raise ServerError(str(answer.get("error") or "the exec answer holds no exit code"))
    return ExecResult.from_dict(answer)


def exec_stream_request(sandbox_id: str, command: Command) -> Request:
    """The request whose answer is a command's output as events."""
    return Request(
        "POST",
        path("sandboxes", sandbox_id, "exec", "stream"),
        json=command.body(),
        headers={"Accept": "text/event-stream"},
        patience=max(STREAM_PATIENCE, command.patience()),
    )


def code_command(code: str, language: str) -> str:
    """The command line that runs a piece of code once."""
    programs = {"python": "python3", "py": "python3", "python3": "python3"}
    programs.update(dict.fromkeys(("shell", "sh", "bash"), "bash"))
    program = programs.get(language.lower())
    if program is None:
        raise ValueError(f"unsupported language: {language}")
    return f"{program} -c {shlex.quote(code)}"


def logs_request(sandbox_id: str, stream: str, follow: bool, tail: Optional[int]) -> Request:
    """The request for a sandbox's log: plain text, or events when it is followed."""
    params = {"stream": stream, "follow": "true" if follow else "false"}
    if tail is not None:
        params["tail"] = str(tail)
    return Request(
        "GET",
        path("sandboxes", sandbox_id, "logs"),
        params=params,
        headers={"Accept": "text/event-stream" if follow else "text/plain"},
        patience=STREAM_PATIENCE if follow else 0.0,
    )
