# SPDX-License-Identifier: Apache-2.0
"""When a refused create is sent again.

A create has no idempotency key, so it is sent again only after an answer that a server gives
*before* a sandbox exists:

* 503 with ``Retry-After`` and a JSON ``error``: no room now. A 503 without both marks may come
  from something in between, after the server took the request.
* 507: the host's memory or disk gate.
* 429 with ``Retry-After``: the rate limiter. Without it: a quota, which waiting does not raise.

Every other failure (500, 502, a cut connection, a timeout) may follow a create that went through.
"""

from __future__ import annotations

import logging
import math
import os
import random
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, Callable, Optional

from ..exceptions import CreateCancelled, PandastackError
from .answers import decode, error_of, error_text
from .wire import Flow, Reply, Request, pause, send

logger = logging.getLogger("pandastack.client")

#: Seconds after the first attempt in which another may start, unless configured.
DEFAULT_MAX_CREATE_RETRY_SECONDS = 60.0

# Upper bounds of the random part of each wait; the last one repeats.
_JITTER = (1.0, 2.0, 4.0, 8.0, 15.0)
# A 507 names no wait; this is its own.
_STORAGE_WAIT = 0.5
# A wait that is cut to fit the budget keeps at least this much, or it would be no wait at all.
_SHORTEST_CUT = 1.0


@dataclass(frozen=True)
class CreateRetryEvent:
    """One refusal that is about to be retried: what ``on_create_retry`` is called with."""

    method: str
    path: str
    #: 1 before the first retry.
    attempt: int
    #: 429, 503 or 507.
    status_code: int
    #: The refusal in the server's words.
    error: str
    #: How long the wait will be.
    delay_seconds: float
    #: Since the first attempt began.
    elapsed_seconds: float
    #: The wait that the server asked for, if it did.
    retry_after_seconds: Optional[float] = None


@dataclass(frozen=True)
class Patience:
    """How long a client keeps trying, and whom it tells. ``cancel`` has ``is_set()``."""

    budget: float
    on_retry: Optional[Callable[[CreateRetryEvent], None]] = None
    cancel: Any = None

    @property
    def cancelled(self) -> bool:
        """Whether the caller has given up."""
        return self.cancel is not None and bool(self.cancel.is_set())


def budget_seconds(explicit: Optional[float]) -> float:
    """The retry budget: argument, else ``PANDASTACK_MAX_CREATE_RETRY_SECONDS``, else 60.

    A bad argument is the caller's error; a bad variable only costs a warning.
    """
    if explicit is not None:
        value = _budget(explicit)
        if value is None:
            raise ValueError("max_create_retry_seconds must be a finite number >= 0 (0: no retry)")
        return value
    text = os.getenv("PANDASTACK_MAX_CREATE_RETRY_SECONDS", "").strip()
    value = _budget(text) if text else DEFAULT_MAX_CREATE_RETRY_SECONDS
    if value is None:
        logger.warning("ignoring PANDASTACK_MAX_CREATE_RETRY_SECONDS=%r: not a number >= 0", text)
        return DEFAULT_MAX_CREATE_RETRY_SECONDS
    return value


def create_call(request: Request, patience: Patience) -> Flow[Reply]:
    """Sends a create and keeps at it while the server refuses it for capacity.

    The budget bounds when an attempt may *start*: one in flight is never cut short, because the
    sandbox that it may make would be lost. When the budget is used up, the last refusal is
    raised as it came.
    """
    started = time.monotonic()
    retries = 0
    refusal: Optional[PandastackError] = None
    while True:
        if patience.cancelled:
            raise _given_up(refusal)
        reply = yield from send(request)
        if reply.ok:
            return reply
        elapsed = time.monotonic() - started
        delay = retry_delay(reply, retries, patience.budget - elapsed)
        refusal = error_of(reply)
        if delay is None:
            raise refusal
        if patience.cancelled:
            raise _given_up(refusal)
        retries += 1
        event = CreateRetryEvent(
            method=request.method,
            path=request.path,
            attempt=retries,
            status_code=reply.status,
            error=error_text(reply),
            delay_seconds=delay,
            elapsed_seconds=elapsed,
            retry_after_seconds=retry_after(reply),
        )
        logger.info(
            "%s %s refused with %d (%s): retry %d in %.1f s, %.1f s of %.0f s used",
            *(event.method, event.path, event.status_code, event.error, retries),
            *(delay, elapsed, patience.budget),
        )
        if patience.on_retry is not None:
            patience.on_retry(event)
        if (yield from pause(delay, patience.cancel)):
            raise _given_up(refusal)


def retry_delay(reply: Reply, retries: int, left: float) -> Optional[float]:
    """Seconds to wait before another attempt, or None to raise the refusal.

    The jitter comes on top of the server's hint, so that clients that were refused together do
    not return together.
    """
    hint = retry_after(reply)
    if not _before_anything_existed(reply, hint):
        return None
    least = max(hint or 0.0, _STORAGE_WAIT if reply.status == 507 else 0.0)
    if left <= 0 or least > left:
        return None
    delay = least + random.uniform(0.0, _JITTER[min(retries, len(_JITTER) - 1)])
    if delay <= left:
        return delay
    return left if left >= max(least, _SHORTEST_CUT) else None


def retry_after(reply: Reply) -> Optional[float]:
    """The ``Retry-After`` header in seconds, whether a number or a date."""
    text = reply.headers.get("retry-after", "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            when = parsedate_to_datetime(text)
        except (IndexError, OverflowError, TypeError, ValueError):
            return None
        if when.tzinfo is None:
            when = when.replace(tzinfo=timezone.utc)
        seconds = (when - datetime.now(timezone.utc)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _before_anything_existed(reply: Reply, hint: Optional[float]) -> bool:
    if reply.status == 503:
        body = decode(reply)
        error = body.get("error") if isinstance(body, dict) else None
        return hint is not None and isinstance(error, str) and bool(error.strip())
    return reply.status == 507 or (reply.status == 429 and hint is not None)


def _given_up(refusal: Optional[PandastackError]) -> CreateCancelled:
    after = f" after a refusal: {refusal}" if refusal else " before it was sent"
    cancelled = CreateCancelled("sandbox create cancelled" + after)
    cancelled.__cause__ = refusal
    return cancelled


def _budget(value: object) -> Optional[float]:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number >= 0 else None
