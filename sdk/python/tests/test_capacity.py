# SPDX-License-Identifier: Apache-2.0
"""The retry of refused creates: the rule by itself, the flow on a fake clock, then on a socket."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any, Callable, Dict, List, Optional

import httpx
import pytest

from pandastack import (
    BadRequestError,
    Client,
    CreateCancelled,
    CreateRetryEvent,
    Sandbox,
    ServerError,
)
from pandastack._core.capacity import Patience, budget_seconds, create_call, retry_delay
from pandastack._core.wire import Pause, Reply, Request

from .fake import KEY, SANDBOX, Answer, Fake

FULL = b'{"error": "no compute capacity available"}'


def reply(status: int, after: Optional[str] = None, body: bytes = FULL) -> Reply:
    headers = {} if after is None else {"Retry-After": after}
    return Reply(status, httpx.Headers(headers), body)


@pytest.fixture
def most_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: high)


@pytest.fixture
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: low)


@pytest.mark.parametrize(
    "refusal",
    [
        reply(503, "5"),
        reply(507),
        reply(507, "3", b""),
        reply(429, "1", b""),
    ],
)
def test_refused_before_anything_existed(refusal: Reply) -> None:
    assert retry_delay(refusal, 0, 60.0) is not None


@pytest.mark.parametrize(
    "refusal",
    [
        reply(503),
        reply(503, "5", b"upstream connect error"),
        reply(503, "5", b'{"error": {"code": 1}}'),
        reply(503, "5", b'{"error": " "}'),
        reply(503, "soon"),
        reply(429),
        reply(500, "5"),
        reply(502, "5"),
        reply(504, "5"),
        reply(400, "5"),
    ],
)
def test_may_follow_a_create_that_went_through(refusal: Reply) -> None:
    assert retry_delay(refusal, 0, 60.0) is None


@pytest.mark.usefixtures("most_jitter")
def test_the_jitter_grows_on_top_of_the_hint() -> None:
    delays = [retry_delay(reply(503, "5"), n, 60.0) for n in range(7)]
    assert delays == [6.0, 7.0, 9.0, 13.0, 20.0, 20.0, 20.0]
    assert retry_delay(reply(507), 0, 60.0) == 1.5


def test_the_budget_bounds_the_wait(most_jitter: None) -> None:
    refusal = reply(503, "5")
    assert retry_delay(refusal, 4, 12.0) == 12.0  # cut to fit
    assert retry_delay(refusal, 0, 4.9) is None  # the hint does not fit
    assert retry_delay(reply(507), 4, 0.9) is None  # what is left is no wait
    assert retry_delay(refusal, 0, 0.0) is None


def test_a_date_is_a_wait_too(no_jitter: None) -> None:
    soon = datetime.now(timezone.utc) + timedelta(seconds=20)
    delay = retry_delay(reply(503, format_datetime(soon, usegmt=True)), 0, 60.0)
    assert delay is not None
    assert 17 < delay <= 20
    past = retry_delay(reply(503, "Thu, 01 Jan 1970 00:00:00 GMT"), 0, 60.0)
    assert past == 0.0


def drive(replies: List[Reply], patience: Patience, cancel_in_pause: bool = False) -> Any:
    """Runs the flow on a clock of its own; returns its result and the waits."""
    pauses: List[float] = []
    flow = create_call(Request("POST", "/sandboxes"), patience)
    step = next(flow)
    while True:
        try:
            if isinstance(step, Pause):
                pauses.append(step.seconds)
                step = flow.send(cancel_in_pause)
            else:
                step = flow.send(replies.pop(0))
        except StopIteration as end:
            return end.value, pauses


def test_it_keeps_trying_and_tells(no_jitter: None) -> None:
    events: List[CreateRetryEvent] = []
    answers = [reply(503, "5"), reply(429, "1"), reply(507), reply(201, body=b"{}")]
    result, pauses = drive(answers, Patience(60.0, events.append))
    assert result.status == 201
    assert pauses == [5.0, 1.0, 0.5]
    assert [e.attempt for e in events] == [1, 2, 3]
    assert [e.status_code for e in events] == [503, 429, 507]
    assert [e.retry_after_seconds for e in events] == [5.0, 1.0, None]
    first = events[0]
    assert (first.method, first.path) == ("POST", "/sandboxes")
    assert first.error == "no compute capacity available"
    assert first.delay_seconds == 5.0
    assert first.elapsed_seconds >= 0


def test_no_budget_is_no_retry() -> None:
    with pytest.raises(ServerError, match=r"^no compute capacity available$"):
        drive([reply(503, "0")], Patience(0.0))


def test_the_last_refusal_comes_out_as_it_is(
    monkeypatch: pytest.MonkeyPatch, no_jitter: None
) -> None:
    times = iter([0.0, 1.0, 58.0])
    monkeypatch.setattr("pandastack._core.capacity.time.monotonic", lambda: next(times))
    last = reply(503, "5", b'{"error": "still full"}')
    with pytest.raises(ServerError, match=r"^still full$") as caught:
        drive([reply(503, "5"), last], Patience(60.0))
    assert caught.value.status_code == 503


def test_what_the_callback_raises_ends_it() -> None:
    def enough(event: CreateRetryEvent) -> None:
        raise KeyError(event.attempt)

    with pytest.raises(KeyError):
        drive([reply(503, "5")], Patience(60.0, enough))


def test_cancelled_before_between_and_during() -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(CreateCancelled, match="before it was sent"):
        drive([], Patience(60.0, None, cancel))
    cancel.clear()
    with pytest.raises(CreateCancelled, match="after a refusal") as caught:
        drive([reply(503, "5")], Patience(60.0, None, cancel), cancel_in_pause=True)
    assert isinstance(caught.value.__cause__, ServerError)


@pytest.mark.parametrize("bad", [-1, float("nan"), float("inf"), "x"])
def test_a_bad_budget_argument_is_an_error(bad: Any) -> None:
    with pytest.raises(ValueError, match="finite number"):
        Client(max_create_retry_seconds=bad)


@pytest.mark.parametrize(
    ("text", "seconds"), [("", 60.0), ("0", 0.0), ("2.5", 2.5), ("-1", 60.0), ("soon", 60.0)]
)
def test_the_budget_variable(monkeypatch: pytest.MonkeyPatch, text: str, seconds: float) -> None:
    monkeypatch.setenv("PANDASTACK_MAX_CREATE_RETRY_SECONDS", text)
    assert budget_seconds(None) == seconds
    assert budget_seconds(7) == 7.0


def test_on_a_socket(fake: Fake, client: Client, no_jitter: None) -> None:
    refusal = Answer(503, {"error": "full"}, {"Retry-After": "0"})
    fake.on("POST", "/v1/sandboxes", refusal, refusal, Answer(201, SANDBOX))
    seen: List[CreateRetryEvent] = []
    client.on_create_retry = seen.append
    assert client.sandboxes.create().id == SANDBOX["id"]
    assert len(fake.requests("POST", "/v1/sandboxes")) == 3
    assert [e.attempt for e in seen] == [1, 2]


def test_other_calls_are_not_retried(fake: Fake, client: Client) -> None:
    fake.on("GET", "/v1/sandboxes", Answer(503, {"error": "full"}, {"Retry-After": "0"}))
    with pytest.raises(ServerError):
        client.sandboxes.list()
    assert len(fake.seen) == 1


def test_forks_are_retried_too(fake: Fake, sandbox: Sandbox, no_jitter: None) -> None:
    refusal = Answer(429, {"error": "slow down"}, {"Retry-After": "0"})
    for verb, body in (("fork", {"sandbox": SANDBOX}), ("fork-tree", {"children": [SANDBOX]})):
        fake.on("POST", f"/v1/sandboxes/{sandbox.id}/{verb}", refusal, Answer(201, body))
    assert sandbox.fork().id == sandbox.id
    assert len(sandbox.fork_tree(1)) == 1


def test_an_event_ends_a_real_wait(fake: Fake, client: Client) -> None:
    fake.on("POST", "/v1/sandboxes", Answer(503, {"error": "full"}, {"Retry-After": "30"}))
    for cancel in (threading.Event(), multiprocessing.Event()):
        client.on_create_retry = lambda event, cancel=cancel: cancel.set()
        started = time.monotonic()
        with pytest.raises(CreateCancelled):
            Sandbox.create(client=client, cancel=cancel)
        assert time.monotonic() - started < 10


async def asyncio_event() -> asyncio.Event:
    return asyncio.Event()


@pytest.mark.parametrize("make", [object, str, lambda: asyncio.run(asyncio_event())])
def test_a_cancel_that_cannot_be_waited_on_sends_nothing(
    fake: Fake, client: Client, make: Callable[[], Any]
) -> None:
    with pytest.raises(TypeError, match="cancel="):
        client.sandboxes.create(cancel=make())
    assert fake.seen == []


def test_a_quota_is_raised_at_once(fake: Fake, client: Client) -> None:
    limit: Dict[str, str] = {"error": "max sandboxes reached"}
    fake.on("POST", "/v1/sandboxes", Answer(429, limit))
    with pytest.raises(BadRequestError, match="max sandboxes") as caught:
        Client(fake.url, KEY).sandboxes.create()
    assert caught.value.status_code == 429
    assert len(fake.seen) == 1
