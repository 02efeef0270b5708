# SPDX-License-Identifier: Apache-2.0
"""Server-sent events, decoded from bytes as they arrive.

Lines end at CR, LF or CRLF and nowhere else: the bytes are split before they are decoded, so a
U+0085 or U+2028 in the data stays data. The text is UTF-8 whatever the headers say. An event
that the stream did not finish is dropped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import List

_LINE_END = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True)
class Event:
    """One event. ``name`` is empty when the server gave none."""

    name: str
    data: str


class SseDecoder:
    """Feed it bytes cut anywhere; it gives the events that became complete."""

    def __init__(self) -> None:
        self._rest = b""
        self._name = ""
        self._data: List[str] = []

    def feed(self, chunk: bytes) -> List[Event]:
        """The events that end within ``chunk``."""
        text = self._rest + chunk
        # A CR at the end may be half of a CRLF: keep it until the next byte tells.
        held = text[-1:] if text.endswith(b"\r") else b""
        *lines, rest = _LINE_END.split(text[: len(text) - len(held)])
        self._rest = rest + held
        events = []
        for line in lines:
            event = self._line(line.decode("utf-8", "replace"))
            if event is not None:
                events.append(event)
        return events

    def _line(self, line: str) -> "Event | None":
        if not line:
            event = Event(self._name, "\n".join(self._data)) if self._data else None
            self._name, self._data = "", []
            return event
        field, _, value = line.partition(":")
        value = value[1:] if value.startswith(" ") else value
        # A comment has an empty field name and falls through.
        if field == "event":
            self._name = value
        elif field == "data":
            self._data.append(value)
        return None
