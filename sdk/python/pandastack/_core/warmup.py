# SPDX-License-Identifier: Apache-2.0
"""Patience with a guest that has only just started.

Some servers answer before the guest listens, with a 5xx that holds one of the phrases below. They
mean that nothing was started in the guest, so the call may be sent again.
"""

from __future__ import annotations

import os
import time
from typing import Callable

from ..exceptions import ServerError
from .wire import Flow, T, pause

_PHRASES = ("connect: connection refused", "no route to host", "i/o timeout")
_FIRST_DELAY = 0.5
_LONGEST_DELAY = 2.0


def warmed_up(attempt: Callable[[], Flow[T]]) -> Flow[T]:
    """Runs ``attempt`` again while the guest is coming up, for at most
    ``PANDASTACK_EXEC_READY_TIMEOUT`` seconds (20)."""
    deadline = time.monotonic() + float(os.getenv("PANDASTACK_EXEC_READY_TIMEOUT") or 20)
    delay = _FIRST_DELAY
    while True:
        try:
            return (yield from attempt())
        except ServerError as error:
            if not any(phrase in str(error) for phrase in _PHRASES):
                raise
            if time.monotonic() >= deadline:
                raise
        yield from pause(delay)
        delay = min(delay * 1.5, _LONGEST_DELAY)
