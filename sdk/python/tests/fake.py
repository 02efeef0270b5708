# SPDX-License-Identifier: Apache-2.0
"""A server on a real socket that answers what a test tells it to, and remembers what it was asked.

Answers are queued per method and path; the last one of a queue is given again and again.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Tuple, Union
from urllib.parse import parse_qsl, urlsplit

KEY = "pds_test"

SANDBOX: Dict[str, Any] = {
    "id": "1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed",
    "template": "code-interpreter",
    "cpu": 2,
    "memory_mb": 1024,
    "status": "running",
    "metadata": {"owner": "tests"},
    "boot_ms": 7,
    "boot_mode": "pool",
    "created_at": "2026-01-02T03:04:05Z",
    "persistent": False,
    "ttl_seconds": 300,
    "engine": "qemu",
    "isolation": "emulated",
    "egress": "none",
    "something_new": {"of": "a later server"},
}
HERE = f"/v1/sandboxes/{SANDBOX['id']}"


@dataclass(frozen=True)
class Seen:
    """A request as it arrived."""

    method: str
    path: str
    query: Dict[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    """A status and a body; anything that is not bytes is sent as JSON."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


Piece = Union[bytes, Callable[[], Any]]


@dataclass(frozen=True)
class Stream:
    """A chunked answer. Callables among the pieces are called in between; with ``cut`` the
    connection is dropped without the final chunk."""

    pieces: Iterable[Piece]
    cut: bool = False
    content_type: str = "text/event-stream"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class Fake:
    """The server; also a context manager."""

    def __init__(self) -> None:
        self.seen: List[Seen] = []
        self._answers: Dict[Tuple[str, str], List[Union[Answer, Stream]]] = {}
        self._server = _Server(("127.0.0.1", 0), _handler_of(self))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def on(self, method: str, path: str, *answers: Union[Answer, Stream]) -> None:
        self._answers[method, path] = list(answers)

    def answer_to(self, seen: Seen) -> Union[Answer, Stream]:
        self.seen.append(seen)
        queue = self._answers.get((seen.method, seen.path))
        if not queue:
            return Answer(404, {"error": f"no route {seen.method} {seen.path}"})
        return queue.pop(0) if len(queue) > 1 else queue[0]

    def requests(self, method: str, path: str) -> List[Seen]:
        return [s for s in self.seen if (s.method, s.path) == (method, path)]

    def only(self, method: str, path: str) -> Seen:
        [seen] = self.requests(method, path)
        return seen

    def __enter__(self) -> Fake:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def event(name: str, body: Any) -> bytes:
    """A server-sent event with JSON in it."""
    return f"event: {name}\ndata: {json.dumps(body)}\n\n".encode()


def _handler_of(fake: Fake) -> type:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # an answer in one piece, unless it is a stream

        def _serve(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            target = urlsplit(self.path)
            seen = Seen(
                method=self.command,
                path=target.path,
                query=dict(parse_qsl(target.query, keep_blank_values=True)),
                headers={name.lower(): value for name, value in self.headers.items()},
                body=self.rfile.read(length),
            )
            if seen.headers.get("authorization") != f"Bearer {KEY}":
                self._whole(Answer(401, {"error": "unknown token", "detail": "unauthorized"}))
                return
            answer = fake.answer_to(seen)
            if isinstance(answer, Stream):
                self._stream(answer)
            else:
                self._whole(answer)

        def _whole(self, answer: Answer) -> None:
            body, kind = _encoded(answer.body)
            self.send_response(answer.status)
            headers = {"Content-Type": kind, **answer.headers}
            for name, value in headers.items():
                if value:
                    self.send_header(name, value)
            if answer.status != 204:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _stream(self, stream: Stream) -> None:
            self.send_response(200)
            self.send_header("Content-Type", stream.content_type)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for piece in stream.pieces:
                if callable(piece):
                    piece()
                    continue
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                self.wfile.flush()
            if stream.cut:
                self.close_connection = True
            else:
                self.wfile.write(b"0\r\n\r\n")

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """Tests are quiet."""

    return Handler


def _encoded(body: Any) -> Tuple[bytes, Optional[str]]:
    if body is None:
        return b"", None
    if isinstance(body, bytes):
        return body, "application/octet-stream"
    return json.dumps(body).encode(), "application/json"
