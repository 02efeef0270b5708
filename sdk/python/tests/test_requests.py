# SPDX-License-Identifier: Apache-2.0
"""What goes over the wire for each kind of call, and what comes of the answers."""

from __future__ import annotations

from typing import Any, Type

import httpx
import pytest

from pandastack import (
    APIConnectionError,
    BadRequestError,
    Client,
    ConnectionError,
    NotFoundError,
    PandastackError,
    Sandbox,
    ServerError,
    __version__,
)
from pandastack._core.wire import path

from .fake import HERE, KEY, SANDBOX, Answer, Fake


def test_every_request_says_who_asks(fake: Fake, client: Client) -> None:
    client.sandboxes.get(SANDBOX["id"])
    headers = fake.only("GET", HERE).headers
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["accept"] == "application/json"
    assert headers["user-agent"] == f"pandastack-py/{__version__}"


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_the_version_is_added_once(fake: Fake, suffix: str) -> None:
    Client(fake.url + suffix, KEY).sandboxes.get(SANDBOX["id"])
    assert fake.only("GET", HERE)


def test_a_path_prefix_is_kept(fake: Fake) -> None:
    fake.on("GET", "/panda/v1/sandboxes", Answer(200, []))
    assert Client(fake.url + "/panda", KEY).sandboxes.list() == []


def test_no_argument_can_leave_its_segment() -> None:
    assert path("sandboxes", "a/../b?c#d") == "/sandboxes/a%2F..%2Fb%3Fc%23d"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequestError),
        (403, BadRequestError),
        (404, NotFoundError),
        (409, BadRequestError),
        (429, BadRequestError),
        (500, ServerError),
        (504, ServerError),
    ],
)
def test_status_to_exception(
    fake: Fake, sandbox: Sandbox, status: int, kind: Type[PandastackError]
) -> None:
    fake.on("GET", HERE, Answer(status, {"error": "because"}))
    with pytest.raises(PandastackError, match=r"^because$") as caught:
        sandbox.refresh()
    assert type(caught.value) is kind
    assert caught.value.status_code == status
    assert len(fake.requests("GET", HERE)) == 1


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"error": "a", "message": "b"}, "a"),
        ({"message": "b", "detail": "c"}, "b"),
        ({"detail": "c"}, "c"),
        (b"Bad gateway", "Bad gateway"),
        (b"", "PandaStack API returned HTTP 502"),
        ({}, "PandaStack API returned HTTP 502"),
    ],
)
def test_the_reason_is_found_wherever_it_is(
    fake: Fake, sandbox: Sandbox, body: Any, text: str
) -> None:
    fake.on("GET", HERE, Answer(502, body))
    with pytest.raises(ServerError) as caught:
        sandbox.refresh()
    assert str(caught.value) == text


def test_no_server_is_a_connection_error(fake: Fake) -> None:
    client = Client("http://127.0.0.1:1", KEY)
    with pytest.raises(ConnectionError, match="could not connect to the PandaStack API"):
        client.sandboxes.list()
    assert APIConnectionError is ConnectionError


def test_silence_is_a_connection_error() -> None:
    def silent(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("", request=request)

    client = Client("http://x.test", KEY, http=httpx.Client(transport=httpx.MockTransport(silent)))
    with pytest.raises(ConnectionError, match="ReadTimeout"):
        client.sandboxes.list()


def test_time_limits_follow_the_client_and_the_call() -> None:
    limits = []

    def note(request: httpx.Request) -> httpx.Response:
        limits.append(request.extensions["timeout"])
        return httpx.Response(200, json={"exit_code": 0, "id": "s"})

    client = Client("http://x.test", KEY, http=httpx.Client(transport=httpx.MockTransport(note)))
    sandbox = Sandbox.from_dict(SANDBOX, client)
    sandbox.exec("true")
    sandbox.exec("true", timeout_seconds=5)
    sandbox.exec("true", timeout_seconds=600)
    sandbox.snapshot()
    client.timeout = 1.0
    sandbox.exec("true")
    assert [limit["read"] for limit in limits] == [45.0, 30.0, 615.0, 180.0, 45.0]
    assert [limit["connect"] for limit in limits] == [30.0] * 4 + [1.0]
    assert {limit["pool"] for limit in limits} == {None}


def test_requests_of_ones_own(fake: Fake, client: Client) -> None:
    fake.on("POST", "/v1/anything", Answer(200, {"ok": True}))
    fake.on("GET", "/v1/text", Answer(200, b"plain", {"Content-Type": "text/plain"}))
    fake.on("GET", "/v1/bytes", Answer(200, b"\x00\xff"))
    fake.on("GET", "/v1/nothing", Answer(204))
    assert client.request("POST", "anything", json={"a": 1}, params={"q": "x y"}) == {"ok": True}
    seen = fake.only("POST", "/v1/anything")
    assert (seen.json, seen.query) == ({"a": 1}, {"q": "x y"})
    assert client.request("GET", "/text") == "plain"
    assert client.request("GET", "/bytes") == b"\x00\xff"
    assert client.request("GET", "/nothing") is None


def test_me_tokens_volumes_snapshots(fake: Fake, client: Client) -> None:
    token = {"prefix": "pds_12345678", "label": "ci", "created_at": "2026-01-01T00:00:00Z"}
    fake.on("GET", "/v1/me", Answer(200, {"user_id": "u"}))
    fake.on("GET", "/v1/me/tokens", Answer(200, {"items": [token]}))
    fake.on("POST", "/v1/me/tokens", Answer(201, {**token, "token": "pds_12345678abc"}))
    fake.on("DELETE", "/v1/me/tokens/pds_12345678", Answer(204))
    assert client.me() == {"user_id": "u"}
    assert client.tokens.list()[0].name == "ci"
    assert client.tokens.create("ci", expires_in_days=3).token == "pds_12345678abc"
    assert fake.only("POST", "/v1/me/tokens").json == {"label": "ci", "expires_in_days": 3}
    client.tokens.revoke("pds_12345678")

    fake.on("POST", "/v1/volumes", Answer(201, {"name": "v", "size_mb": 64}))
    fake.on("GET", "/v1/volumes", Answer(200, [{"name": "v"}]))
    fake.on("GET", "/v1/volumes/v", Answer(200, {"name": "v"}))
    fake.on("DELETE", "/v1/volumes/v", Answer(204))
    assert client.volumes.create("v", 64)["size_mb"] == 64
    assert client.volumes.list() == [client.volumes.get("v")]
    client.volumes.delete("v")

    fake.on("GET", "/v1/snapshots", Answer(200, {"snapshots": [{"id": "s"}]}))
    fake.on("GET", "/v1/snapshots/s", Answer(200, {"id": "s"}))
    fake.on("DELETE", "/v1/snapshots/s", Answer(204))
    assert client.snapshots.list(sandbox_id="x") == [client.snapshots.get("s")]
    assert fake.only("GET", "/v1/snapshots").query == {"sandbox_id": "x"}
    client.snapshots.delete("s")
