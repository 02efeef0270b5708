# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random
from typing import List

import pytest

from pandastack._core.sse import Event, SseDecoder
from pandastack._core.streams import BuildLines, LogLines, text_lines
from pandastack.exceptions import ServerError


def decoded(*chunks: bytes) -> List[Event]:
    decoder = SseDecoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_every_line_end_of_the_format(end: bytes) -> None:
    stream = end.join([b"event: a", b"data: 1", b"", b"data: 2", b"", b"x"])
    assert decoded(stream) == [Event("a", "1"), Event("", "2")]


def test_comments_and_other_fields_are_nothing() -> None:
    assert decoded(b": ping\n\nid: 7\nretry: 1\n\ndata\n\n") == [Event("", "")]


def test_lines_of_data_are_joined_and_lose_one_space() -> None:
    assert decoded(b"data:  a\ndata:b\n\n") == [Event("", " a\nb")]


def test_an_unfinished_event_is_dropped() -> None:
    assert decoded(b"event: exit\ndata: {}\n") == []


def test_only_line_ends_end_lines() -> None:
    text = "next\u0085line\u2028separator\u2029paragraph\x0bvertical\x0cform\x1cfile"
    assert decoded(f"data: {text}\n\n".encode()) == [Event("", text)]


def test_bytes_may_be_cut_anywhere() -> None:
    stream = 'event: stdout\r\ndata: {"chunk":"é🐼\u2028"}\r\n\r\n: ping\n\ndata: x\r\r'.encode()
    whole = decoded(stream + b"\n")
    assert len(whole) == 2
    generator = random.Random(7)
    for _ in range(300):
        cuts = sorted(generator.sample(range(len(stream)), generator.randrange(1, 12)))
        pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)])]
        assert decoded(*pieces, b"\n") == whole


def test_followed_logs() -> None:
    stream = (
        b'event: open\ndata: {"id": 1}\n\n'
        b'data: {"line": "one\\n"}\n\n'
        b'data: {"chunk": "two"}\n\n'
        b"data: 3\n\n"
        b"data: plain\n\n"
    )
    assert list(LogLines().feed(stream)) == ["one", "two", "3", "plain"]
    with pytest.raises(ServerError, match="gone"):
        list(LogLines().feed(b'event: error\ndata: {"error": "gone"}\n\n'))


@pytest.mark.parametrize("end", [b"event: done\ndata: end\n\n", b"data: end\n\n"])
def test_build_logs_end(end: bytes) -> None:
    lines = BuildLines()
    assert list(lines.feed(b"data: step 1\n\n" + end + b"data: late\n\n")) == ["step 1"]
    assert lines.ended


@pytest.mark.parametrize(
    ("body", "lines"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"a\nb", ["a", "b"]),
        (b"a\r\n\nb\n", ["a", "", "b"]),
        ("é\u2028\u0085\n".encode(), ["é\u2028\u0085"]),
        (b"\xff\n", ["\ufffd"]),
    ],
)
def test_plain_logs(body: bytes, lines: List[str]) -> None:
    assert list(text_lines(body)) == lines
