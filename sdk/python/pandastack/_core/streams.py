# SPDX-License-Identifier: Apache-2.0
"""What the events of each stream mean."""

from __future__ import annotations

import json
from collections import deque
from typing import Any, Deque, Dict, Iterator, Optional, Tuple

from ..exceptions import ExecInterrupted, PandastackError, SandboxTimeout, ServerError
from .sse import SseDecoder

# How much output an ExecInterrupted carries, in characters per stream.
_KEPT = 1 << 20


class ExecStream:
    """A command's output as it arrives, and its exit code once that has."""

    def __init__(self) -> None:
        self.exit_code: Optional[int] = None
        self._decoder = SseDecoder()
        self._seen = {"stdout": _Tail(), "stderr": _Tail()}

    def feed(self, chunk: bytes) -> Iterator[Tuple[str, str]]:
        """Pairs of stream name and text; raises what an ``error`` event says."""
        for event in self._decoder.feed(chunk):
            body = _object(event.data)
            if event.name == "exit":
                self.exit_code = _exit_code(body)
            elif event.name == "error":
                raise self._failed(str(body.get("error") or "exec stream failed"))
            elif event.name in self._seen:
                text = str(body.get("chunk", ""))
                self._seen[event.name].add(text)
                yield event.name, text

    def finish(self) -> int:
        """The exit code; a stream that ended without one has no known outcome."""
        if self.exit_code is None:
            raise self.interrupted()
        return self.exit_code

    def _failed(self, text: str) -> PandastackError:
        if "timeout" not in text.lower():
            return ServerError(text)
        return SandboxTimeout(text, **self._partial())

    def interrupted(self) -> ExecInterrupted:
        """The error for a stream that broke off, with what it had brought."""
        return ExecInterrupted(
            "the command's stream ended without an exit code: its outcome is unknown, and it may "
            "still be running",
            **self._partial(),
        )

    def _partial(self) -> Dict[str, str]:
        return {f"partial_{name}": str(seen) for name, seen in self._seen.items()}


class LogLines:
    """The lines of a followed log."""

    def __init__(self) -> None:
        self._decoder = SseDecoder()

    def feed(self, chunk: bytes) -> Iterator[str]:
        """The lines that became complete."""
        for event in self._decoder.feed(chunk):
            try:
                body = json.loads(event.data)
            except ValueError:
                body = None
            if not isinstance(body, dict):
                yield event.data
            elif event.name == "error":
                raise ServerError(str(body.get("error") or "log stream failed"))
            elif "line" in body or "chunk" in body:
                text = str(body.get("line", body.get("chunk")))
                yield text[:-1] if text.endswith("\n") else text


class BuildLines:
    """The lines of a build log, until the server says that it is over."""

    def __init__(self) -> None:
        self.ended = False
        self._decoder = SseDecoder()

    def feed(self, chunk: bytes) -> Iterator[str]:
        """The lines that became complete; nothing after the end."""
        for event in self._decoder.feed(chunk):
            if self.ended or event.name == "done" or event.data == "end":
                self.ended = True
                return
            yield event.data


def text_lines(body: bytes) -> Iterator[str]:
    """The lines of a plain log. Only a line feed ends a line."""
    text = body.decode("utf-8", "replace")
    if text:
        for line in text[: -1 if text.endswith("\n") else None].split("\n"):
            yield line[:-1] if line.endswith("\r") else line


class _Tail:
    """The end of a text that may be long."""

    def __init__(self) -> None:
        self._pieces: Deque[str] = deque()
        self._length = 0

    def add(self, text: str) -> None:
        self._pieces.append(text)
        self._length += len(text)
        while self._length - len(self._pieces[0]) >= _KEPT:
            self._length -= len(self._pieces.popleft())

    def __str__(self) -> str:
        return "".join(self._pieces)[-_KEPT:]


def _object(data: str) -> Dict[str, Any]:
    """An event's JSON object; text that is none counts as a chunk of output."""
    try:
        value = json.loads(data)
    except ValueError:
        return {"chunk": data}
    return value if isinstance(value, dict) else {"chunk": data}


def _exit_code(body: Dict[str, Any]) -> Optional[int]:
    """An exit event without a number in it tells nothing."""
    code = body.get("exit_code")
    return code if isinstance(code, int) else None
